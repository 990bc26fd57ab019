"""What comes first on the demo's page: scores beside their baselines, and how they were learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from spacy_bert_heads.pages.style import MUTED

if TYPE_CHECKING:
    from report import Row

BAR, TRACK, MARK = "#2f6db3", "#e3e8ee", "#1d2733"
# The score of each task in spaCy's log.
SCORES = {
    "entities": "ents_f",
    "categories": "cats_micro_f",
    "verdicts": "nli_acc",
    "answers": "qa_f1",
}
WIDTH, HEIGHT = 260, 120  # of a curve
LEFT, RIGHT, TOP, BOTTOM = 30, 34, 8, 20  # room around it for numbers
STYLE = f"""<style>
.lead {{ font-size: 1.1rem; }}
.scored {{ display: grid; gap: .9rem 2.5rem; max-width: 62rem; margin: 1rem 0 .5rem; }}
.scored > div {{ display: grid; grid-template-columns: 1fr auto; gap: 0 1rem; }}
.scored p {{ margin: 0; }} .scored .number {{ font-weight: bold; }}
.scored .track, .scored .note {{ grid-column: 1 / -1; }} .scored .note {{ font-size: .9rem; }}
.track {{ position: relative; height: 1rem; margin: .2rem 0 .3rem; background: {TRACK};
  border-radius: .3rem; }}
.track span {{ display: block; height: 100%; background: {BAR}; border-radius: .3rem; }}
.track i {{ position: absolute; top: -.2rem; bottom: -.2rem; width: 3px; background: {MARK};
  box-shadow: 0 0 0 1.5px #fff; }}
.curves {{ display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; margin: .8rem 0; }}
.curves figure {{ margin: 0; }} .curves figcaption {{ font-size: .9rem; font-weight: bold; }}
.curves text {{ font: 12px system-ui, sans-serif; fill: {MUTED}; }}
@media (min-width: 52rem) {{ .scored {{ grid-template-columns: 1fr 1fr; }} }}
</style>"""


def render_overview(
    rows: Sequence[Row],
    log: Sequence[dict[str, Any]],
    measures: Mapping[str, tuple[str, str]],
    *,
    num_train: int,
    num_test: int,
) -> str:
    """Make it of the rows of the table, the joint pipeline's first; of spaCy's log of its training;
    and of each task's measure and baseline in words."""
    joint = [row for row in rows if row.pipeline == rows[0].pipeline]
    others = [row for row in rows if row.pipeline != rows[0].pipeline]
    better = sum(row.is_better for row in joint)
    parts = [
        STYLE,
        '<p class="lead">One encoder with a head for each task, trained jointly on '
        f"{num_train} reports of incidents at sea. This page shows what it finds in {num_test} "
        "reports that it has not seen: names, the kind of incident, verdicts on hypotheses, and "
        "answers to questions. It does better than a trivial baseline in "
        f"{better} of {len(joint)} tasks.</p>",
        "<h2>How well it works</h2>",
        f'<div class="scored">{"".join(render_score(row, *measures[row.task]) for row in joint)}'
        "</div>",
        '<p class="muted">The bar is the score, the black line what a trivial baseline scores. The '
        "interval is a paired bootstrap over reports: where it lies above 0, the gain is no "
        f"accident of these {num_test}.</p>",
    ]
    if others:
        parts += ["<h3>Pipelines of one task</h3>", render_others(others)]
    parts += [
        "<h2>How it learned</h2>",
        "<p>Scores on some development reports after so many steps of training, in percent.</p>",
        f'<div class="curves">{"".join(render_curve(row.task, log) for row in joint)}</div>',
        "<h2>Task by task</h2>",
    ]
    return "\n".join(parts)


def render_score(row: Row, measure: str, baseline: str) -> str:
    """Make a bar of a score, with a mark where the baseline is."""
    gain, second = row.gain, 100 * row.gain.second
    first = 100 * gain.first
    if row.is_better:
        verdict = '<span class="badge right">✓ better than the baseline</span>'
    else:
        verdict = '<span class="badge wrong">✗ no better than the baseline</span>'
    return (
        f"<div><p>{row.task.capitalize()} <small>{measure}</small></p>"
        f'<p class="number">{second:.1f} %</p>'
        f'<div class="track" aria-hidden="true"><span style="width:{second:.1f}%"></span>'
        f'<i style="left:{first:.1f}%"></i></div>'
        f'<p class="note">{verdict} {escape(baseline)}: {first:.1f} %. '
        f"Gain {signed(gain.difference)}, 95 % interval {signed(gain.low)} to "
        f"{signed(gain.high)}.</p></div>"
    )


def signed(share: float) -> str:
    """Write a share in percent, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def render_others(rows: Sequence[Row]) -> str:
    """Make a table of the other pipelines."""
    cells = "".join(
        f'<tr><th scope="row">{row.task.capitalize()}</th><td>{100 * row.gain.second:.1f} %</td>'
        f"<td>{100 * row.gain.first:.1f} %</td></tr>"
        for row in rows
    )
    return (
        '<table class="scores"><thead><tr><th scope="col">Trained alone</th><th scope="col">Score'
        f'</th><th scope="col">Baseline</th></tr></thead><tbody>{cells}</tbody></table>'
    )


def render_curve(task: str, log: Sequence[dict[str, Any]]) -> str:
    """Draw the scores of a task, as SVG."""
    key = SCORES[task]
    points = [(entry["step"], entry["scores"][key] / 100) for entry in log]
    last = points[-1][0] or 1

    def place(step: int, score: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return round(across, 1), round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - score), 1)

    lines = []
    for level in (0, 50, 100):
        y = place(0, level / 100)[1]
        lines.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#d5dce3"/>'
            f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{level}</text>'
        )
    places = [place(*point) for point in points]
    x, y = places[-1]
    lines += [
        f'<polyline points="{" ".join(f"{x},{y}" for x, y in places)}" fill="none" '
        f'stroke="{BAR}" stroke-width="2"/>',
        f'<circle cx="{x}" cy="{y}" r="3" fill="{BAR}"/>',
        f'<text x="{x + 6}" y="{y + 4}">{100 * points[-1][1]:.0f}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 4}">0</text>',
        f'<text x="{x}" y="{HEIGHT - 4}" text-anchor="end">{last:,} steps</text>',
    ]
    said = f"{task} from {100 * points[0][1]:.0f} to {100 * points[-1][1]:.0f} percent"
    return (
        f'<figure><figcaption>{task.capitalize()}</figcaption><svg role="img" width="{WIDTH}" '
        f'height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="Learning curve: {said}">'
        f"{''.join(lines)}</svg></figure>"
    )
