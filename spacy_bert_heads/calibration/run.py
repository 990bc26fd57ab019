"""Implement `bert calibrate` and `bert tune-thresholds`: fit settings of heads on annotated data,
and save them with the pipeline."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import spacy
from spacy.language import Language
from wasabi import table

from ..evaluate import load_pipeline, read_examples
from ..files import DIGESTS, fill_folder, naming, replace_file, sha256_of
from ..heads.head import BertHead
from .collect import collect, heads_with_claims
from .fit import FEW, HIGHEST, LOWEST, Fitted, fit_temperature
from .thresholds import GOALS, MIN_CLAIMS, Threshold, tune


def calibrate(
    model: str,
    data: Path,
    output: Path | None = None,
    *,
    names: Sequence[str] = (),
    force: bool = False,
    gpu_id: int = -1,
) -> dict[str, Fitted]:
    """Fit a temperature for each head with probabilities (or those with `names`), and save it with
    the pipeline; see `save`. Tuned thresholds per label are removed.

    A head without errors on the data, or with errors only, is not changed, with a warning. Raises
    ValueError for an unknown pipeline or head or an invalid output, or if no head can be fitted.
    """
    check_output(model, output, force=force)
    nlp = _load(model, gpu_id)
    found = collect(nlp, read_examples(nlp, data), names)
    fitted, reasons = {}, []
    for name, one in found.items():
        try:
            fitted[name] = fit_temperature(one)
        except ValueError as error:
            reasons.append(str(error))
    if not fitted:
        raise ValueError(" ".join(reasons))
    for reason in reasons:
        warnings.warn(f"{reason} Its temperature is not changed.", stacklevel=2)
    for name, fit in fitted.items():
        head = found[name].head
        _warn(name, head, fit)
        head.set_temperature(fit.temperature)
    heads = [found[name].head for name in fitted]
    save(nlp, heads, model, output, "calibrate", force=force)
    return fitted


def reset(
    model: str, output: Path | None = None, *, names: Sequence[str] = (), force: bool = False
) -> list[str]:
    """Set the temperature of heads to 1 and remove their thresholds per label. Returns the names of
    the heads. Raises the same errors as `calibrate`."""
    check_output(model, output, force=force)
    nlp = load_pipeline(model)
    heads = heads_with_claims(nlp, names)
    for head in heads:
        head.set_temperature(1.0)
    save(nlp, heads, model, output, "calibrate", force=force)
    return [head.name for head in heads]


def tune_thresholds(
    model: str,
    data: Path,
    goal: str,
    value: float,
    output: Path | None = None,
    *,
    names: Sequence[str] = (),
    force: bool = False,
    gpu_id: int = -1,
) -> dict[str, list[Threshold]]:
    """Choose a threshold for each label of each head (see `tune`), and save them with the pipeline.

    A threshold for all labels, as `bert_ner` has it, is set to 0. Raises ValueError for an unknown
    pipeline, head or goal, or an invalid output.
    """
    if goal not in GOALS or not 0 <= value <= 1:
        raise ValueError(f"The goal is {goal} {value}. Set a precision or recall from 0 to 1.")
    check_output(model, output, force=force)
    nlp = _load(model, gpu_id)
    found = collect(nlp, read_examples(nlp, data), names)
    tuned = {name: tune(one, goal, value) for name, one in found.items()}
    for name, rows in tuned.items():
        head = found[name].head
        # A threshold for all labels would remove more than those that are tuned.
        head.cfg |= head.no_thresholds | {"thresholds": {row.label: row.threshold for row in rows}}
    save(nlp, [one.head for one in found.values()], model, output, "tune-thresholds", force=force)
    return tuned


def _load(model: str, gpu_id: int) -> Language:
    if gpu_id >= 0:
        spacy.require_gpu(gpu_id)
    return load_pipeline(model)


def _warn(name: str, head: BertHead, fit: Fitted) -> None:
    if fit.claims < FEW:
        warnings.warn(
            f"{name} makes only {fit.claims} claims on this data, so the temperature may be wrong "
            f"for other data. Use data with more than {FEW} claims.",
            stacklevel=3,
        )
    if fit.at_edge:
        warnings.warn(
            f"The temperature of {name} is at the bounds of the search, {LOWEST} to {HIGHEST}. Its "
            "probabilities are hardly informative on this data.",
            stacklevel=3,
        )
    if head.cfg.get("threshold") and "threshold" in head.no_thresholds:
        warnings.warn(
            f"{name} keeps threshold = {head.cfg['threshold']}, which now applies to calibrated "
            "probabilities, so it may remove other entities than before.",
            stacklevel=3,
        )
    if head.cfg.get("thresholds"):
        warnings.warn(
            f"The thresholds of {name} were tuned for its old probabilities and are removed. Run "
            "`bert tune-thresholds` again.",
            stacklevel=3,
        )


# --- tables


def format_fitted(fitted: Mapping[str, Fitted]) -> str:
    """Format the result of `calibrate` as a table."""
    rows = [
        (name, f"{fit.temperature:.3f}", f"{fit.claims:,}", f"{fit.errors:,}")
        + (f"{fit.nll_before:.4f}", f"{fit.nll:.4f}")
        for name, fit in fitted.items()
    ]
    header = ("head", "temperature", "claims", "errors", "NLL before", "NLL")
    return table(rows, header=header, divider=True, aligns=("l", *"rrrrr")).strip("\n")


def format_tuned(tuned: Mapping[str, Sequence[Threshold]]) -> str:
    """Format the result of `tune_thresholds` as a table. A star marks labels that don't reach the
    goal, a question mark labels with few claims."""
    rows = [
        (
            name,
            f"{row.label}{'' if row.reached else ' *'}{'' if row.claims >= MIN_CLAIMS else ' ?'}",
        )
        + (f"{row.threshold:.3f}", f"{row.kept:,} of {row.claims:,}")
        + tuple(map(_percent, (row.precision, row.recall, row.f, row.without)))
        for name, rows_of in tuned.items()
        for row in rows_of
    ]
    header = ("head", "label", "threshold", "kept", "P", "R", "F", "P without")
    notes = [
        text
        for mark, text in (
            (" *", "* does not reach the goal at any threshold"),
            (
                " ?",
                f"? fewer than {MIN_CLAIMS} claims: unreliable on other data; without any, the "
                "threshold is 0, which accepts all predictions",
            ),
        )
        if any(mark in row[1] for row in rows)
    ]
    lines = table(rows, header=header, divider=True, aligns=("l", "l", *"rrrrrr")).strip("\n")
    return "\n".join([lines, *notes])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


# --- files


def check_output(model: str, output: Path | None, *, force: bool) -> None:
    """Raise ValueError if the pipeline would be changed in place without `force`, or can't be."""
    if output is None and not force:
        raise ValueError(
            f"No output is set. Add --output FOLDER for a new pipeline, or --force to change "
            f"'{model}' in place."
        )
    if output is None and not Path(model).is_dir():
        raise ValueError(
            f"'{model}' is an installed package. Set an output folder: --output FOLDER."
        )
    if output is not None and output.resolve() == Path(model).resolve():
        raise ValueError(f"{output} is the pipeline itself. Use --force instead of --output.")


def save(
    nlp: Language,
    heads: Sequence[BertHead],
    model: str,
    output: Path | None,
    command: str,
    *,
    force: bool,
) -> None:
    """Save a pipeline after settings of its heads have changed.

    With an output, the whole pipeline is saved there; a folder that was not created by `command`
    needs `force`. Without an output, only these settings are saved in the pipeline's own folder.
    """
    if output is not None:
        with fill_folder(output, command, force=force) as made:
            nlp.to_disk(made)
        return
    for head in heads:
        replace_settings(head, Path(model) / head.name)


def replace_settings(head: BertHead, folder: Path) -> None:
    """Save the `cfg` of a head in its folder.

    The folder can be loaded after each step, with the old or the new settings: first the digest of
    the old file is removed, then the file is replaced, then the new digest is added.
    """
    digests: dict[str, Any] = {}
    with naming(folder / DIGESTS):
        if (folder / DIGESTS).exists():
            digests = json.loads((folder / DIGESTS).read_bytes())
    with TemporaryDirectory() as made:
        head.to_disk(made, exclude=["model", "vocab"])
        content, digest = (Path(made) / "cfg").read_bytes(), sha256_of(Path(made) / "cfg")
    if digests:
        rest = {name: value for name, value in digests.items() if name != "cfg"}
        replace_file(folder / DIGESTS, json.dumps(rest, indent=1).encode())
    replace_file(folder / "cfg", content)
    if digests:
        replace_file(
            folder / DIGESTS, json.dumps({**rest, "cfg": digest}, indent=1, sort_keys=True).encode()
        )
