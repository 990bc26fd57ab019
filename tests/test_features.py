"""Layers that a head reads, what it makes of them, and the LSTM behind them."""

import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import spacy
import torch
import transformers
from checkpoints import FAMILIES, load_encoder, make_checkpoint
from conftest import TRAIN_DATA, make_examples
from spacy.tokens import Doc, DocBin
from spacy.training.initialize import init_nlp
from thinc.api import Adam

import spacy_bert_heads
from spacy_bert_heads.encoder.features import mix_of
from spacy_bert_heads.encoder.listener import build_bert_listener
from spacy_bert_heads.encoder.model import encoder_of, shim_of
from spacy_bert_heads.heads.modules import TokenClassifier
from spacy_bert_heads.text.batch import TokenMap, batch_of_tokens

TEXT = "Anna Merkel left Skagen"
LAYERS = [[0], [1], [-1], [-1, 0], "all"]


def hidden_states(folder: str, nlp, doc: Doc) -> list[torch.Tensor]:
    """What Hugging Face's own model gives for a text: (n_pieces, width) of each layer."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    ids = (
        encoder_of(nlp.get_pipe("bert_encoder").model)
        .checkpoint.tokenizer.tokenizer.encode(doc.text)
        .ids
    )
    with torch.no_grad():
        output = model(torch.tensor([ids]), output_hidden_states=True)
    return [states[0] for states in (*output.hidden_states[:-1], output.last_hidden_state)]


def listen(nlp, **settings):
    """A linked and initialized listener."""
    listener = build_bert_listener(**settings)
    for node in listener.walk():
        if node.name == "bert_listener":
            nlp.get_pipe("bert_encoder").add_listener(node, "test")
    return listener.initialize()


@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_hugging_faces(family, layers, make_nlp, tmp_path):
    folder = make_checkpoint(tmp_path / family, family=family)
    nlp = make_nlp(name=folder)
    doc = nlp.make_doc(TEXT)
    states = hidden_states(folder, nlp, doc)
    listener = listen(nlp, layers=layers)
    expected = torch.cat([states[n] for n in (range(3) if layers == "all" else layers)], dim=1)
    torch.testing.assert_close(listener.predict([doc]).states, expected, atol=1e-5, rtol=1e-4)
    assert listener.get_dim("nO") == expected.shape[1]


def test_only_what_is_read_is_kept(make_nlp):
    nlp = make_nlp()
    encoder = nlp.get_pipe("bert_encoder")
    docs = [nlp.make_doc(text) for text in ("Anna left Skagen", "", "Hull burned " * 40)]
    last = encoder.predict(docs).states
    assert last.shape[1] == 32
    top = listen(nlp, layers=[-1])
    low = listen(nlp, layers=[1])
    wide = encoder.predict(docs)
    assert wide.layers == (1, 2)
    assert wide.states.shape[1] == 64
    torch.testing.assert_close(top.predict(docs).states, last)
    torch.testing.assert_close(low.predict(docs).states, wide.states[:, :32])
    encoder.remove_listener(low, "test")
    assert encoder.predict(docs).states.shape[1] == 32


@pytest.mark.parametrize("combine", ["concat", "sum", "weighted"])
def test_gradients_are_autograds(combine, make_nlp, checkpoint):
    """Two listeners with different layers share a step; their gradients meet in the encoder."""
    nlp = make_nlp()
    encoder = nlp.get_pipe("bert_encoder")
    feature = listen(nlp, layers=[2, 0], combine=combine, grad_factor=0.5)
    top = listen(nlp)
    examples = make_examples(nlp)
    docs = [example.predicted for example in examples]
    if combine == "weighted":
        with torch.no_grad():
            mix_of(feature).weights.copy_(torch.tensor([0.3, -0.4]))
            mix_of(feature).scale.fill_(1.7)
    encoder.update(examples)
    found, backprop = feature.begin_update(docs)
    found_top, backprop_top = top.begin_update(docs)
    torch.manual_seed(1)
    gradient, gradient_top = torch.randn_like(found.states), torch.randn_like(found_top.states)
    backprop(gradient)
    backprop_top(gradient_top)
    bert = encoder_of(encoder.model)
    grads = {name: p.grad.clone() for name, p in bert.named_parameters() if p.grad is not None}
    bert.zero_grad()

    rows, rows_top, expected = [], [], []
    for doc in docs:
        ids = bert.checkpoint.tokenizer.tokenizer.encode(doc.text).ids
        output = bert.model(torch.tensor([ids]), output_hidden_states=True)
        rows.append(torch.stack([output.hidden_states[2][0], output.hidden_states[0][0]]))
        rows_top.append(output.last_hidden_state[0])
    states = torch.cat(rows, dim=1)
    match combine:
        case "concat":
            expected = torch.cat([states[0], states[1]], dim=1)
        case "sum":
            expected = states[0] + states[1]
        case "weighted":
            p = torch.tensor([0.3, -0.4], requires_grad=True)
            scale = torch.tensor(1.7, requires_grad=True)
            share = torch.exp(p) / torch.exp(p).sum()
            expected = scale * (share[0] * states[0] + share[1] * states[1])
    torch.testing.assert_close(found.states, expected.detach(), atol=1e-5, rtol=1e-4)
    loss = (expected * gradient).sum()
    if combine == "weighted":  # the head's own weights learn at the full gradient
        loss.backward(retain_graph=True)
        torch.testing.assert_close(mix_of(feature).weights.grad, p.grad, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(mix_of(feature).scale.grad[0], scale.grad, atol=1e-4, rtol=1e-3)
        bert.zero_grad()
    (0.5 * loss + (torch.cat(rows_top) * gradient_top).sum()).backward()
    for name, parameter in bert.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(grads[name], parameter.grad, atol=1e-4, rtol=1e-3)


def build(checkpoint, factory: str, **model) -> spacy.Language:
    nlp = spacy.blank("en")
    settings = {"name": checkpoint, "window": 64, "stride": 48}
    nlp.add_pipe("bert_encoder", config={"model": settings})
    nlp.add_pipe(factory, config={"model": model})
    return nlp


def learn(nlp, *, frozen: bool = False, steps: int = 60) -> None:
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp))
    optimizer = Adam(3e-3, use_averages=False)
    excluded = ["bert_encoder"] if frozen else []
    for _ in range(steps):
        nlp.update(make_examples(nlp), sgd=optimizer, exclude=excluded)


def results(nlp) -> list:
    docs = list(nlp.pipe([TRAIN_DATA[0][0], "", TRAIN_DATA[1][0] + " " + TRAIN_DATA[0][0] * 9]))
    ents = [[(e.start_char, e.end_char, e.label_) for e in doc.ents] for doc in docs]
    cats = [{label: round(score, 4) for label, score in doc.cats.items()} for doc in docs]
    return [ents, cats]


WAYS = {
    "weighted": {"tok2vec": {"layers": "all", "combine": "weighted"}},
    "sum": {"tok2vec": {"layers": [-1, -2], "combine": "sum"}},
    "concat": {"tok2vec": {"layers": [-1, 0], "combine": "concat"}},
    "lower": {"tok2vec": {"layers": [-2]}},
}


@pytest.mark.filterwarnings("ignore:A learning rate")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("factory", ["bert_ner", "bert_textcat"])
def test_overfit_and_reload(factory, way, checkpoint, tmp_path):
    nlp = build(checkpoint, factory, **WAYS[way])
    learn(nlp)
    doc = nlp(TRAIN_DATA[0][0])
    if factory == "bert_ner":
        gold = TRAIN_DATA[0][1]["entities"]
        assert [(e.start_char, e.end_char, e.label_) for e in doc.ents] == gold
    else:
        assert doc.cats["voyage"] > 0.9
    if way == "weighted":
        weights = mix_of(nlp.get_pipe(factory).model.layers[0]).weights
        assert weights.abs().max() > 0.01  # they have learned
    expected = results(nlp)
    nlp.to_disk(tmp_path / "whole")
    assert results(spacy.load(tmp_path / "whole")) == expected
    assert results(pickle.loads(pickle.dumps(nlp))) == expected
    again = spacy.blank("en").from_config(nlp.config)
    assert results(again.from_bytes(nlp.to_bytes())) == expected
    nlp.replace_listeners("bert_encoder", factory, ["model.tok2vec"])
    nlp.remove_pipe("bert_encoder")
    assert results(nlp) == expected
    nlp.to_disk(tmp_path / "own")
    assert results(spacy.load(tmp_path / "own")) == expected


@pytest.mark.filterwarnings("ignore:A learning rate")
def test_features_of_a_frozen_encoder(checkpoint):
    nlp = build(checkpoint, "bert_ner", lstm_width=24, **WAYS["weighted"])
    before = {}
    learn(nlp, frozen=True, steps=0)
    for name, p in encoder_of(nlp.get_pipe("bert_encoder").model).named_parameters():
        before[name] = p.clone()
    learn(nlp, frozen=True, steps=80)
    for name, p in encoder_of(nlp.get_pipe("bert_encoder").model).named_parameters():
        assert torch.equal(p, before[name])
    ents = nlp(TRAIN_DATA[0][0]).ents
    found = [(e.start_char, e.end_char, e.label_) for e in ents]
    assert found == TRAIN_DATA[0][1]["entities"]


@pytest.mark.parametrize("factory", ["bert_ner", "tagger"])
def test_a_new_encoder_can_be_frozen_from_the_start(factory, checkpoint, tmp_path):
    """spaCy leaves frozen components out when it initializes a pipeline."""
    nlp = spacy.blank("en")
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    tok2vec = {"@architectures": "spacy_bert_heads.Tok2VecListener.v1"}
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": tok2vec}
    nlp.add_pipe(factory, config={"model": model} if factory == "tagger" else {})
    docs = DocBin(docs=[eg.reference for eg in make_examples(nlp)])
    docs.to_disk(tmp_path / "train.spacy")
    path = str(tmp_path / "train.spacy")
    config = nlp.config.merge(
        {
            "paths": {"train": path, "dev": path},
            "training": {"frozen_components": ["bert_encoder"]},
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spaCy's own, of a frozen layer that others read
        trained = init_nlp(config)
    # It has the checkpoint's weights, and so has what is saved.
    expected = load_encoder(checkpoint).state_dict()
    trained.to_disk(tmp_path / "pipeline")
    for nlp in (trained, spacy.load(tmp_path / "pipeline")):
        found = encoder_of(nlp.get_pipe("bert_encoder").model).state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
        nlp("Anna left")


@pytest.mark.filterwarnings("ignore:A learning rate")
def test_spacys_tagger_reads_weighted_layers(checkpoint, tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    listener = {"@architectures": "spacy_bert_heads.Tok2VecListener.v1", "upstream": "*"}
    listener |= {"grad_factor": 1.0, "layers": "all", "combine": "weighted"}
    model = {"@architectures": "spacy.Tagger.v2", "tok2vec": listener}
    nlp.add_pipe("tagger", config={"model": model})
    learn(nlp)
    tags = [token.tag_ for token in nlp(TRAIN_DATA[0][0])]
    assert tags == TRAIN_DATA[0][1]["tags"]
    nlp.to_disk(tmp_path / "tagger")
    assert [t.tag_ for t in spacy.load(tmp_path / "tagger")(TRAIN_DATA[0][0])] == tags
    nlp.replace_listeners("bert_encoder", "tagger", ["model.tok2vec"])
    nlp.to_disk(tmp_path / "own")
    assert [t.tag_ for t in spacy.load(tmp_path / "own")(TRAIN_DATA[0][0])] == tags


def test_the_lstm_reads_each_doc_by_itself():
    torch.manual_seed(0)
    module = TokenClassifier(6, 3, lstm_width=4, dropout=0.0).eval()
    tokens = np.asarray([3, 0, 1, 5])
    n = int(tokens.sum())
    pieces = np.ones(n, dtype=np.int64)
    pieces[4] = 0  # a token without a piece: zeros
    positions = np.arange(int(pieces.sum()))
    batch = replace(batch_of_tokens(tokens), tokens=TokenMap(tokens, pieces, positions))
    states = torch.randn(len(positions), 6)
    logits = module(states, batch)
    vectors = torch.zeros(n, 6)
    vectors[torch.from_numpy(pieces > 0)] = states
    reference = torch.nn.LSTM(6, 4, num_layers=2, bidirectional=True, batch_first=True)
    reference.load_state_dict(module.lstm.state_dict())
    expected = [
        module.classifier(reference(doc.unsqueeze(0))[0][0])
        for doc in vectors.split(tokens.tolist())
        if len(doc)
    ]
    torch.testing.assert_close(logits, torch.cat(expected))
    assert logits.shape == (n, 3)

    empty = batch_of_tokens(np.asarray([0, 0]))
    assert module(states[:0], empty).shape == (0, 3)

    # A long Doc makes the others no longer.
    sizes = []
    module.lstm.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0].data)))
    module(states, batch)
    assert sizes == [n]


@pytest.mark.parametrize(
    ("tok2vec", "message"),
    [
        ({"layers": []}, "name some"),
        ({"layers": "some"}, "all"),
        ({"layers": [3]}, "no layer 3.*0, the embeddings, to 2"),
        ({"layers": [-4]}, "no layer -4"),
        ({"layers": "all", "combine": "mean"}, "concat, sum, weighted"),
    ],
)
def test_what_makes_no_sense_is_said(tok2vec, message, checkpoint):
    with pytest.raises(ValueError, match=message):
        nlp = build(checkpoint, "bert_ner", tok2vec=tok2vec)
        nlp.initialize(lambda: make_examples(nlp))


@pytest.mark.parametrize("model", [WAYS["lower"], WAYS["weighted"], {"lstm_width": 8}])
def test_hugging_face_has_no_such_heads(model, checkpoint, tmp_path):
    nlp = build(checkpoint, "bert_ner", **model)
    nlp.initialize(lambda: make_examples(nlp))
    with pytest.raises(ValueError, match="lstm_width = 0"):
        spacy_bert_heads.to_hf(nlp, "bert_ner", tmp_path)


def test_a_pooler_knows_the_last_layer_alone(make_nlp, checkpoint):
    """Weights that the checkpoint's pooler learned for one layer are not taken for another."""
    poolers = []
    for layers in ([-1], [1]):
        nlp = build(checkpoint, "bert_textcat", tok2vec={"layers": layers})
        nlp.initialize(lambda nlp=nlp: make_examples(nlp))
        bert = encoder_of(nlp.get_pipe("bert_encoder").model)
        module = shim_of(nlp.get_pipe("bert_textcat").model).module
        poolers.append(torch.equal(module.dense.linear.weight, bert.model.pooler.dense.weight))
    assert poolers == [True, False]
