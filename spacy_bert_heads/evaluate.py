"""Scores and speed of a pipeline on a data set: `spacy evaluate`, also for pairs of texts."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import spacy
from spacy.language import Language
from spacy.pipeline import TextCategorizer
from spacy.scorer import Scorer
from spacy.training import Example
from spacy.util import is_package
from thinc.api import Model
from thinc.util import convert_recursive
from wasabi import table

from .data.convert import convert
from .data.reader import BertCorpus
from .encoder.model import prepare, shim_of
from .files import check_folder
from .heads.declared import Score
from .heads.find import known_scores, pair_names
from .heads.textcat import BertTextCat
from .pages.write import write_pages
from .text.user_data import get_list

# Scores of spaCy's own components.
SPACY_SCORES = {
    "token_acc": Score("tokens"),
    "morph_acc": Score("morphology"),
    "lemma_acc": Score("lemmas"),
    "dep_uas": Score("dependencies, unlabelled"),
    "dep_las": Score("dependencies, labelled"),
    "sents_p": Score("sentences P"),
    "sents_r": Score("sentences R"),
    "sents_f": Score("sentences F"),
    "dep_las_per_type": Score("dependencies, labelled"),
    "morph_per_feat": Score("morphology"),
}
# Other scores with these prefixes are details of those above.
DETAILS = ("token_", "morph_")
CALIBRATION = "calibration"
SPEEDS = ("docs", "pairs", "seconds", "speed", "pairs_speed")


def evaluate(
    model: str,
    data: Path,
    *,
    gpu_id: int = -1,
    lang: str | None = None,
    precision: str | None = None,
    pages: Path | None = None,
    pages_limit: int = 100,
    calibration: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Score a pipeline on a data set, and measure its speed.

    `model` is a pipeline's folder or the name of an installed one. `data` is a `.spacy` file, a
    folder of them, or anything that `convert` reads without options. `lang` is the language of the
    data if it differs from that of the pipeline; its tokenizer is then used. `precision` is that
    of BERT encoders: "fp32", "bf16", "fp16", "int8" or "auto"; None keeps the pipeline's. `gpu_id`
    is -1 for the CPU.

    `pages` is a folder for a page that shows gold and predicted annotation of the first
    `pages_limit` Docs. `calibration` is a folder for plots of the calibration of probabilities, see
    `report_calibration`; the data is predicted a second time for them. With `force` both folders
    may have other files.

    Returns the scores, from 0 to 1, of all that is annotated in the data; the numbers of `docs` and
    `pairs`; the `seconds` of tokenizer and `nlp.pipe`; `speed` in words and `pairs_speed` in pairs
    per second, None without pairs; and with `calibration` its measures under "calibration".

    Raises ValueError if there is no such pipeline, data, language or precision, or nothing to
    score, or if a folder has other files.
    """
    for folder in (pages, calibration):
        if folder is not None:
            check_folder(folder, "evaluate", force=force)
    if calibration is not None:
        from .inspection.png import new_figure

        new_figure(1, 1)  # raises ImportError before the long work if matplotlib is missing
    nlp, examples, scores, seconds = predict(
        model, data, gpu_id=gpu_id, lang=lang, precision=precision
    )
    if pages is not None:
        write_pages(nlp, examples, pages, model=model, data=data, limit=pages_limit)
    if calibration is not None:
        from .calibration.report import report_calibration

        scores |= {CALIBRATION: report_calibration(nlp, data, calibration)}
    docs = [example.predicted for example in examples]
    pairs = sum(len(get_list(output, doc)) for doc in docs for output in pair_names().values())
    return {
        **scores,
        "docs": len(docs),
        "pairs": pairs,
        "seconds": seconds,
        "speed": sum(map(len, docs)) / seconds,
        "pairs_speed": pairs / seconds if pairs else None,
    }


class Predicted(NamedTuple):
    """The predictions of a pipeline on a data set."""

    nlp: Language
    examples: list[Example]
    scores: dict[str, Any]
    seconds: float  # of tokenizer and `nlp.pipe`


def predict(
    model: str,
    data: Path,
    *,
    gpu_id: int = -1,
    lang: str | None = None,
    precision: str | None = None,
) -> Predicted:
    """Load a pipeline, predict a data set and score it. Arguments and errors are those of
    `evaluate`."""
    if gpu_id >= 0:
        spacy.require_gpu(gpu_id)
    settings = {} if lang is None else tokenizer_of(lang)
    nlp = load_pipeline(model, precision=precision, **settings)
    examples = read_examples(nlp, data, lang)
    seconds = annotate(nlp, examples)
    scores = score(nlp, examples)
    check_scores(scores, nlp, model, data)
    return Predicted(nlp, examples, scores, seconds)


def read_examples(nlp: Language, data: Path, lang: str | None = None) -> list[Example]:
    """Read the examples of a data set, with inputs for heads that read pairs. Warns about Docs
    without tokens, which are left out. Raises ValueError if there is no other."""
    with TemporaryDirectory() as folder:
        corpus = BertCorpus(as_spacy(data, Path(folder), nlp, lang))
        examples = list(corpus(nlp))
    if not examples:
        raise ValueError(f"There is no Doc with tokens in '{data}'. Use a .spacy file with some.")
    if corpus.num_empty:
        warnings.warn(
            f"{corpus.num_empty:,} Docs of '{data}' have no tokens and are not scored.",
            stacklevel=2,
        )
    return examples


def annotate(nlp: Language, examples: list[Example]) -> float:
    """Predict the examples. Returns the seconds of tokenizer and `nlp.pipe`."""
    start = perf_counter()
    for example in examples:  # timed only, as spaCy does, because the speed includes the tokenizer
        nlp.make_doc(example.reference.text)
    docs = list(nlp.pipe(example.predicted for example in examples))
    seconds = perf_counter() - start
    for example, doc in zip(examples, docs, strict=True):
        example.predicted = doc
    return seconds


def check_scores(scores: dict[str, Any], nlp: Language, model: str, data: Path) -> None:
    """Raise ValueError if there are scores of tokens only."""
    if all(key.startswith("token_") for key in scores):
        raise ValueError(
            f"Nothing to score: '{data}' has no annotation for what '{model}' predicts "
            f"({', '.join(nlp.pipe_names) or 'no components'})."
        )


def as_spacy(data: Path, folder: Path, nlp: Language, lang: str | None = None) -> Path:
    """Return a path with `.spacy` data: `data` itself, or a file in `folder` that it was converted
    to with the tokenizer of `lang`, None for that of the pipeline's language. A text that lists its
    categories does not have the others that the pipeline knows. Warns if records are rejected.
    Raises ValueError if it can't be converted."""
    data = Path(data)
    if data.suffix == ".spacy" or not data.exists() or next(data.rglob("*.spacy"), None):
        return data
    classifiers = (
        pipe for _, pipe in nlp.pipeline if isinstance(pipe, BertTextCat | TextCategorizer)
    )
    report = convert(
        data,
        folder / "data.spacy",
        lang=lang or nlp.lang or "en",
        known_categories=[pipe.labels for pipe in classifiers],
    )
    if report.rejected:
        reasons = ", ".join(f"{reason} ({n:,})" for reason, n in report.reasons.most_common())
        warnings.warn(
            f"{report.rejected:,} of {report.read:,} {report.unit} in '{data}' are not scored: "
            f"{reasons}.",
            stacklevel=3,
        )
    return folder / "data.spacy"


def is_pipeline(name: str) -> bool:
    """Return whether a name is a pipeline's folder or an installed pipeline."""
    return is_package(name) or (Path(name) / "config.cfg").is_file()


def check_pipeline(name: str | Path) -> None:
    """Raise ValueError if there is no such pipeline."""
    if not is_pipeline(str(name)):
        raise ValueError(
            f"There is no pipeline '{name}', neither a folder with a config.cfg nor an installed "
            "package. Train one: python -m spacy train CONFIG --output FOLDER makes "
            "FOLDER/model-best."
        )


def load_pipeline(name: str | Path, *, precision: str | None = None, **settings: Any) -> Language:
    """Load a pipeline with the `settings` of `spacy.load`, and set its precision, None for its own.
    Raises ValueError, with its name, if it does not exist or can't be loaded; and as
    `set_precision` does."""
    check_pipeline(name)
    try:
        nlp = spacy.load(name, **settings)
    except Exception as error:  # srsly and msgpack don't name the file, spaCy not always
        reason = str(error) if isinstance(error, ValueError | ImportError) else repr(error)
        raise ValueError(f"The pipeline '{name}' can't be loaded: {reason}") from error
    if precision is not None:
        set_precision(nlp, precision)
    return nlp


def tokenizer_of(lang: str) -> dict[str, Any]:
    """Return the settings of `spacy.load` that replace the pipeline's tokenizer by that of a
    language. Raises ValueError if spaCy does not have the language."""
    try:
        tokenizer = spacy.blank(lang).config["nlp"]["tokenizer"]
    except ImportError as error:
        raise ValueError(f"spaCy has no tokenizer for '{lang}': {error}") from error
    return {"config": {"nlp": {"lang": lang, "tokenizer": tokenizer}}, "exclude": ["tokenizer"]}


def set_precision(nlp: Language, precision: str) -> None:
    """Set the precision of all BERT encoders of a pipeline: "fp32", "bf16", "fp16", "int8" or
    "auto". Raises ValueError if there is no encoder, or this machine does not support the
    precision."""
    for encoder in find_encoders(nlp, precision):
        shim_of(encoder).precision = precision
        prepare(encoder)


def find_encoders(nlp: Language, precision: str = "auto") -> list[Model]:
    """Find the models of all BERT encoders, also those of heads after `replace_listeners`. Raises
    ValueError if there is none."""
    models = (getattr(component, "model", None) for _, component in nlp.components)
    nodes = [node for model in models if isinstance(model, Model) for node in model.walk()]
    encoders = [node for node in nodes if node.name == "bert_encoder"]
    if not encoders:
        raise ValueError(
            f"The pipeline has no BERT encoder to predict in {precision} "
            f"({', '.join(nlp.pipe_names) or 'no components'}). Remove --precision."
        )
    return encoders


def score(nlp: Language, examples: list[Example]) -> dict[str, Any]:
    """Score predicted examples by all that their references are annotated with. Raises ValueError
    if references and predictions can't be compared."""
    scores = Scorer(nlp).score(examples)
    if not any(example.reference.cats for example in examples):
        # Without any gold category spaCy's scores of categories are 0.
        scores = {key: value for key, value in scores.items() if not key.startswith("cats_")}
    scores = {key: value for key, value in scores.items() if value is not None}
    return convert_recursive(lambda value: isinstance(value, np.floating), float, scores)


def format_report(report: dict[str, Any], *, per_type: bool = False) -> str:
    """Format the report of `evaluate` as tables, in the order of the pipeline, with fractions in
    percent. Scores that no head declares come last, under their own names; scores without a title
    are left out. With `per_type`, each score by label gets a table."""
    known = SPACY_SCORES | known_scores()
    shown = shown_scores(report)
    rows = [(score.title, format_score(report[key], score)) for key, score in shown.items()]
    rows.append(("words per second", f"{report['speed']:,.0f}"))
    if report["pairs"]:
        rows.append(("pairs per second", f"{report['pairs_speed']:,.1f}"))
    tables = [table(rows, aligns=("l", "r"))]
    if CALIBRATION in report:
        from .calibration.report import format_calibration

        tables.append(format_calibration(report[CALIBRATION]))
    for key, scores in report.items():
        if per_type and key != CALIBRATION and isinstance(scores, dict) and scores:
            tables.append(_format_per_type(known.get(key, Score(key)), scores))
    return "\n\n".join(part.strip("\n") for part in tables)


def shown_scores(report: dict[str, Any]) -> dict[str, Score]:
    """Return the scores that are shown, each with its title. Those that no head declares are
    last."""
    known = SPACY_SCORES | known_scores()
    shown, others = {}, {}
    for key, value in report.items():
        score = known.get(key, Score(key))
        if key in SPEEDS or not isinstance(value, (int, float)) or not score.title:
            continue
        if key in known:
            desc = report.get(f"{key}_desc")
            title = f"{score.title} ({desc})" if desc else score.title
            shown[key] = score._replace(title=title)
        elif key.startswith(DETAILS) or ("_cats_" in key and not key.endswith("_score")):
            continue  # also the details of one of several text classifiers
        else:
            others[key] = score
    return shown | others


def _format_per_type(score: Score, scores: dict[str, Any]) -> str:
    # Several scores for each label, or a single one.
    named = {
        label: values if isinstance(values, dict) else {"": values}
        for label, values in scores.items()
    }
    columns = list(next(iter(named.values())))
    rows = [
        (label, *(format_score(values[column], score) for column in columns))
        for label, values in named.items()
    ]
    header = (score.title, *(column.upper() if len(column) == 1 else column for column in columns))
    aligns: list[Any] = ["l", *("r" for _ in columns)]
    return table(rows, header=header, divider=True, aligns=aligns)


def format_score(value: Any, score: Score) -> str:
    """Format a score: fractions in percent, counts as integers, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{100 * value:.2f}" if score.is_fraction else f"{value:,.4f}"
