"""Report the calibration of each head for `bert evaluate --calibration`: a table and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import srsly
from spacy.language import Language
from wasabi import table

from ..evaluate import read_examples
from ..files import mark_folder, replace_file
from ..heads.claims import Claim
from ..inspection.png import BLUE, FONTS, GREY, ORANGE, draw, new_figure, plain
from .collect import collect
from .measures import COVERAGE, Judged, make_bins, measure, risk_coverage, simulate_perfect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = "calibration.json"
COLUMNS = {
    "claims": "claims",
    "errors": "errors",
    "nll": "NLL",
    "brier": "Brier",
    "calibration_error": "error",
    "simulated_error": "perfect",
    "simulated_error_95": "95 %",
    "errors_at_80": "errors at 80 %",
    "oracle_errors_at_80": "oracle",
}


def report_calibration(nlp: Language, data: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Measure the calibration of a pipeline's heads on data, and write a plot per head and a JSON
    file with all measures. Returns the measures by head, for heads with any claims.

    Raises ValueError if the data has no annotations for a head with probabilities.
    """
    found = collect(nlp, read_examples(nlp, data))
    figures = {}
    for name, one in found.items():
        with one.head.without_thresholds():
            claims = one.claims()
        if not claims:
            continue
        figures[name] = {"temperature": one.head.temperature, **measure(claims)}
        title = (
            f"{name} on {data.name}: {len(claims):,} claims, temperature {one.head.temperature:.3g}"
        )
        replace_file(folder / f"{name}.png", draw(draw_calibration(claims, title)))
    mark_folder(folder, "evaluate")
    replace_file(folder / FIGURES, srsly.json_dumps(figures, indent=2).encode())
    return figures


def format_calibration(figures: dict[str, dict[str, Any]]) -> str:
    """Format the result of `report_calibration` as a table."""
    rows = [(name, *(_format(row[key]) for key in COLUMNS)) for name, row in figures.items()]
    header = ("probabilities", *COLUMNS.values())
    aligns: list[Any] = ["l", *("r" for _ in COLUMNS)]
    return table(rows, header=header, divider=True, aligns=aligns).strip("\n")


def _format(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def draw_calibration(claims: Sequence[Claim], title: str) -> Figure:
    """Draw a reliability diagram (DeGroot & Fienberg 1983) with the 95 % range of a perfectly
    calibrated head, and the share of errors against coverage, with the oracle's."""
    judged = Judged.of(claims)
    figure = new_figure(9.6, 4.8)
    figure.suptitle(plain(title), size=FONTS["title"])
    left, right = figure.subplots(1, 2)
    _draw_reliability(left, judged)
    _draw_risk(right, judged)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=FONTS["cell"])
    return figure


def _draw_reliability(axes: Any, judged: Judged) -> None:
    bins, simulated = make_bins(judged), simulate_perfect(judged.probability)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    axes.vlines(
        bins.probability,
        simulated.low,
        simulated.high,
        color=GREY,
        alpha=0.5,
        linewidth=6,
        label="perfectly calibrated, 95 %",
    )
    axes.plot(bins.probability, bins.accuracy, "o-", color=BLUE, markersize=4, label="measured")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_title("Reliability, bins of equal size", size=FONTS["panel"], loc="left")
    axes.set_xlabel("mean probability", size=FONTS["text"])
    axes.set_ylabel("share of correct claims", size=FONTS["text"])
    axes.legend(frameon=False, fontsize=FONTS["text"], loc="upper left")


def _draw_risk(axes: Any, judged: Judged) -> None:
    curve = risk_coverage(judged)
    kept = curve.coverage * len(judged.probability)
    axes.plot(curve.coverage, curve.errors / kept, color=BLUE, label="most confident first")
    axes.plot(curve.coverage, curve.oracle / kept, color=ORANGE, label="oracle")
    risk = float(curve.errors[-1]) / len(judged.probability)
    axes.axhline(risk, color=GREY, linewidth=1, label="random order")
    axes.axvline(COVERAGE, color=GREY, linewidth=1, linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, max(1.6 * risk, 0.01))
    axes.set_title("Risk against coverage", size=FONTS["panel"], loc="left")
    axes.set_xlabel("coverage: share of accepted claims", size=FONTS["text"])
    axes.set_ylabel("share of errors among them", size=FONTS["text"])
    axes.legend(frameon=False, fontsize=FONTS["text"], loc="upper left")
