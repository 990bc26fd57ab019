"""Similarities, choices, numbers and tags as plain data: rows of `bert annotate`, answers of `bert
serve`."""

import json

import pytest
import spacy
from all_kinds import CHOICES, OTHERS, TEXT, build
from annotation import read, run, write_jsonl
from devtools import CTRL, open_browser
from served import serve
from spacy.tokens import DocBin
from spacy.vocab import Vocab
from test_serving_page import DONE, FAINT, WIDE

from spacy_bert_heads.annotate.records import Columns
from spacy_bert_heads.pairs import make_choice
from spacy_bert_heads.serving.app import make_app
from spacy_bert_heads.text.user_data import set_value

ASKED = {"others": OTHERS, "choices": CHOICES}
KINDS = ["similarities", "chosen", "numbers", "tags"]


@pytest.fixture(scope="module")
def pipeline(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds") / "pipeline"
    build(checkpoint).to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def nlp(pipeline):
    return spacy.load(pipeline)


def by_itself(nlp, text=TEXT, others=OTHERS, choices=CHOICES) -> dict:
    """What the pipeline writes to a Doc."""
    doc = nlp.make_doc(text)
    doc._.others, doc._.choices = list(others), [dict(choice) for choice in choices]
    doc = nlp(doc)
    return {
        "similarities": list(doc._.similarities),
        "chosen": list(doc._.chosen),
        "numbers": dict(doc._.regression),
        "tags": [token.tag_ for token in doc],
    }


def check(record: dict, expected: dict) -> None:
    """A record says what the Doc does."""
    assert [one["other"] for one in record["similarities"]] == OTHERS
    for one, numbers in zip(record["similarities"], expected["similarities"], strict=True):
        assert one["scores"] == pytest.approx(numbers, abs=1e-5) and one["scores"].keys()
    assert len(record["chosen"]) == len(CHOICES)
    for one, choice, entry in zip(record["chosen"], CHOICES, expected["chosen"], strict=True):
        assert (one["question"], one["options"]) == (choice["question"], choice["options"])
        assert one["answer"] == entry["answer"]
        assert one["text"] == choice["options"][entry["answer"]]
        assert one["scores"] == pytest.approx(entry["scores"], abs=1e-5)
        assert one["score"] == one["scores"][one["answer"]] == max(one["scores"])
    assert record["numbers"] == pytest.approx(expected["numbers"], abs=1e-5)
    assert [one["tag"] for one in record["tags"]] == expected["tags"]
    assert [TEXT[one["start"] : one["end"]] for one in record["tags"]] == TEXT.split()


def test_a_doc_as_plain_data(nlp):
    columns = Columns.of(nlp)
    assert list(columns.labels) == KINDS
    assert columns.labels["similarities"] == ("score",) and columns.labels["numbers"] == ("rating",)
    doc = nlp.make_doc(TEXT)
    set_value("others", doc, ["near", "far"])
    set_value("similarities", doc, [{"score": 1.23456789}, None])
    set_value("choices", doc, [{"question": "Who?", "options": ["a", "b"]}, CHOICES[1]])
    set_value("chosen", doc, [make_choice(1, [0.25, 0.75]), None])
    set_value("regression", doc, {"rating": 2.00000049})
    record = columns.read(doc)
    assert record["similarities"] == [
        {"other": "near", "scores": {"score": 1.234568}},
        {"other": "far", "scores": None},
    ]
    nothing = dict.fromkeys(("answer", "text", "score", "scores"))
    assert record["chosen"] == [
        {
            "question": "Who?",
            "options": ["a", "b"],
            "answer": 1,
            "text": "b",
            "score": 0.75,
            "scores": [0.25, 0.75],
        },
        {**CHOICES[1], **nothing},
    ]
    assert record["numbers"] == {"rating": 2.0}
    assert json.loads(json.dumps(record)) == record


ROWS = [
    {"text": TEXT, "others": OTHERS, "choices": CHOICES},
    {"text": TEXT},
    {"text": TEXT, "others": [{"text": OTHERS[0]}, {"other": OTHERS[1]}], "choices": CHOICES},
    {"text": TEXT, "choices": [{"options": ["one alone"]}]},
    {"text": TEXT, "choices": ["Anna", "Hull"]},
]


@pytest.mark.parametrize("format", ["jsonl", "parquet", "spacy"])
def test_rows_ask_and_are_answered(pipeline, nlp, tmp_path, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    summary = run(
        pipeline, write_jsonl(tmp_path / "in.jsonl", ROWS), tmp_path / "out",
        format=format, docs_per_part=10,
    )  # fmt: skip
    assert summary.failures == {"wrong choices": 2}
    expected = by_itself(nlp)
    if format == "spacy":
        (path,) = (tmp_path / "out").glob("part-*")
        docs = list(DocBin().from_bytes(path.read_bytes()).get_docs(Vocab()))
        assert [one["answer"] for one in docs[0]._.chosen] == [
            one["answer"] for one in expected["chosen"]
        ]
        assert docs[2]._.others == OTHERS and len(docs[2]._.similarities) == 2
        return
    if format == "parquet":
        from pyarrow.parquet import read_table

        rows = read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()
    else:
        rows = read(tmp_path / "out")
        assert rows[0]["others"] == OTHERS and rows[0]["choices"] == CHOICES  # are carried along
    for row in (rows[0], rows[2]):
        check(row, expected)
    assert rows[1]["similarities"] == rows[1]["chosen"] == [] and rows[1]["error"] is None
    assert "at least two options" in rows[3]["error"] and "must be a dict" in rows[4]["error"]
    assert rows[3]["tags"] is None


def test_a_server_is_asked(pipeline, nlp):
    with serve(make_app(spacy.load(pipeline), name="kinds")) as (client, _):
        (found,) = client.annotate(TEXT, **ASKED)
        check(found, by_itself(nlp))
        (bare,) = client.annotate(TEXT)
        assert bare["similarities"] == bare["chosen"] == []
        status, body = client.post("/annotate", {"texts": TEXT, "choices": [{"options": ["a"]}]})
        assert status == 422 and "choices.0.options" in body["error"]
        status, body = client.post("/annotate", {"texts": TEXT, "questions": ["Who?"]})
        assert status == 422 and "no bert_qa" in body["error"]
        _, api = client.get("/openapi.json")
        assert {"Similarity", "Chosen"} <= api["components"]["schemas"].keys()
        many = [{"options": ["a", "b"]}] * 129
        status, body = client.post("/annotate", {"texts": TEXT, "choices": many})
        assert status == 413 and "258 pairs" in body["error"]


def test_a_server_without_these_heads_says_so(joint):
    with serve(make_app(spacy.load(joint), name="joint")) as (client, _):
        for name, head in (("others", "bert_similarity"), ("choices", "bert_choice")):
            status, body = client.post("/annotate", {"texts": TEXT, name: ASKED[name]})
            assert status == 422 and f"has no {head}. Leave out {name}." in body["error"]


def test_texts_of_the_config_are_compared(checkpoint):
    nlp = build(checkpoint)
    nlp.get_pipe("bert_similarity").texts = list(OTHERS)
    with serve(make_app(nlp, name="kinds")) as (client, _):
        (found,) = client.annotate(TEXT)
    assert [one["other"] for one in found["similarities"]] == OTHERS


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_asks_and_shows(pipeline, tmp_path, width):
    with (
        serve(make_app(spacy.load(pipeline), name="kinds")) as (client, _),
        open_browser(tmp_path) as page,
    ):
        page.open(client.url + "/")
        page.resize(width)
        page.click("#text")
        page.type(TEXT)
        page.press("Enter", CTRL)
        page.wait("!document.getElementById('results').hidden && " + DONE)
        for kind, texts in {"others": OTHERS[:1], "options": ["Anna", "y" * 25]}.items():
            for text in texts:
                page.click(f"#{kind} input")
                page.type(text)
                page.press("Enter")
                page.wait(DONE)
        page.wait("document.querySelectorAll('.bars dt').length === 2")
        titles = page.run("[...document.querySelectorAll('.card h2')].map(one => one.textContent)")
        assert titles == ["Choices", "Similarities", "Numbers"]
        (found,) = client.annotate(
            TEXT, others=OTHERS[:1], choices=[{"options": ["Anna", "y" * 25]}]
        )
        best = page.run("document.querySelector('.is-best').textContent")
        assert best == found["chosen"][0]["text"]
        cells = page.run("[...document.querySelectorAll('.card td')].map(one => one.textContent)")
        assert cells[0] == str(found["similarities"][0]["scores"]["score"])
        assert page.run(WIDE) == [] and page.run(FAINT) == [] and page.console == []
