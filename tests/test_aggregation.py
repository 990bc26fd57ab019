"""The class of a token by those of its wordpieces, beside transformers' pipeline."""

import numpy as np
import pytest
import spacy
import torch
import transformers
from hf_models import TOKENS, save
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import assert_same_loss, in_torch
from spacy.tokens import Doc, Span
from spacy.training import Example
from torch.nn import functional as F
from transformers.pipelines.token_classification import AggregationStrategy

import spacy_bert_heads
from spacy_bert_heads.heads.modules import aggregate

LABELS = ["B-PLACE", "O", "I-DATE", "B-DATE", "I-PLACE"]
TEXTS = [
    "Angela Merkel met Barack Obama in Berlin , then flew to New York",
    "the coaster Hanne Lind lost pitch control off Skagen",
    "unknowable swimming naive boats burned",
    "unladen boatswains capsized yesterday near Sheerness harbour and Whitstable",
    "several fishermen rescued passengers throughout Thursday afternoon",
    "nobody",
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A checkpoint of a family as our pipeline and as transformers'."""

    def load(family: str):
        folder = save(tmp_path_factory.mktemp("hf") / family, TOKENS, LABELS, family=family, seed=3)
        pipeline = transformers.pipeline("token-classification", model=folder)
        return spacy_bert_heads.from_hf(folder), pipeline

    return load


def doc_of_words(nlp, text: str) -> Doc:
    return Doc(nlp.vocab, words=text.split())


def spans_of(found: list[dict]) -> list[tuple[int, int, str]]:
    return [(one["start"], one["end"], one["entity_group"]) for one in found]


@pytest.mark.parametrize("aggregation", ["first", "average", "max"])
def test_words_are_those_of_transformers(loaded, aggregation):
    nlp, pipeline = loaded("bert")
    head = nlp.get_pipe("bert_ner")
    assert head.cfg["aggregation"] == "first"
    head.cfg["aggregation"] = aggregation
    docs = [doc_of_words(nlp, text) for text in TEXTS]
    lengths = [len(doc) for doc in docs]
    probabilities = head.predict(docs).logits.softmax(-1).split(lengths)
    n_found = 0
    for doc, p in zip(nlp.pipe(docs), probabilities, strict=True):
        theirs = pipeline(doc.text, aggregation_strategy=aggregation)
        ours = [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents]
        assert ours == spans_of(theirs)
        n_found += len(ours)
        # And word by word: the class and its probability.
        outputs = list(
            map(pipeline.forward, pipeline.preprocess(doc.text, is_split_into_words=False))
        )[0]
        scores = outputs["logits"][0].softmax(-1).numpy()
        how = AggregationStrategy(aggregation)
        pieces = pipeline.gather_pre_entities(
            doc.text,
            outputs["input_ids"][0],
            scores,
            outputs["offset_mapping"][0],
            outputs["special_tokens_mask"][0].numpy(),
            how,
        )
        words = pipeline.aggregate_words(pieces, how)
        assert [head.tags[i] for i in p.argmax(1).tolist()] == [word["entity"] for word in words]
        assert p.amax(1).tolist() == pytest.approx([w["score"] for w in words], abs=1e-5)
    assert n_found > 5


def test_the_ways_differ(loaded):
    nlp, _ = loaded("bert")
    head = nlp.get_pipe("bert_ner")
    found = set()
    for aggregation in ("first", "average", "max"):
        head.cfg["aggregation"] = aggregation
        logits = head.predict([doc_of_words(nlp, text) for text in TEXTS]).logits
        found.add(tuple(logits.argmax(1).tolist()))
    assert len(found) == 3


def characters(nlp, text: str) -> Doc:
    """A Doc with a token for each character."""
    return Doc(nlp.vocab, words=list(text), spaces=[False] * len(text))


def test_entities_of_wordpieces_are_those_of_transformers(loaded):
    nlp, pipeline = loaded("bert")
    nlp.get_pipe("bert_ner").cfg["aggregation"] = "simple"
    texts = [*TEXTS, "Ann  a", "cannot naïve 船在"]
    docs = [characters(nlp, text) for text in texts]
    for doc, text in zip(nlp.pipe(docs), texts, strict=True):
        theirs = spans_of(pipeline(text, aggregation_strategy="simple"))
        assert [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents] == theirs


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_rows_of_wordpieces_are_in_the_order_of_the_text(loaded, family):
    """Also of those that are in two windows."""
    nlp, pipeline = loaded(family)
    head, encoder = nlp.get_pipe("bert_ner"), nlp.get_pipe("bert_encoder")
    head.cfg["aggregation"] = "simple"
    texts = [*TEXTS, "", "😀 naïve 船在"]
    whole = head.predict([characters(nlp, text) for text in texts])
    encoder.model.attrs.update(window=10, stride=6)
    output = head.predict([characters(nlp, text) for text in texts])
    theirs = [pipeline.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    assert output.lengths.tolist() == [len(ids) for ids in theirs]
    np.testing.assert_array_equal(output.offsets, whole.offsets)
    assert not np.allclose(output.logits, whole.logits, atol=1e-3)  # they see less


# --- in arrays


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 4), max_size=6), seed=st.integers(0, 99), data=st.data())
def test_aggregate(sizes, seed, data):
    how = data.draw(st.sampled_from(["average", "max"]))
    logits = np.random.default_rng(seed).normal(scale=3, size=(sum(sizes), 3)).astype(np.float32)
    if data.draw(st.booleans()):
        logits = np.round(logits)  # several are the best
    found = aggregate(torch.from_numpy(logits), np.asarray(sizes, dtype=np.int64), how).softmax(-1)
    p = torch.from_numpy(logits).softmax(-1).numpy()
    begin = 0
    for row, size in zip(found.numpy(), sizes, strict=True):
        own = p[begin : begin + size]
        begin += size
        if not size:
            expected = np.full(3, 1 / 3)
        elif how == "average":
            expected = own.mean(axis=0)
        else:
            expected = own[own.max(axis=1).argmax()]
        np.testing.assert_allclose(row, expected, atol=1e-5)


@pytest.mark.parametrize("how", ["average", "max"])
def test_the_gradient_goes_to_the_wordpieces(how):
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    gold = torch.tensor([0, -1, 2])
    x = torch.tensor(logits, requires_grad=True)
    loss = F.cross_entropy(aggregate(x, np.asarray([3, 0, 2]), how), gold, ignore_index=-1)
    loss.backward()
    p = torch.from_numpy(logits).softmax(-1).amax(1)
    best = int(p[:3].argmax()), 3 + int(p[3:].argmax())

    def expected(x):
        if how == "max":
            return F.cross_entropy(x[list(best)], gold[[0, 2]])
        p = x.softmax(-1)
        return -(p[:3, 0].mean().log() + p[3:, 2].mean().log()) / 2

    assert_same_loss((float(loss.detach()), x.grad.numpy()), in_torch(expected, logits))


# --- as a setting


@pytest.mark.parametrize("aggregation", ["average", "max", "simple"])
def test_training_with_it_and_a_saved_pipeline(make_nlp, tmp_path, aggregation):
    nlp = make_nlp(initialize=False)
    nlp.add_pipe("bert_ner", config={"aggregation": aggregation})
    reference = nlp.make_doc("Anna Grete left Skagen")
    reference.ents = [Span(reference, 0, 2, "VESSEL"), Span(reference, 3, 4, "PLACE")]
    example = Example(nlp.make_doc(reference.text), reference)
    torch.manual_seed(0)
    optimizer = nlp.initialize(lambda: [example])
    optimizer.learn_rate = 3e-3
    with pytest.warns(UserWarning, match="A learning rate"):
        for _ in range(20):
            nlp.update([example], sgd=optimizer)
    expected = [("Anna Grete", "VESSEL"), ("Skagen", "PLACE")]
    nlp.to_disk(tmp_path)
    again = spacy.load(tmp_path)
    for one in (nlp, again):
        assert [(ent.text, ent.label_) for ent in one(reference.text).ents] == expected
    head = again.get_pipe("bert_ner")
    assert head.cfg["aggregation"] == aggregation
    other = spacy.load(tmp_path, config={"components.bert_ner.aggregation": "first"})
    first = other.get_pipe("bert_ner").predict([nlp.make_doc(reference.text)])
    assert first.offsets is None and len(first.logits) == 4
    again.initialize(lambda: [example])  # from scratch, with the same settings
    assert again(reference.text).has_annotation("ENT_IOB")


def test_settings_that_make_no_sense(make_nlp):
    nlp = make_nlp(initialize=False)
    with pytest.raises(ValueError, match="aggregation is 'none'. Choose one of: first, average"):
        nlp.add_pipe("bert_ner", config={"aggregation": "none"})
    with pytest.raises(ValueError, match="alignment_mode is 'outside'. Choose one of: strict"):
        nlp.add_pipe("bert_ner", config={"alignment_mode": "outside"})
    nlp.add_pipe("bert_ner", config={"aggregation": "max", "model": {"lstm_width": 4}})
    nlp.get_pipe("bert_ner").add_label("A")
    nlp.initialize()
    with pytest.raises(ValueError, match=r"LSTM reads the first wordpiece .* \(lstm_width = 4"):
        nlp("Anna")


def test_vectors_of_another_layer_have_no_wordpieces():
    """A tok2vec layer gives one vector a token, whatever the aggregation."""
    nlp = spacy.blank("en")
    tok2vec = {"@architectures": "spacy.HashEmbedCNN.v2", "width": 16, "depth": 1,
               "embed_size": 50, "window_size": 1, "maxout_pieces": 2, "subword_features": True,
               "pretrained_vectors": None}  # fmt: skip
    nlp.add_pipe("bert_ner", config={"model": {"tok2vec": tok2vec}})
    head = nlp.get_pipe("bert_ner")
    head.add_label("A")
    nlp.initialize()
    docs = [nlp.make_doc("Anna left"), nlp.make_doc("")]
    rows = {}
    for aggregation in ("first", "simple", "average", "max"):
        head.cfg["aggregation"] = aggregation
        rows[aggregation] = head.predict(docs).logits.log_softmax(-1).numpy()
        np.testing.assert_allclose(rows[aggregation], rows["first"], atol=1e-5)


def test_docs_without_tokens_before_static_vectors():
    """Of spaCy's layers with vectors, which fail for them."""
    nlp = spacy.blank("en")
    nlp.vocab.set_vector("Anna", np.ones(4, dtype=np.float32))
    tok2vec = {"@architectures": "spacy.HashEmbedCNN.v2", "width": 16, "depth": 1,
               "embed_size": 50, "window_size": 1, "maxout_pieces": 2, "subword_features": True,
               "pretrained_vectors": True}  # fmt: skip
    for head in ("bert_ner", "bert_textcat"):
        nlp.add_pipe(head, config={"model": {"tok2vec": tok2vec}})
        nlp.get_pipe(head).add_label("A"), nlp.get_pipe(head).add_label("B")
    nlp.initialize()
    alone, (beside, _) = nlp(""), nlp.pipe(["", "Anna left"])
    assert alone.cats == pytest.approx(beside.cats) and len(alone.cats) == 2
