"""Check the training data of a config, as `spacy debug data` does, for the heads of this package.

The data is read exactly as in training, with the pipeline's tokenizers. The checks find faults that
training would report late or never."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spacy.language import Language
from spacy.schemas import ConfigSchemaTraining
from spacy.tokens import DocBin
from spacy.training import Corpus, Example
from spacy.training.corpus import walk_corpus
from spacy.util import load_model_from_config, registry, resolve_dot_names
from thinc.api import Model

from .checks.findings import Finding, Reading, Split
from .checks.heads import (
    FEW,
    check_labels,
    count_labels,
    is_annotated,
)
from .checks.pairs import (
    check_config_texts,
    entries_of,
)
from .checks.texts import MAX_UNKNOWN, check_empty, check_overlap, check_unknown, measure_wordpieces
from .data.reader import DAMAGE, BertCorpus, check_exists, damaged
from .encoder.component import BertEncoder
from .encoder.listener import BertListener
from .encoder.loading import load_wordpiece_tokenizer
from .encoder.model import check_room, checkpoint_of, shim_of
from .heads.free_text import parse_labels
from .heads.head import BertHead
from .heads.pair_head import BertPairHead
from .heads.textcat import BertTextCat
from .heads.unlabelled import UnlabelledHead
from .init_config import read_config
from .training.loop import check_settings


@dataclass
class Section:
    """Hold the results for the texts, an encoder or a head."""

    title: str
    facts: dict[str, Any]  # plain data
    passed: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, findings: Iterable[Finding], passed: str) -> None:
        """Add the findings of a check, or the name of the passed check if there are none."""
        findings = list(findings)
        self.findings += findings
        if not findings:
            self.passed.append(passed)


@dataclass
class Report:
    """Hold all sections; the level of a finding is "error" or "warning"."""

    sections: list[Section]

    def count(self, level: str) -> int:
        """Count the findings of a level."""
        return sum(one.level == level for section in self.sections for one in section.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {"errors": self.count("error"), "warnings": self.count("warning"), **asdict(self)}


def debug_data(config_path: Path, overrides: dict[str, Any] | None = None) -> Report:
    """Check the data of a config without training. Only the tokenizers of new encoders are loaded.

    `overrides` are those of `spacy train`, such as {"paths.train": "train.spacy"}. Raises
    ValueError or OSError if the config, a checkpoint or the data can't be read.
    """
    config = read_config(config_path, overrides)
    check_settings(config)
    nlp = load_model_from_config(config, auto_fill=True)
    interpolated = nlp.config.interpolate()
    given = registry.resolve(interpolated["initialize"]["components"])
    for name, component in nlp.components:
        if isinstance(component, BertTextCat) and not component.labels:
            for label in parse_labels(nlp, name, given.get(name, {}).get("labels")) or ():
                component.add_label(label)
    training = registry.resolve(interpolated["training"], schema=ConfigSchemaTraining)
    names = [training["train_corpus"], training["dev_corpus"]]
    corpora = resolve_dot_names(interpolated, names)
    empty = [count_empty(corpus) for corpus in corpora]
    splits = [
        Split(name, read(nlp, corpus))
        for name, corpus in zip(("train", "dev"), corpora, strict=True)
    ]
    readings: dict[str, Reading] = {}
    sections = [look_at_texts(splits, empty)]
    for name, component in nlp.components:
        if isinstance(component, BertEncoder):
            sections.append(look_at_encoder(name, read_by(component.model, readings), splits))
    for name, component in nlp.components:
        if isinstance(component, BertHead):
            model = encoder_of_head(component)
            reading = None if model is None else read_by(model, readings)
            frozen = name in training["frozen_components"]
            sections.append(look_at_head(component, reading, splits, frozen=frozen))
    return Report(sections)


# --- reading


def read(nlp: Language, corpus: Callable[[Language], Iterable[Example]]) -> list[Example]:
    """Read each Doc of a corpus once; `max_pairs` of our reader would repeat it."""
    if isinstance(corpus, BertCorpus):
        corpus = copy(corpus)
        corpus.max_pairs = 0
    return list(corpus(nlp))


def count_empty(corpus: Any) -> int:
    """Count the Docs without tokens, which a spaCy corpus skips; 0 for other corpora. Raises
    ValueError if a file is missing or damaged."""
    if not isinstance(corpus, Corpus):
        return 0
    check_exists(corpus.path)
    count = 0
    for file in walk_corpus(corpus.path, ".spacy"):
        try:
            count += sum(not len(tokens) for tokens in DocBin().from_disk(file).tokens)
        except DAMAGE as error:
            raise damaged(file, error) from error
    return count


def encoder_of_head(head: BertHead) -> Model | None:
    """Return the model of the encoder that a head listens to or contains; None for layers of other
    packages. Raises ValueError if the encoder is not in the pipeline."""
    for node in head.model.walk():
        if isinstance(node, BertListener):
            return node.encoder_for().model
        if node.name == "bert_encoder":
            return node
    return None


def read_by(model: Model, readings: dict[str, Reading]) -> Reading:
    """Return the tokenizer and the windows of an encoder. For an encoder without weights, only the
    tokenizer is loaded, and cached in `readings`."""
    window, stride = model.attrs["window"], model.attrs["stride"]
    if shim_of(model).has_module:
        tokenizer = checkpoint_of(model).tokenizer
    else:
        key = f"{model.attrs['name']} {model.attrs['revision']}"
        if key not in readings:
            loaded = load_wordpiece_tokenizer(model.attrs["name"], model.attrs["revision"])
            readings[key] = Reading(loaded, window, stride)
        tokenizer = readings[key].tokenizer
    check_room(model, tokenizer.num_special)
    return Reading(tokenizer, window, stride)


# --- sections


def look_at_texts(splits: Sequence[Split], num_empty: Sequence[int]) -> Section:
    """Check the Docs and their texts; `num_empty` has the number of empty Docs in each corpus."""
    facts = {
        split.name: {
            "docs": len(split.examples),
            "tokens": sum(len(example.predicted) for example in split.examples),
            "empty": empty,
        }
        for split, empty in zip(splits, num_empty, strict=True)
    }
    section = Section("Texts", facts)
    section.add((f for s in splits for f in check_no_docs(s)), "train and dev have Docs")
    rows = zip(splits, num_empty, strict=True)
    section.add((f for s, n in rows for f in check_empty(s, n)), "no Doc is empty")
    section.add(check_overlap(*splits), "no text is in train and in dev")
    return section


def check_no_docs(split: Split) -> list[Finding]:
    """Check whether a corpus has no Docs."""
    if split.examples:
        return []
    message, fix = "no Docs", f"Set the data with --paths.{split.name}"
    return [Finding("no_docs", "error", split.name, 0, message, fix)]


def look_at_encoder(name: str, reading: Reading, splits: Sequence[Split]) -> Section:
    """Check how an encoder reads the texts."""
    measured = {split.name: measure_wordpieces(split, reading) for split in splits}
    section = Section(name, {**measured, "window": reading.window, "stride": reading.stride})
    section.add(
        (f for split in splits for f in check_unknown(split, measured[split.name])),
        f"at most {MAX_UNKNOWN:.0%} of the wordpieces are unknown",
    )
    return section


def look_at_head(
    head: BertHead, reading: Reading | None, splits: Sequence[Split], *, frozen: bool = False
) -> Section:
    """Check the annotations for a head. A frozen head is not trained, so it is not checked."""
    facts: dict[str, Any] = {"frozen": frozen}
    for split in splits:
        facts[split.name] = {
            "docs": len(split.examples),
            "annotated": sum(is_annotated(head, example) for example in split.examples),
        }
        if isinstance(head, BertPairHead):
            pairs = sum(1 for eg in split.examples for _ in entries_of(head, eg))
            facts[split.name]["pairs"] = pairs
        if not isinstance(head, UnlabelledHead):
            facts[split.name]["labels"] = dict(count_labels(head, split).most_common())
    section = Section(head.name, facts)
    if frozen:
        return section
    for check, passed in head.data_checks():
        section.add((f for split in splits for f in check(head, split, reading)), passed)
    if isinstance(head, BertPairHead) and (head.texts or head.extra):
        section.add(check_config_texts(head, reading), "the config's texts fit into a window")
    if not isinstance(head, UnlabelledHead):
        passed = f"train and dev have the same labels, with {FEW} examples or more of each in train"
        section.add(check_labels(head, *splits), passed)
    return section
