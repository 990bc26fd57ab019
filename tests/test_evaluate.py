"""Scores of a pipeline: those of spaCy, and those of pairs."""

import json
from time import sleep

import pytest
import spacy
import torch
from conftest import TRAIN_DATA, make_examples, needs_int8
from spacy.language import Language
from spacy.tokens import DocBin
from spacy.training import Example
from typer.testing import CliRunner

from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.reader import BertCorpus
from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.evaluate import evaluate, format_report, read_examples, set_precision
from spacy_bert_heads.pairs import copy_inputs, make_answer, make_verdict

SPEEDS = ("docs", "pairs", "seconds", "speed", "pairs_speed")


def run(*args):
    return CliRunner().invoke(bert_app, ["evaluate", *(str(arg) for arg in args)])


def save(path, docs):
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


def make_pair_docs(vocab_of: Language):
    """Two Docs with four pairs, one of them not annotated."""
    first, second = (vocab_of.make_doc(text) for text, _ in TRAIN_DATA)
    first._.hypotheses = ["She sailed.", "She burned.", "Nobody saw her."]
    first._.nli = [make_verdict("entailment"), make_verdict("contradiction"), None]
    second._.questions = ["Where did it burn?", "Who saw it?"]
    second._.answers = [make_answer(second, 19, 23), make_answer(second)]
    return [first, second]


@pytest.fixture
def rules(tmp_path):
    """A pipeline whose scores can be counted by hand."""
    nlp = spacy.blank("en")
    patterns = [
        {"label": "PLACE", "pattern": "Skagen"},
        {"label": "PLACE", "pattern": "Tuesday"},
        {"label": "VESSEL", "pattern": "Anna Grete"},
    ]
    nlp.add_pipe("entity_ruler").add_patterns(patterns)
    nlp.to_disk(tmp_path / "rules")
    return tmp_path / "rules"


@pytest.fixture
def gold(tmp_path):
    """The two Docs of TRAIN_DATA."""
    nlp = spacy.blank("en")
    return save(tmp_path / "gold.spacy", [eg.reference for eg in make_examples(nlp)])


@pytest.fixture
def pair_nlp(make_nlp):
    """A pipeline of both pair heads, as initialization left it."""
    nlp = make_nlp("nli", "qa", initialize=False)
    torch.manual_seed(0)
    docs = make_pair_docs(nlp)
    nlp.initialize(lambda: [Example(nlp.make_doc(doc.text), doc) for doc in docs])
    return nlp


def test_scores_by_hand(rules, gold):
    report = evaluate(str(rules), gold)
    # Right: Anna Grete, Skagen. Wrong: Tuesday as a place. Missed: Tuesday as a date, Hull.
    assert (report["ents_p"], report["ents_r"]) == pytest.approx((2 / 3, 2 / 4))
    assert report["ents_per_type"]["VESSEL"] == pytest.approx({"p": 1, "r": 1, "f": 1})
    assert report["docs"] == 2 and report["pairs"] == 0 and report["pairs_speed"] is None
    # spaCy counts nothing else: no component predicts tags or categories.
    assert not [key for key in report if key.startswith(("cats", "tag_", "nli", "qa"))]


def test_what_convert_reads_is_scored(rules, tmp_path):
    spans = [[0, 10, "VESSEL"], [16, 22, "PLACE"], [26, 30, "PLACE"]]
    (tmp_path / "a.json").write_text(
        json.dumps([["Anna Grete left Skagen or Hull.", {"entities": spans}], ["", {}]])
    )
    with pytest.warns(UserWarning, match="1 of 2 records in .* are not scored: no text"):
        report = evaluate(str(rules), tmp_path / "a.json")
    assert (report["ents_p"], report["ents_r"], report["docs"]) == (1.0, pytest.approx(2 / 3), 1)


def test_docs_without_tokens_are_counted(rules, tmp_path):
    nlp = spacy.blank("en")
    docs = [nlp.make_doc(text) for text in ("", "Anna Grete left.", "")]
    docs[1].ents = [docs[1].char_span(0, 10, label="VESSEL")]
    path = save(tmp_path / "a.spacy", docs)
    with pytest.warns(UserWarning, match=r"2 Docs of '.*a\.spacy' have no tokens and are not"):
        report = evaluate(str(rules), path)
    assert (report["docs"], report["ents_f"]) == (1, 1.0)


def test_scores_are_those_of_spacy(make_nlp, gold, tmp_path):
    nlp = make_nlp("ner", "tagger", "textcat")
    nlp.to_disk(tmp_path / "nlp")
    expected = nlp.evaluate(make_examples(nlp))
    del expected["speed"]
    report = evaluate(str(tmp_path / "nlp"), gold)
    for key in SPEEDS:
        del report[key]
    assert report == {key: value for key, value in expected.items() if value is not None}
    assert report["tag_acc"] > 0 and "cats_score" in report


def test_what_is_not_annotated_is_not_scored(make_nlp, tmp_path):
    nlp = make_nlp("ner", "textcat")
    nlp.to_disk(tmp_path / "nlp")
    (example, _) = make_examples(nlp)
    example.reference.cats = {}
    report = evaluate(str(tmp_path / "nlp"), save(tmp_path / "a.spacy", [example.reference]))
    assert "ents_f" in report
    assert not [key for key in report if key.startswith("cats")]


def test_pairs(pair_nlp, tmp_path):
    pair_nlp.to_disk(tmp_path / "nlp")
    docs = make_pair_docs(pair_nlp)
    report = evaluate(str(tmp_path / "nlp"), save(tmp_path / "a.spacy", docs))
    predicted = []
    for doc in docs:
        predicted.append(pair_nlp.make_doc(doc.text))
        copy_inputs(doc, predicted[-1])
    first, second = pair_nlp.pipe(predicted)
    right = [
        entry["label"] == guess["label"]
        for entry, guess in zip(docs[0]._.nli[:2], first._.nli, strict=False)
    ]
    assert report["nli_acc"] == sum(right) / 2
    exact = [
        entry["text"] == guess["text"]
        for entry, guess in zip(docs[1]._.answers, second._.answers, strict=True)
    ]
    assert report["qa_exact"] == sum(exact) / 2
    assert {kind: row["count"] for kind, row in report["qa_per_type"].items()} == {
        "answer": 1,
        "no answer": 1,
    }
    assert (report["docs"], report["pairs"]) == (2, 5)
    assert report["pairs_speed"] == pytest.approx(5 / report["seconds"])


def test_speed_is_that_of_the_pipeline_alone(rules, gold, monkeypatch):
    @Language.component("sleep_a_while")
    def sleep_a_while(doc):
        sleep(0.1)
        return doc

    nlp = spacy.load(rules)
    nlp.add_pipe("sleep_a_while")
    nlp.to_disk(rules)
    read = BertCorpus.read_docbin
    monkeypatch.setattr(BertCorpus, "read_docbin", lambda *args: sleep(2) or read(*args))
    report = evaluate(str(rules), gold)
    assert 0.2 <= report["seconds"] < 2
    assert report["speed"] == pytest.approx(11 / report["seconds"])


REPORT = {
    "token_acc": 1.0,
    "token_f": 1.0,
    "ents_f": 2 / 3,
    "ents_per_type": {"PLACE": {"p": 0.5, "r": 1.0, "f": 2 / 3}},
    "cats_score": 0.8,
    "cats_score_desc": "macro F",
    "cats_micro_f": 0.9,
    "cats_auc_per_type": {"fire": 0.75, "voyage": None},
    "qa_f1": 0.25,
    "qa_per_type": {"no answer": {"exact": 0.5, "f1": 0.25, "count": 1200}},
    "spans_sc_f": 0.125,
    "docs": 3,
    "pairs": 7,
    "seconds": 2.0,
    "speed": 12345.6,
    "pairs_speed": 3.5,
}


def test_tables():
    summary = [
        "tokens                 100.00",
        "entities F              66.67",
        "categories (macro F)    80.00",
        "QA F1                   25.00",
        "spans_sc_f              12.50",
        "words per second       12,346",
        "pairs per second          3.5",
    ]
    per_type = [
        "",
        "entities       P        R       F",
        "--------   -----   ------   -----",
        "PLACE      50.00   100.00   66.67",
        "",
        "categories, ROC AUC",
        "-------------------   -----",
        "fire                  75.00",
        "voyage                    –",
        "",
        "QA          exact      f1   count",
        "---------   -----   -----   -----",
        "no answer   50.00   25.00   1,200",
    ]
    for all_of_it, expected in [(False, summary), (True, summary + per_type)]:
        lines = format_report(REPORT, per_type=all_of_it).splitlines()
        assert [line.rstrip() for line in lines] == expected


def test_command(rules, gold, tmp_path):
    result = run(rules, gold, "--output", tmp_path / "new" / "scores.json", "--per-type")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["entities", "P", "66.67"] in lines
    assert ["VESSEL", "100.00", "100.00", "100.00"] in lines
    assert not [line for line in lines if line[:1] == ["pairs"]]
    scores = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert scores["ents_r"] == 0.5
    assert set(SPEEDS) <= scores.keys()


def test_code_is_imported_first(rules, gold, tmp_path):
    code = tmp_path / "code.py"
    code.write_text(
        "from spacy.language import Language\n"
        "@Language.component('from_a_file')\n"
        "def from_a_file(doc):\n"
        "    doc.ents = []\n"
        "    return doc\n"
    )
    config = (rules / "config.cfg").read_text()
    config = config.replace('["entity_ruler"]', '["entity_ruler","from_a_file"]')
    (rules / "config.cfg").write_text(
        config + '\n[components.from_a_file]\nfactory="from_a_file"\n'
    )
    result = run(rules, gold, "--code", code)
    assert result.exit_code == 0, result.output
    assert ["entities", "P", "0.00"] in [line.split() for line in result.output.splitlines()]


@pytest.mark.parametrize(
    "model, data, message",
    [
        ("nowhere", "gold.spacy", "There is no pipeline 'nowhere', neither"),
        (".", "gold.spacy", "There is no pipeline '.', neither"),
        ("rules", "nowhere.spacy", "There is no 'nowhere.spacy'. Create it with: python -m spacy"),
        ("rules", "damaged.spacy", "damaged.spacy is damaged or not a .spacy file"),
        ("rules", "empty.spacy", "There is no Doc with tokens in 'empty.spacy'."),
        ("rules", "bare.spacy", "Nothing to score: 'bare.spacy' has no annotation for what"),
    ],
)
def test_errors(rules, gold, tmp_path, monkeypatch, model, data, message):
    monkeypatch.chdir(tmp_path)
    nlp = spacy.blank("en")
    (tmp_path / "damaged.spacy").write_bytes(gold.read_bytes()[:200])
    save(tmp_path / "empty.spacy", [nlp.make_doc("")])
    save(tmp_path / "bare.spacy", [nlp.make_doc("Anna left.")])
    result = run(model, data)
    assert result.exit_code == 1
    assert f"Error: {message}" in result.output
    assert "Traceback" not in result.output and isinstance(result.exception, SystemExit)


def test_pairs_that_do_not_match_are_an_error(pair_nlp, tmp_path):
    pair_nlp.to_disk(tmp_path / "nlp")
    docs = make_pair_docs(pair_nlp)
    docs[0]._.nli = docs[0]._.nli[:2]
    result = run(tmp_path / "nlp", save(tmp_path / "a.spacy", docs))
    assert result.exit_code == 1
    assert "Error: doc._.nli has 2 entries for 3 hypotheses." in result.output
    assert isinstance(result.exception, SystemExit)


def test_another_languages_tokenizer_reads_the_data(tmp_path):
    """ "don't" is two tokens in English and one in German, where the entity is found whole."""
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "X", "pattern": [{"TEXT": "don't"}]}])
    nlp.to_disk(tmp_path / "rules")
    doc = spacy.blank("de").make_doc("We don't know")
    doc.ents = [doc.char_span(3, 8, label="X")]
    data = save(tmp_path / "gold.spacy", [doc])
    assert evaluate(str(tmp_path / "rules"), data)["ents_f"] == 0
    assert evaluate(str(tmp_path / "rules"), data, lang="de")["ents_f"] == 1
    result = run(tmp_path / "rules", data, "--lang", "qq")
    assert result.exit_code == 1
    assert "no tokenizer for 'qq'" in result.output


@needs_int8
def test_another_precision(make_nlp, rules, gold, tmp_path):
    nlp = make_nlp("ner", "textcat")
    nlp.replace_listeners("bert_encoder", "bert_textcat", ["model.tok2vec"])
    nlp.to_disk(tmp_path / "nlp")
    set_precision(nlp, "int8")
    encoders = [n for _, pipe in nlp.components for n in pipe.model.walk() if n.shims]
    found = [shim_of(n).precision for n in encoders if n.name == "bert_encoder"]
    assert found == ["int8", "int8"]
    result = run(tmp_path / "nlp", gold, "--precision", "int8", "--output", tmp_path / "scores")
    assert result.exit_code == 0, result.output
    expected = nlp.evaluate(list(BertCorpus(gold)(nlp)))
    scores = json.loads((tmp_path / "scores").read_text())
    assert scores["cats_score"] == pytest.approx(expected["cats_score"])
    for model, precision, message in (
        (rules, "int8", "no BERT encoder to predict in int8 (entity_ruler)"),
        (tmp_path / "nlp", "int4", "Unknown precision 'int4'"),
    ):
        result = run(model, gold, "--precision", precision)
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())


def test_answers_in_another_language(joint, data, tmp_path):
    """Trained on one language, scored on others: windows, answers and scores of real questions."""
    wide = {"window": 128, "stride": 96}  # for questions of many small pieces
    config = {"components": {"bert_encoder": {"model": wide}}}
    spacy.load(joint, config=config).to_disk(tmp_path / "pipeline")
    for lang in ("de", "zh"):
        convert(data / "qa_xquad" / f"xquad.{lang}.json", tmp_path / f"{lang}.spacy", lang=lang)
        found = DocBin().from_disk(tmp_path / f"{lang}.spacy")
        doc = next(found.get_docs(spacy.blank(lang).vocab))
        doc._.answers, doc._.questions = doc._.answers[:3], doc._.questions[:3]
        few = save(tmp_path / f"{lang}-few.spacy", [doc])
        report = evaluate(str(tmp_path / "pipeline"), few, lang=lang)
        assert report["pairs"] == 3
        assert 0 <= report["qa_exact"] <= report["qa_f1"] <= 1


def test_categories_that_a_file_lacks_are_wrong_there(tmp_path):
    """A list has all categories of a text; the others that the pipeline knows are false."""
    nlp = spacy.blank("en")
    head = nlp.add_pipe("bert_textcat_multilabel", config={"threshold": 0.0})
    for label in "abc":
        head.add_label(label)
    examples = [{"text": "one", "labels": ["a"]}, {"text": "two", "labels": ["b"]}]
    (tmp_path / "gold.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in examples))
    found = read_examples(nlp, tmp_path / "gold.jsonl")
    assert [eg.reference.cats for eg in found] == [
        {"a": 1.0, "b": 0.0, "c": 0.0},
        {"a": 0.0, "b": 1.0, "c": 0.0},
    ]
