"""spaCy's own components on our encoder, and our token heads on other layers."""

import numpy as np
import pytest
import spacy
import torch
from checkpoints import make_checkpoint
from conftest import TRAIN_DATA
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Adam, Optimizer

from spacy_bert_heads.encoder import component
from spacy_bert_heads.encoder.listener import build_tok2vec_listener
from spacy_bert_heads.encoder.model import encoder_of

LISTENER = {"@architectures": "spacy_bert_heads.Tok2VecListener.v1"}
HEADS = [1, 2, 2, 2, 3, 4], [1, 2, 2, 2, 3]
DEPS = (
    ["compound", "nsubj", "ROOT", "dobj", "prep", "pobj"],
    ["det", "nsubj", "ROOT", "prep", "pobj"],
)
OWN = ["parser", "tagger", "morphologizer", "ner", "textcat", "spancat"]
POS = (["PROPN", "PROPN", "VERB", "PROPN", "ADP", "PROPN"], ["DET", "NOUN", "VERB", "ADP", "PROPN"])


def make_config(nlp, factory: str) -> dict:
    """spaCy's default, with our listener for its vectors."""
    config = nlp.get_factory_meta(factory).default_config["model"]
    if factory == "textcat":
        return {
            "@architectures": "spacy.TextCatReduce.v1",
            "tok2vec": LISTENER,
            "exclusive_classes": True,
            "use_reduce_first": False,
            "use_reduce_last": False,
            "use_reduce_max": False,
            "use_reduce_mean": True,
        }
    return {**config, "tok2vec": LISTENER}


def make_pipeline(checkpoint: str, *factories: str, **encoder):
    nlp = spacy.blank("en")
    settings = {"name": checkpoint, "window": 64, "stride": 48, **encoder}
    nlp.add_pipe("bert_encoder", config={"model": settings})
    for factory in factories:
        own = {} if factory.startswith("bert") else {"model": make_config(nlp, factory)}
        if factory == "parser":
            own["min_action_freq"] = 1
        nlp.add_pipe(factory, config=own)
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def make_optimizer(rate: float) -> Optimizer:
    return Adam(rate, grad_clip=1.0, use_averages=False)


def make_examples(nlp) -> list[Example]:
    examples = []
    for (text, gold), heads, deps, pos in zip(TRAIN_DATA, HEADS, DEPS, POS, strict=True):
        spans = {"sc": gold["entities"]}
        gold = {**gold, "heads": heads, "deps": deps, "pos": pos, "spans": spans}
        examples.append(Example.from_dict(nlp.make_doc(text), gold))
    return examples


def test_vectors_are_means_of_pieces(make_nlp):
    nlp = make_nlp()
    encoder = nlp.get_pipe("bert_encoder")
    layer = build_tok2vec_listener()
    layer.layers[0].link(encoder, "test")
    layer.initialize()
    docs = [nlp.make_doc("Anna Xyzzyq left"), nlp.make_doc(""), nlp.make_doc("a \u200b b")]
    encoded = encoder.predict(docs)
    vectors = layer.predict(docs)
    assert [part.shape for part in vectors] == [(3, 32), (0, 32), (3, 32)]
    pieces, rows = (
        encoded.batch.tokens.num_wordpieces.tolist(),
        encoded.batch.tokens.positions.tolist(),
    )
    assert max(pieces) > 1
    assert min(pieces) == 0
    at = 0
    for count, vector in zip(pieces, np.concatenate(vectors), strict=True):
        own = rows[at : at + count]
        at += count
        expected = encoded.states[own].mean(0).numpy() if own else np.zeros(32)
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_the_gradient_is_autograds(make_nlp):
    nlp = make_nlp()
    encoder = nlp.get_pipe("bert_encoder")
    layer = build_tok2vec_listener(grad_factor=0.5)
    encoder.add_listener(layer.layers[0], "test")
    layer.initialize()
    examples = make_examples(nlp)
    docs = [example.predicted for example in examples]
    encoder.update(examples)
    vectors, backprop = layer.begin_update(docs)
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=part.shape).astype("f") for part in vectors]
    backprop(gradients)
    bert = encoder_of(encoder.model)
    found = {n: p.grad.clone() for n, p in bert.named_parameters() if p.grad is not None}
    bert.zero_grad()

    loss = 0.0
    for doc, gradient in zip(docs, gradients, strict=True):
        ids = bert.checkpoint.tokenizer.tokenizer.encode(doc.text)
        states = bert(*(torch.tensor([x]) for x in (ids.ids, ids.type_ids, ids.attention_mask)))[0]
        for token, row in zip(doc, gradient, strict=True):
            own = [
                i
                for i, (start, _) in enumerate(ids.offsets)
                if token.idx <= start < token.idx + len(token) and not ids.special_tokens_mask[i]
            ]
            loss = loss + (states[own].mean(0) * torch.from_numpy(row)).sum()
    (0.5 * loss).backward()
    for name, parameter in bert.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-3)


def annotations(doc: Doc) -> dict:
    return {
        "tags": [token.tag_ for token in doc],
        "pos": [token.pos_ for token in doc],
        "heads": [token.head.i for token in doc],
        "deps": [token.dep_ for token in doc],
        "ents": [(ent.start, ent.end, ent.label_) for ent in doc.ents],
        "cats": {label: round(score, 4) for label, score in doc.cats.items()},
        "spans": [(s.start, s.end, s.label_) for s in doc.spans.get("sc", [])],
    }


@pytest.mark.parametrize("factory", OWN)
def test_spacys_components_learn_on_our_encoder(factory, checkpoint, tmp_path):
    nlp = make_pipeline(checkpoint, factory)
    before = {
        n: p.clone() for n, p in encoder_of(nlp.get_pipe("bert_encoder").model).named_parameters()
    }
    optimizer = nlp.resume_training(sgd=make_optimizer(0.003))
    for _ in range(60):
        nlp.update(make_examples(nlp), sgd=optimizer)
    after = dict(encoder_of(nlp.get_pipe("bert_encoder").model).named_parameters())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    text, gold = TRAIN_DATA[0]
    doc = nlp(text)
    match factory:
        case "parser":
            assert [token.head.i for token in doc] == HEADS[0]
            assert [token.dep_ for token in doc] == DEPS[0]
        case "tagger":
            assert [token.tag_ for token in doc] == gold["tags"]
        case "morphologizer":
            assert tuple(token.pos_ for token in doc) == tuple(POS[0])
        case "ner":
            found = [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents]
            assert found == gold["entities"]
        case "textcat":
            assert max(doc.cats, key=doc.cats.get) == "voyage"
        case "spancat":
            found = {(s.start_char, s.end_char, s.label_) for s in doc.spans["sc"]}
            assert found == set(gold["entities"])
    nlp.to_disk(tmp_path)
    assert annotations(spacy.load(tmp_path)(text)) == annotations(doc)


def test_they_learn_jointly_with_our_heads_in_one_pass(checkpoint, tmp_path, monkeypatch):
    nlp = make_pipeline(checkpoint, "tagger", "parser", "bert_ner", "bert_textcat")
    optimizer = nlp.resume_training(sgd=make_optimizer(0.003))
    for _ in range(80):
        nlp.update(make_examples(nlp), sgd=optimizer)
    passes = []
    encode = component.encode
    monkeypatch.setattr(component, "encode", lambda *args: passes.append(1) or encode(*args))
    text, gold = TRAIN_DATA[0]
    doc = nlp(text)
    assert len(passes) == 1
    assert [token.tag_ for token in doc] == gold["tags"]
    assert [token.head.i for token in doc] == HEADS[0]
    assert [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents] == gold["entities"]
    assert doc.cats["voyage"] > 0.5
    nlp.to_disk(tmp_path)
    assert annotations(spacy.load(tmp_path)(text)) == annotations(doc)


@pytest.mark.parametrize("factory", ["tagger", "parser", "ner"])
def test_an_encoder_of_its_own_by_replace_listeners(factory, checkpoint, tmp_path):
    nlp = make_pipeline(checkpoint, factory)
    expected = annotations(nlp(TRAIN_DATA[0][0]))
    nlp.replace_listeners("bert_encoder", factory, ["model.tok2vec"])
    nlp.remove_pipe("bert_encoder")
    assert annotations(nlp(TRAIN_DATA[0][0])) == expected
    nlp.to_disk(tmp_path)
    again = spacy.load(tmp_path)
    assert again.pipe_names == [factory]
    assert annotations(again(TRAIN_DATA[0][0])) == expected
    architecture = again.config["components"][factory]["model"]["tok2vec"]["@architectures"]
    assert architecture == "spacy_bert_heads.Tok2VecEncoder.v1"
    losses: dict = {}
    again.update(make_examples(again), sgd=make_optimizer(0.001), losses=losses)
    assert losses[factory] > 0


@pytest.mark.parametrize("shared", [True, False])
def test_our_token_heads_on_hash_embeddings(shared, tmp_path):
    nlp = spacy.blank("en")
    tok2vec = {"@architectures": "spacy.Tok2VecListener.v1", "width": 96, "upstream": "*"}
    if shared:
        nlp.add_pipe("tok2vec")
    else:
        tok2vec = nlp.get_factory_meta("tok2vec").default_config["model"]
    nlp.add_pipe("bert_ner", config={"model": {"tok2vec": tok2vec}})
    optimizer = nlp.initialize(lambda: make_examples(nlp))
    optimizer.learn_rate = 0.01
    for _ in range(40):
        nlp.update(make_examples(nlp), sgd=optimizer)
    text, gold = TRAIN_DATA[0]
    found = [(ent.start_char, ent.end_char, ent.label_) for ent in nlp(text).ents]
    assert found == gold["entities"]
    nlp.to_disk(tmp_path)
    assert annotations(spacy.load(tmp_path)(text)) == annotations(nlp(text))


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_a_text_head_on_hash_embeddings_reads_no_neighbour_of_an_empty_text(pooling):
    nlp = spacy.blank("xx")
    tok2vec = nlp.get_factory_meta("tok2vec").default_config["model"]
    config = {"pooling": pooling, "dropout": 0.0, "tok2vec": tok2vec}
    nlp.add_pipe("bert_textcat", config={"model": config})
    examples = []
    for text, cat in (("Anna left", "A"), ("", "B"), ("Bob met Carl", "B")):
        reference = nlp.make_doc(text)
        reference.cats = {"A": float(cat == "A"), "B": float(cat == "B")}
        examples.append(Example(nlp.make_doc(text), reference))
    optimizer = nlp.initialize(lambda: examples)
    texts = [example.reference.text for example in examples]
    for order in (texts, texts[::-1], ["", *texts, ""]):
        for text, doc in zip(order, nlp.pipe(order), strict=True):
            assert doc.cats == pytest.approx(nlp(text).cats, abs=1e-6)
    optimizer.learn_rate = 0.01
    for _ in range(30):
        nlp.update(examples, sgd=optimizer)
    for example in examples:
        cats, gold = nlp(example.reference.text).cats, example.reference.cats
        assert max(cats, key=cats.get) == max(gold, key=gold.get)


def test_without_an_encoder_it_says_what_to_add():
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger", config={"model": make_config(nlp, "tagger")})
    with pytest.raises(ValueError, match="no 'bert_encoder' comes before it"):
        nlp.initialize(lambda: make_examples(nlp))


def test_our_token_heads_on_spacy_transformers(tmp_path):
    """Released versions pin transformers < 4.53.3, and never meet 5 in one environment."""
    pytest.importorskip("spacy_transformers", reason="the extra spacy-transformers is missing")
    nlp = spacy.blank("en")
    name = make_checkpoint(tmp_path / "bert")
    nlp.add_pipe("transformer", config={"model": {"name": name}})
    listener = {
        "@architectures": "spacy-transformers.TransformerListener.v1",
        "grad_factor": 1.0,
        "pooling": {"@layers": "reduce_mean.v1"},
        "upstream": "*",
    }
    nlp.add_pipe("bert_ner", config={"model": {"tok2vec": listener}})
    nlp.initialize(lambda: make_examples(nlp))
    optimizer = make_optimizer(0.003)
    for _ in range(60):
        nlp.update(make_examples(nlp), sgd=optimizer)
    text, gold = TRAIN_DATA[0]
    found = [(ent.start_char, ent.end_char, ent.label_) for ent in nlp(text).ents]
    assert found == gold["entities"]
    nlp.to_disk(tmp_path / "pipeline")
    assert annotations(spacy.load(tmp_path / "pipeline")(text)) == annotations(nlp(text))
