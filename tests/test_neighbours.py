"""Docs, components of others, streams and languages around ours."""

import json
import multiprocessing
import unicodedata

import checkpoints
import pytest
import spacy
import torch
from checkpoints import make_checkpoint
from conftest import TRAIN_DATA
from joint import (
    HEADS,
    LANG,
    SAILED,
    STREAM,
    annotate,
    annotations,
    assert_same,
    make_docs,
    make_examples,
)
from spacy import displacy
from spacy.matcher import Matcher, PhraseMatcher
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Adam


@pytest.fixture(scope="module")
def expected(joint):
    return annotate(spacy.load(joint))


# --- what a Doc carries


def through_docbin(doc: Doc) -> Doc:
    content = DocBin(store_user_data=True, docs=[doc]).to_bytes()
    return next(DocBin().from_bytes(content).get_docs(Vocab()))


def through_json(doc: Doc) -> Doc:
    text = json.dumps(doc.to_json(underscore=["nli", "answers", "ent_scores"]))
    return Doc(Vocab()).from_json(json.loads(text), validate=True)


@pytest.mark.parametrize("way", [through_docbin, through_json, Doc.copy])
def test_results_on_other_docs(nlp, expected, way):
    for doc, whole in zip(nlp.pipe(make_docs(nlp)), expected, strict=True):
        again = way(doc)
        if way is through_json:  # which has no attributes of span groups
            for key in again.spans:
                again.spans[key].attrs["scores"] = doc.spans[key].attrs["scores"]
        assert_same(annotations(again), {**whole, "spans": annotations(again)["spans"]})
        assert again.text == doc.text


def test_a_copied_doc_is_read_anew(nlp, expected):
    doc = nlp(make_docs(nlp)[0])
    again = doc.copy()
    again.set_ents([], default="missing")
    again.cats, again.spans["ents"] = {}, []
    assert_same(annotations(nlp(again)), expected[0])
    assert_same(annotations(doc), expected[0])


def test_displacy(nlp):
    doc = nlp(SAILED)
    ents = displacy.parse_ents(doc)["ents"]
    assert [(e["start"], e["end"], e["label"]) for e in ents] == TRAIN_DATA[0][1]["entities"]
    spans = displacy.parse_spans(doc, {"spans_key": "ents"})["spans"]
    assert [(s["start_token"], s["end_token"], s["label"]) for s in spans] == [
        (0, 2, "VESSEL"), (3, 4, "PLACE"), (5, 6, "DATE")
    ]  # fmt: skip
    assert displacy.render(doc, style="ent", jupyter=False).count("<mark") == 3


# --- components of others, before and behind


def test_matchers_on_our_entities(nlp):
    matcher = Matcher(nlp.vocab)
    matcher.add("LEFT", [[{"ENT_TYPE": "VESSEL", "OP": "+"}, {"LOWER": "left"},
                          {"ENT_TYPE": "PLACE"}]])  # fmt: skip
    doc = nlp(SAILED)
    assert "Anna Grete left Skagen" in [span.text for span in matcher(doc, as_spans=True)]
    phrases = PhraseMatcher(nlp.vocab, attr="ENT_TYPE")
    phrases.add("DATE", [doc[5:6].as_doc()])
    assert [(start, end) for _, start, end in phrases(doc)] == [(5, 6)]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_entity_ruler(nlp, before, overwrite):
    place = {"before": "bert_ner"} if before else {"last": True}
    ruler = nlp.add_pipe("entity_ruler", config={"overwrite_ents": overwrite}, **place)
    ruler.add_patterns([{"label": "TIME", "pattern": "on Tuesday"}])
    ruler.add_patterns([{"label": "VERB", "pattern": "left"}])
    wins = "on Tuesday" if before or overwrite else "Tuesday"
    for doc in [nlp(SAILED), *nlp.pipe([SAILED] * 2)]:
        found = ["Anna Grete", "left", "Skagen", wins]
        assert [ent.text for ent in doc.ents] == found
        assert [ent.label_ for ent in doc.ents][::3] == [
            "VESSEL",
            "DATE" if wins == "Tuesday" else "TIME",
        ]
        kept = ["Anna Grete", "Skagen", *([] if before else ["Tuesday"])]
        assert [span.text for span in doc.spans["ents"]] == kept


def test_span_ruler(nlp):
    config = {"spans_key": "ents", "annotate_ents": True, "overwrite": False}
    ruler = nlp.add_pipe("span_ruler", config=config)
    ruler.add_patterns([{"label": "VERB", "pattern": "left"}])
    doc = nlp(SAILED)
    texts = ["Anna Grete", "left", "Skagen", "Tuesday"]
    assert [ent.text for ent in doc.ents] == texts
    assert sorted(span.text for span in doc.spans["ents"]) == sorted(texts)
    assert sorted(ent.text for ent in nlp(doc).ents) == sorted(texts)  # and again


def test_merged_entities_between_two_heads(nlp):
    """The tokens change under way."""
    nlp.add_pipe("merge_entities", after="bert_ner")
    doc = nlp(make_docs(nlp)[0])
    assert [token.text for token in doc] == ["Anna Grete", "left", "Skagen", "on", "Tuesday"]
    assert [(e.text, e.label_) for e in doc.ents][0] == ("Anna Grete", "VESSEL")
    assert doc._.answers[0]["text"] == "Anna Grete" and doc._.answers[0]["end"] == 1
    assert doc.cats["voyage"] > 0.9


# --- streams


def test_error_handler(nlp, expected):
    """Every component of ours hands it the one Doc that fails."""
    failed = []
    nlp.set_error_handler(lambda name, pipe, docs, error: failed.append((name, docs[0].text)))
    bad = nlp.make_doc("It is bad")
    bad._.hypotheses = [3]
    docs = make_docs(nlp)
    found = list(nlp.pipe([*docs[:2], bad, *docs[2:]], batch_size=4))
    assert_same([annotations(doc) for doc in found], expected)
    assert failed == [("bert_nli", "It is bad")]


def test_batch_sizes_of_components(nlp, expected):
    sizes = {f"bert_{head}": {"batch_size": i + 1} for i, head in enumerate(HEADS)}
    assert_same(annotate(nlp, batch_size=5, component_cfg=sizes), expected)


def test_memory_zone(nlp, expected):
    """Docs of one zone are not taken for those of another, whose memory they have."""
    n_strings = len(nlp.vocab.strings)
    for i in range(3):
        with nlp.memory_zone():
            found = list(nlp.pipe(f"{text} zone{i}" for text, _, _ in STREAM))
            assert [len(doc.ents) > 0 for doc in found][:2] == [True, True]
            assert_same(annotate(nlp), expected)
            del found
        assert len(nlp.vocab.strings) == n_strings
    assert_same(annotate(nlp), expected)


def test_spawned_workers(nlp, expected, monkeypatch):
    """As on Windows and macOS: everything is pickled for them."""
    monkeypatch.setattr(spacy.language, "mp", multiprocessing.get_context("spawn"))
    stream = [
        (text, {"questions": questions, "hypotheses": hypotheses, "id": i})
        for i, (text, questions, hypotheses) in enumerate(STREAM)
    ]
    found = list(nlp.pipe(stream, as_tuples=True, n_process=2, batch_size=2))
    assert [context["id"] for _, context in found] == list(range(len(STREAM)))
    assert_same([annotations(doc) for doc, _ in found], expected)


# --- languages


# Entities in brackets.
TEXTS = {
    "de": ["[Jürgen Müßig|PER] fährt am Sonntag nach [Köln|LOC]!",
           "Der Kapitän läuft aus [Großenkneten|LOC] aus, sagt [Zoë Öztürk|PER]."],
    "zh": ["[王小明|PER]昨天在[上海|LOC]看船。", "船在[宁波港|LOC]外搁浅了,[李四|PER]说。"],
    "ar": ["سافر [أحمد بن علي|PER] إلى [القاهرة|LOC] أمس", "وصلت [لَيْلى|PER] من [بيروت|LOC] ليلا"],
    "hi": ["[राम कुमार|PER] [दिल्ली|LOC] में रहते हैं", "कल [मुंबई|LOC] से [सीता देवी|PER] आईं"],
    "ja": ["[佐藤さん|PER]は[東京タワー|LOC]へ行った。", "[さくら|PER]と[がっこう|LOC]で会う"],
}  # fmt: skip


def read_marks(marked: str) -> tuple[str, dict]:
    text, entities = "", []
    for part in marked.replace("]", "[").split("["):
        name, _, label = part.partition("|")
        if label:
            entities.append((len(text), len(text) + len(name), label))
        text += name
    return text, {"entities": entities}


@pytest.fixture(scope="module")
def polyglot(tmp_path_factory):
    """Checkpoints whose vocabularies know the scripts above: of characters, and of pieces."""
    folder = tmp_path_factory.mktemp("polyglot")
    texts = []
    for lang, lines in TEXTS.items():
        for text, _ in map(read_marks, lines):
            if lang == "ja":  # no word is a piece, and characters may lose their accents
                text = " ".join([*text, *unicodedata.normalize("NFD", text)])
            texts.append(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "TEXTS", [*checkpoints.TEXTS, *texts])
        return {
            family: make_checkpoint(folder / family, family=family)
            for family in ("bert", "roberta")
        }


def by_characters(nlp):
    """A tokenizer that knows no words."""
    return lambda text: Doc(nlp.vocab, words=list(text), spaces=[False] * len(text))


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("lang", TEXTS)
def test_entities_to_the_character(polyglot, lang, family):
    nlp = spacy.blank("xx" if lang == "ja" else lang)  # Japanese needs another package
    if lang == "ja":
        nlp.tokenizer = by_characters(nlp)
    encoder = {"name": polyglot[family], "window": 64, "stride": 48}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    nlp.add_pipe("bert_ner")
    data = [read_marks(text) for text in TEXTS[lang]]
    examples = [Example.from_dict(nlp.make_doc(text), gold) for text, gold in data]
    torch.manual_seed(0)
    nlp.initialize(lambda: examples)
    optimizer = Adam(3e-3, use_averages=False)
    with pytest.warns(UserWarning, match="A learning rate"):
        for _ in range(30):
            nlp.update(examples, sgd=optimizer)
    for (text, gold), doc in zip(data, nlp.pipe([text for text, _ in data]), strict=True):
        assert doc.text == text
        assert [(e.start_char, e.end_char, e.label_) for e in doc.ents] == gold["entities"]


def test_heads_that_would_overwrite_each_other(checkpoint):
    def build(*heads: tuple[str, dict]):
        nlp = spacy.blank(LANG)
        settings = {"name": checkpoint, "window": 64, "stride": 48}
        nlp.add_pipe("bert_encoder", config={"model": settings})
        for number, (head, config) in enumerate(heads):
            nlp.add_pipe(f"bert_{head}", name=f"{head}{number}", config=config)
        nlp.initialize(lambda: make_examples(nlp))
        return nlp

    for head, place in {"nli": "nli", "qa": "answers"}.items():
        with pytest.raises(ValueError, match=rf"{head}0 and {head}1 both write doc\._\.{place}"):
            build((head, {}), (head, {}))
    categories = {"categories": {"voyage": "It left."}}
    with pytest.raises(ValueError, match="both write doc.cats\\['voyage'\\]"):
        build(("textcat", {}), ("nli", categories))
    nlp = build(("ner", {"spans_key": "found"}), ("qa", {"spans_key": "found"}), ("nli", {}))
    assert len(nlp.pipe_names) == 4
