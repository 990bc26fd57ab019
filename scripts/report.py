"""The end of the demo: a table of scores and speed, and a page of what the joint pipeline found."""

import json
from html import escape
from pathlib import Path
from typing import Annotated, Any

import spacy
import typer
from spacy import displacy
from spacy.tokens import Doc, DocBin
from wasabi import msg, table

import spacy_bert_heads.pairs  # noqa: F401  registers doc._.questions and so on

COLORS = {
    "VESSEL": "#9fd3f6",
    "PLACE": "#ffd28f",
    "ORG": "#c9b6f2",
    "EQUIPMENT": "#b6e3b0",
    "DATE": "#f6b8c1",
}
SCORES = {
    "entities F": "ents_f",
    "categories acc.": "cats_micro_f",
    "verdicts acc.": "nli_acc",
    "answers F": "qa_f1",
    "exact": "qa_exact",
}
STYLE = """
body { font: 16px/1.6 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem;
       color: #1d2733; }
h1 { font-size: 1.6rem; } h2 { font-size: 1rem; margin: 3rem 0 .5rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: right; }
th { border-bottom: 1px solid #b8c2cc; } td:first-child, th:first-child { text-align: left; }
.asked { margin-top: 1rem; } .asked td { text-align: left; vertical-align: top; }
.asked td:first-child { color: #66727f; } .none { color: #98a4b0; }
.pill { border-radius: 1rem; padding: .1rem .7rem; background: #e6eaee; white-space: nowrap; }
.right, .entailment { background: #dff0e2; } .wrong, .contradiction { background: #f9dcd8; }
.entities { line-height: 2.2 !important; } .score { color: #98a4b0; font-size: .85rem; }
footer { margin: 3rem 0; color: #66727f; }
"""


def main(
    metrics: Annotated[Path, typer.Argument(help="The folder that `bert evaluate` wrote to")],
    predictions: Annotated[Path, typer.Argument(help="Docs annotated by the joint pipeline")],
    gold: Annotated[Path, typer.Argument(help="The same Docs with their true annotations")],
    output: Annotated[Path, typer.Argument(help="The page to write")],
) -> None:
    """Print a table, write a page."""
    rows = []
    for file in sorted(metrics.glob("*.json"), key=lambda file: file.stat().st_mtime):
        scores = json.loads(file.read_text(encoding="utf8"))
        row = [percent(scores.get(key)) for key in SCORES.values()]
        rows.append([file.stem.replace("-", ", "), *row, f"{scores['speed']:,.0f}"])
    header = ["pipeline", *SCORES, "words/s"]
    print(table(rows, header=header, divider=True, aligns=["l"] + ["r"] * (len(header) - 1)))

    vocab = spacy.blank("en").vocab
    predicted = list(DocBin().from_disk(predictions).get_docs(vocab))
    truth = {doc.text: doc for doc in DocBin().from_disk(gold).get_docs(vocab)}
    body = "\n".join(render(doc, truth[doc.text]) for doc in predicted)
    output.write_text(page(header, rows, body), encoding="utf8")
    msg.good(f"{output}: {len(predicted)} reports with what the joint pipeline found in them")


def percent(score: float | None) -> str:
    return "–" if score is None else f"{100 * score:.1f}"


def render(doc: Doc, gold: Doc) -> str:
    """One report: its category, its entities, what was asked of it; each with its probability."""
    best = max(doc.cats, key=doc.cats.__getitem__)
    true = max(gold.cats, key=gold.cats.__getitem__)
    note = "" if best == true else f" — the annotators say <b>{escape(true)}</b>"
    category = pill(f"{best} {doc.cats[best]:.2f}", "right" if best == true else "wrong")
    ents = [
        {
            "start": ent["start_char"],
            "end": ent["end_char"],
            "label": f"{ent['label']} {ent['score']:.2f}",
        }
        for ent in doc._.ent_scores
    ]
    colors = {ent["label"]: COLORS[ent["label"].split()[0]] for ent in ents}
    html = displacy.render(
        {"text": doc.text, "ents": ents}, style="ent", manual=True, options={"colors": colors}
    )
    asked = [
        (question, show_answer(answer))
        for question, answer in zip(doc._.questions, doc._.answers, strict=True)
    ]
    for hypothesis, verdict in zip(doc._.hypotheses, doc._.nli, strict=True):
        label = verdict["label"]
        asked.append((hypothesis, pill(f"{label} {verdict['scores'][label]:.2f}", label)))
    rows = "".join(f"<tr><td>{escape(text)}</td><td>{found}</td></tr>" for text, found in asked)
    return f'<h2>{category}{note}</h2>\n{html}\n<table class="asked">{rows}</table>'


def show_answer(answer: dict[str, Any]) -> str:
    text = escape(answer["text"]) or '<span class="none">no answer</span>'
    return f'{text} <span class="score">{answer["score"]:.2f}</span>'


def pill(text: str, kind: str) -> str:
    return f'<span class="pill {escape(kind)}">{escape(text)}</span>'


def page(header: list[str], rows: list[list[str]], body: str) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    cells = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Maritime incident reports</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style>
<h1>Maritime incident reports</h1>
<p>The test reports as the jointly trained pipeline reads them: a category, entities, answers to
four questions and verdicts on three hypotheses that are asked of every report, each with its
probability. None of the reports was seen in training. A hundred-odd reports teach names and
categories; they are too few to teach answering and judging well. In the table, <i>adapted</i> and
<i>joint</i> start from the encoder after its pretraining on 110 texts without labels.</p>
<table><tr>{head}</tr>{cells}</table>
{body}
<footer>Made by spacy_bert_heads.</footer></html>
"""


if __name__ == "__main__":
    typer.run(main)
