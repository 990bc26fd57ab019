"""Files to convert, in each format, and what is compared of the result."""

import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import spacy
from spacy.tokens import Doc, DocBin

from spacy_bert_heads.data.annotations import make_doc
from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.files import File
from spacy_bert_heads.data.formats import READERS
from spacy_bert_heads.data.records import Options, Rejected, Settings
from spacy_bert_heads.data.report import ConversionReport
from spacy_bert_heads.pairs import make_answer, make_verdict

blank_once = functools.cache(spacy.blank)  # it takes longer than most tests
NLP = blank_once("en")


def load(path: Path) -> list[Doc]:
    return list(DocBin().from_disk(path).get_docs(NLP.vocab))


class Lines(File):
    """A file that is nowhere."""

    def __init__(self, lines: Iterable[str]) -> None:
        super().__init__(Path("a"))
        object.__setattr__(self, "_lines", list(lines))

    def lines(self) -> Iterator[str]:
        return iter(self._lines)


def read(format: str, lines: Iterable[str], **options: Any) -> list[Doc | Rejected]:
    """Read lines in a format, as it is found in a file."""
    records = READERS[format](Lines(lines), Options(**options))
    return [x if isinstance(x, Rejected) else make_doc(x, Settings(NLP)).doc for x in records]


def check_report(report: ConversionReport, **expected: Any) -> None:
    """Compare the figures of a report that are named."""
    assert {name: getattr(report, name) for name in expected} == expected


def run(
    tmp_path: Path, name: str, content: str | bytes, **options: Any
) -> tuple[list[Doc], ConversionReport]:
    """Convert one file and load the result."""
    source = tmp_path / name
    source.write_bytes(content.encode("utf8") if isinstance(content, str) else content)
    report = convert(source, tmp_path / "out.spacy", **options)
    docs = load(tmp_path / "out.spacy")
    assert report.docs == len(docs)
    assert report.read == report.kept + report.rejected
    assert report.rejected == sum(report.reasons.values())
    assert report.pairs["hypotheses"] == sum(len(doc._.hypotheses) for doc in docs)
    assert report.pairs["questions"] == sum(len(doc._.questions) for doc in docs)
    return docs, report


def seen(doc: Doc) -> tuple[str, Any, dict[str, float]]:
    """A Doc's text, its entities (None without annotation) and its categories."""
    ents = [(ent.text, ent.label_) for ent in doc.ents]
    return doc.text.strip(), ents if doc.has_annotation("ENT_IOB") else None, dict(doc.cats)


class Plain(NamedTuple):
    """A Doc as plain data. `ents` is None where entities are not annotated."""

    tokens: list[str]
    ents: list[tuple[int, int, str]] | None
    cats: dict[str, float]


def plain(doc: Doc) -> Plain:
    ents = [(ent.start, ent.end, ent.label_) for ent in doc.ents]
    annotated = doc.has_annotation("ENT_IOB", require_complete=True)
    assert annotated or not doc.has_annotation("ENT_IOB")
    tokens = [token.text_with_ws for token in doc]
    if doc.has_unknown_spaces:  # then spaCy sets one behind each token, the last included
        assert all(token.endswith(" ") for token in tokens)
        tokens[-1] = tokens[-1][:-1]
    return Plain(tokens, ents if annotated else None, doc.cats)


def load_plain(path: Path) -> list[Plain]:
    return [plain(doc) for doc in load(path)]


def run_plain(
    tmp_path: Path, name: str, content: str | bytes, **options: Any
) -> tuple[list[Plain], ConversionReport]:
    """Convert one file and load the result as plain data."""
    docs, report = run(tmp_path, name, content, **options)
    return [plain(doc) for doc in docs], report


def samples(report: ConversionReport) -> list[str]:
    """The samples without their folder."""
    return [sample.rpartition("/")[2] for sample in report.samples]


def jsonl(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def judged(doc: Doc) -> tuple[str, list[tuple[str, str | None]]]:
    """A text, its hypotheses and their labels."""
    assert all(x is None or x == make_verdict(x["label"]) for x in doc._.nli)
    labels = [verdict and verdict["label"] for verdict in doc._.nli]
    return doc.text, list(zip(doc._.hypotheses, labels, strict=True))


def answered(doc: Doc) -> list[tuple[str, list[tuple[int, str]] | None]]:
    """Questions with the places and texts of their answers, the primary first."""
    found = []
    for question, answer in zip(doc._.questions, doc._.answers, strict=True):
        if answer is not None:
            answers = [answer, *answer["alternatives"]]
            for one in answers:
                others = answer["alternatives"] if one is answer else []
                place = one["start_char"], one["end_char"]
                assert one == make_answer(doc, *place, alternatives=others)
                assert one["text"] == doc.text[slice(*place)]
            answer = [(x["start_char"], x["text"]) for x in answers if x["text"]]
            assert answer or len(answers) == 1
        found.append((question, answer))
    return found


# CoNLL

CONLL = "EU\tB-ORG\nrejects\tO\nGerman\tB-MISC\n\nPeter\tB-PER\nBlackburn\tI-PER\n"
CONLL_DOCS = [
    Plain(["EU ", "rejects ", "German"], [(0, 1, "ORG"), (2, 3, "MISC")], {}),
    Plain(["Peter ", "Blackburn"], [(0, 2, "PER")], {}),
]


# Natural language inference

PAIRS = [
    ("A man eats.", "A man is hungry.", "neutral"),
    ("A man eats.", "A man has food.", "entailment"),
    ("A dog runs.", "A dog sleeps.", "contradiction"),
    ("A man eats.", "Nobody eats.", "contradiction"),
]


def table(pairs, header, *, delimiter="\t") -> str:
    """Write pairs behind a column of numbers."""
    rows = [(str(i), *pair) for i, pair in enumerate(pairs)]
    return "".join(delimiter.join(row) + "\n" for row in [("index", *header), *rows])


TSV = table(PAIRS, ("sentence1", "sentence2", "label"))


# SQuAD

TEXT = "Ada lives in Paris. Ada likes Paris, and the sea."
FIRST_ADA, SECOND_ADA = 0, 20


def qa(name: str, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    entries = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": name, "question": f"{name}?", "answers": entries, **more}


def squad(*paragraphs: Any, indent: int | None = None) -> str:
    paragraphs = [
        {"context": TEXT, "qas": paragraph} if isinstance(paragraph, list) else paragraph
        for paragraph in paragraphs
    ]
    data = [{"title": "a", "paragraphs": paragraphs}]
    return json.dumps({"version": "v2.0", "data": data}, indent=indent)


QUESTIONS = [
    qa("one", ("Paris", 30)),
    qa("several", ("Ada", SECOND_ADA), ("Paris.", 13), ("Ada", SECOND_ADA), is_impossible=False),
    qa("none", is_impossible=True, plausible_answers=[{"text": "Ada", "answer_start": 0}]),
    qa("empty"),
    {"id": "test", "question": "test?"},
]
