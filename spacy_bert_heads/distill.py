"""Distillation: train a smaller pipeline on the predictions of a larger one for unlabelled
texts."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Config, require_gpu
from torch import nn

from .annotate.source import Document, list_source, read_documents
from .annotate.worker import set_asked
from .encoder.component import BertEncoder
from .encoder.model import checkpoint_of, shim_of
from .evaluate import load_pipeline
from .heads.find import head_classes, register_extensions
from .heads.free_text import as_setting
from .heads.head import BertHead
from .runs.processes import Processes
from .training.loop import train


def distill(
    teacher: str | Path,
    config: Config,
    output: Path,
    *,
    keep_layers: Sequence[int] = (),
    resume: bool = False,
    force: bool = False,
    gpu_id: int = -1,
) -> Language:
    """Train a student on the predictions of a teacher, a saved pipeline, and return it.

    `config` is a training config whose heads have the same names and factories as heads of the
    teacher. `paths.train` can be any texts that `annotate` reads, with inputs for heads that read
    pairs; annotation in them is ignored. `paths.dev` must be annotated, for the scores.

    Each head learns the teacher's probabilities, or its logits if it has no softmax (Hinton et al.
    2015, section 2), and starts with the teacher's weights if the shapes are equal. If both
    encoders have the same tokenizer, windows and hidden size, the student also learns the hidden
    states (Jiao et al. 2020, section 3.1). `keep_layers` are the layers of the checkpoint with
    which the student starts, counted from 0, the lowest (Sanh et al. 2019, section 3); empty for
    all.

    The student takes over the teacher's calibration where its config has none: temperatures and
    thresholds.

    Raises ValueError if the two pipelines don't match, and the exceptions of `train`.
    """
    if gpu_id >= 0:
        require_gpu(Processes(gpu_id).gpu_id)  # before the teacher is loaded
    nlp = load_pipeline(teacher)
    config = _unlabelled(config, nlp)
    config["distillation"] = {"teacher": _digest(nlp), "keep_layers": list(keep_layers)}
    student = train(
        config,
        output,
        resume=resume,
        force=force,
        gpu_id=gpu_id,
        begin_with=partial(_begin, nlp, keep_layers),
    )
    for _, pipe in student.pipeline:
        if isinstance(pipe, BertHead | BertEncoder):
            pipe.follow(None)
    return student


def _digest(teacher: Language) -> str:
    """Return a name of the weights of a teacher's heads, so that no run is resumed with others."""
    parts = [head.model.to_bytes() for head in _heads(teacher).values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _unlabelled(config: Config, teacher: Language) -> Config:
    """Return a config that trains on unlabelled texts, with the teacher's labels for its heads.
    Raises ValueError if the teacher does not have these heads."""
    heads = _heads(teacher)
    factories = {cls.factory for cls in head_classes().values()}
    components = config["components"].items()
    names = [name for name, component in components if component.get("factory") in factories]
    if not names or not set(names) <= heads.keys():
        raise ValueError(
            f"The student has the heads {_list(names)}, the teacher {_list(heads)}. The teacher "
            "must have all of the student's: give them the same names in [components]."
        )
    config = config.copy()
    corpus = config["training"].get("train_corpus", "corpora.train").rpartition(".")[2]
    config["corpora"][corpus] = {
        "@readers": "spacy_bert_heads.Texts.v1",
        "path": config["corpora"].get(corpus, {}).get("path", "${paths.train}"),
    }
    given = config.setdefault("initialize", {}).setdefault("components", {})
    for name in names:
        if heads[name].label_data is not None:
            given.setdefault(name, {})["labels"] = as_setting(list(heads[name].label_data))
    return config


def make_texts(path: str) -> Texts:
    """Make a reader of texts without annotation, from all files that `annotate` reads.

    path (str): A file, a folder or a glob pattern.
    """
    return Texts(path)


class Texts:
    """Read texts without annotation, from all files that `annotate` reads: a file, a folder or a
    glob pattern. Records that can't be read are skipped; a warning counts them.

    Raises ValueError if a file is damaged, and FileNotFoundError if there is none.
    """

    def __init__(self, path: str) -> None:
        register_extensions()
        self.path = path
        self._skipped: Counter[str] | None = None  # by the reason

    def __call__(self, nlp: Language) -> Iterator[Example]:
        """Yield an example for each text, with its inputs for heads that read pairs."""
        skipped: Counter[str] = Counter()
        for file in list_source(self.path):
            for document in read_documents(file, "text"):
                try:
                    doc = _make_doc(nlp, document)
                except ValueError as error:
                    skipped[str(error).partition(" (")[0]] += 1
                else:
                    yield Example(doc, doc.copy())
        if self._skipped is None:  # warn once, because texts are read several times
            for reason, number in skipped.items():
                warnings.warn(f"Left out of {self.path}: {number:,} x {reason}.", stacklevel=2)
            self._skipped = skipped


def _make_doc(nlp: Language, document: Document) -> Doc:
    if document.error is not None:
        raise ValueError(document.error)
    if not isinstance(document.text, str) or not document.text.strip():
        raise ValueError("no text under 'text'")
    if len(document.text) > nlp.max_length:
        raise ValueError(f"a text of more than {nlp.max_length:,} characters")
    doc = nlp.make_doc(document.text)
    set_asked(doc, document, nlp)
    return doc


def _begin(
    teacher: Language, keep_layers: Sequence[int], student: Language, is_resumed: bool
) -> None:
    """Make a student learn from a teacher. A new student starts with the teacher's weights where it
    can."""
    heads, students = _heads(teacher), _heads(student)
    if keep_layers and not is_resumed:
        _keep_layers(students, keep_layers)
    teachers: dict[BertEncoder, set[BertEncoder | None]] = {}
    for name, head in students.items():
        other = heads[name]
        _check_alike(name, head, other)
        if not is_resumed:
            _take_over(shim_of(other.model).module, shim_of(head.model).module)
            _take_over_calibration(other, head)
        head.follow(other)
        if (own := _encoder(head)) is not None:
            teachers.setdefault(own, set()).add(_encoder(other))
    for own, known in teachers.items():
        if len(known) == 1:  # hidden states of several can't be learned at once
            _follow(own, *known)


def _keep_layers(students: dict[str, BertHead], numbers: Sequence[int]) -> None:
    """Remove the other layers of the encoders. Raises ValueError if a head reads all layers."""
    for name, head in students.items():
        if any(listener.reads == "all" for listener in head._listeners()):
            raise ValueError(
                f"'{name}' reads all layers, of which some are removed. Set layers = [-1] in "
                f"[components.{name}.model.tok2vec]."
            )
    for encoder in {_encoder(head) for head in students.values()}:
        if encoder is not None:
            encoder.keep_layers(numbers)


def _check_alike(name: str, head: BertHead, other: BertHead) -> None:
    """Raise ValueError if a head can't learn from that of the teacher with the same name."""
    if head.factory != other.factory or head.hf_names() != other.hf_names():
        raise ValueError(
            f"'{name}' of the student ({head.factory}: {', '.join(head.hf_names()[:9])}) and "
            f"that of the teacher ({other.factory}: {', '.join(other.hf_names()[:9])}) don't "
            "have the same classes. Give both the same factory, labels and settings, such as "
            "scheme."
        )
    for key in ("loss", "aggregation"):
        if head.cfg.get(key) != other.cfg.get(key):
            raise ValueError(
                f"'{name}' of the teacher has {key} = \"{other.cfg.get(key)}\", the student's "
                f'"{head.cfg.get(key)}". Set {key} in [components.{name}] as in the teacher.'
            )
    own, known = _encoder(head), _encoder(other)
    is_alike = own and known and _differences(own, known) <= {"hidden size"}
    if not is_alike and (head.input_name or head.cfg.get("aggregation") == "simple"):
        what = "pairs" if head.input_name else "wordpieces"
        raise ValueError(
            f"'{name}' reads {what}, for which both pipelines need a bert_encoder with the same "
            "tokenizer, window and stride. Start the student with the teacher's: "
            '[components.bert_encoder.model] name = "TEACHER/bert_encoder/model".'
        )


def _follow(student: BertEncoder, teacher: BertEncoder | None) -> None:
    """Let an encoder learn the hidden states of the teacher's if they have the same shape. Warns if
    only the windows differ, which nobody gains by."""
    if teacher is None:
        return
    differences = _differences(student, teacher)
    if not differences:
        student.follow(teacher)
    elif differences <= {"window", "stride"}:
        window, stride = (teacher.model.attrs[key] for key in ("window", "stride"))
        warnings.warn(
            "The student does not learn the teacher's hidden states, because it has other windows. "
            f"Set window = {window} and stride = {stride} in [components.{student.name}.model].",
            stacklevel=2,
        )


def _differences(one: BertEncoder, other: BertEncoder) -> set[str]:
    """Return in what two encoders differ that decides on the shape of their hidden states."""
    found = {key for key in ("window", "stride") if one.model.attrs[key] != other.model.attrs[key]}
    files = [checkpoint_of(encoder.model).tokenizer_files for encoder in (one, other)]
    if files[0].get("tokenizer.json") != files[1].get("tokenizer.json"):
        found.add("tokenizer")
    if one.model.get_dim("nO") != other.model.get_dim("nO"):
        found.add("hidden size")
    return found


def _take_over(known: nn.Module, new: nn.Module) -> None:
    """Copy the weights of a module into a new one, if they have the same shapes."""
    weights = known.state_dict()
    if {k: v.shape for k, v in weights.items()} == {
        k: v.shape for k, v in new.state_dict().items()
    }:
        new.load_state_dict(weights)


def _take_over_calibration(known: BertHead, new: BertHead) -> None:
    """Copy temperature and thresholds where the config of the new head leaves them at the
    factory's values."""
    defaults = Language.get_factory_meta(new.factory).default_config or {}
    for key in known.cfg.keys() & new.calibration_keys:
        if key not in new._config or new._config[key] == defaults.get(key):
            new.cfg[key] = known.cfg[key]


def _heads(nlp: Language) -> dict[str, BertHead]:
    return {name: pipe for name, pipe in nlp.pipeline if isinstance(pipe, BertHead)}


def _encoder(head: BertHead) -> BertEncoder | None:
    """Return the encoder that a head reads; None if it reads another layer."""
    return next((listener.upstream for listener in head._listeners()), None)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
