"""Data with and without faults, and the config of a pipeline that is going to learn from it."""

from pathlib import Path
from typing import Any

import spacy
from spacy.tokens import Doc, DocBin

from spacy_bert_heads.debug_data import Report, debug_data
from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.pairs import make_answer, make_verdict

NLP = spacy.blank("xx")
WINDOW, STRIDE = 64, 48


def word(number: int) -> str:
    """A number in letters, because the vocabulary lacks most digits."""
    return f"{number:b}".replace("0", "a").replace("1", "b")


def make_doc(number: int, ending: str = "") -> Doc:
    """An annotated Doc without a fault. Every second one has the other label of each kind."""
    text = f"Anna left Skagen on Tuesday {word(number)}{ending}"
    doc = NLP.make_doc(text)
    label = ("VESSEL", "PLACE")[number % 2]
    doc.ents = [doc.char_span(0, 4, label=label)]
    doc.cats = {"voyage": float(number % 2), "fire": float(1 - number % 2)}
    doc._.hypotheses = ["It left"]
    doc._.nli = [make_verdict(("entailment", "neutral")[number % 2])]
    doc._.questions = ["Who left?", "Why?"]
    doc._.answers = [make_answer(doc, 0, 4), make_answer(doc)]
    return doc


def make_splits() -> tuple[list[Doc], list[Doc]]:
    """20 Docs to train on, and 4 to evaluate on, without a fault."""
    return [make_doc(i) for i in range(20)], [make_doc(i, " again") for i in range(4)]


def save(path: Path, docs: list[Doc]) -> Path:
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


def write_config(
    folder: Path,
    checkpoint: str,
    heads: str,
    train: list[Doc],
    dev: list[Doc],
    settings: dict[str, Any] | None = None,
) -> Path:
    """Save data and config; `settings` are more of the config, by dotted names."""
    config = init_config(heads.split(","), name=checkpoint, lang="xx")
    # Not named above, where data with nothing for a head is an error.
    for part, docs in (("train", train), ("dev", dev)):
        config["paths"][part] = str(save(folder / f"{part}.spacy", docs))
    encoder = config["components"]["bert_encoder"]["model"]
    encoder |= {"window": WINDOW, "stride": STRIDE}
    for name, value in (settings or {}).items():
        *sections, key = name.split(".")
        section = config
        for one in sections:
            section = section[one]
        section[key] = value
    config.to_disk(folder / "config.cfg")
    return folder / "config.cfg"


def check(folder: Path, checkpoint: str, heads: str, train, dev, settings=None) -> Report:
    return debug_data(write_config(folder, checkpoint, heads, train, dev, settings))


def findings_of(report: Report) -> dict[tuple[str, str, str], int]:
    """How many of each kind, level and corpus, in whatever section."""
    found: dict[tuple[str, str, str], int] = {}
    for section in report.sections:
        for finding in section.findings:
            key = (finding.check, finding.level, finding.where)
            assert key not in found and finding.fix and finding.message
            found[key] = finding.count
    return found
