"""The end of the demo: a table of scores and speed, and a page of highlighted predictions."""

import json
import time
from html import escape
from pathlib import Path
from typing import Annotated

import spacy
import typer
from spacy import displacy
from spacy.tokens import Doc, DocBin
from wasabi import msg, table

COLORS = {
    "VESSEL": "#9fd3f6",
    "PLACE": "#ffd28f",
    "ORG": "#c9b6f2",
    "EQUIPMENT": "#b6e3b0",
    "DATE": "#f6b8c1",
}
STYLE = """
body { font: 16px/1.6 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem;
       color: #1d2733; }
h1 { font-size: 1.6rem; } h2 { font-size: 1rem; margin: 2.5rem 0 .5rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: right; }
th { border-bottom: 1px solid #b8c2cc; } td:first-child, th:first-child { text-align: left; }
.cat { border-radius: 1rem; padding: .1rem .7rem; background: #dff0e2; }
.wrong { background: #f9dcd8; } .entities { line-height: 2.2 !important; }
.entity a { font-weight: normal; } footer { margin: 3rem 0; color: #66727f; }
"""


def main(
    metrics: Annotated[Path, typer.Argument(help="The folder that `spacy evaluate` wrote to")],
    models: Annotated[Path, typer.Argument(help="The folder of trained pipelines")],
    predictions: Annotated[Path, typer.Argument(help="Docs annotated by the joint pipeline")],
    gold: Annotated[Path, typer.Argument(help="The same Docs with their true annotations")],
    raw: Annotated[Path, typer.Argument(help="JSONL to measure speed on")],
    output: Annotated[Path, typer.Argument(help="The page to write")],
) -> None:
    """Print a table, write a page."""
    texts = [json.loads(line)["text"] for line in raw.read_text(encoding="utf8").splitlines()]
    rows = []
    for file in sorted(metrics.glob("*.json"), key=lambda file: file.stat().st_mtime):
        scores = json.loads(file.read_text(encoding="utf8"))
        nlp = spacy.load(models / file.stem / "model-best")
        heads = ", ".join(name for name in nlp.pipe_names if name != "bert_encoder")
        row = [file.stem, heads, percent(scores, "ents_f"), percent(scores, "cats_micro_f")]
        rows.append([*row, f"{words_per_second(nlp, texts):,.0f}"])
    header = ["pipeline", "heads", "entities F", "categories acc.", "words/s"]
    print(table(rows, header=header, divider=True, aligns=list("llrrr")))

    vocab = spacy.blank("en").vocab
    predicted = list(DocBin().from_disk(predictions).get_docs(vocab))
    truth = {doc.text: doc for doc in DocBin().from_disk(gold).get_docs(vocab)}
    body = "\n".join(render(doc, truth[doc.text]) for doc in predicted)
    output.write_text(page(header, rows, body), encoding="utf8")
    msg.good(f"{output}: {len(predicted)} reports with what the joint pipeline found in them")


def percent(scores: dict, key: str) -> str:
    return f"{100 * scores[key]:.1f}" if scores.get(key) is not None else "–"


def words_per_second(nlp: spacy.Language, texts: list[str]) -> float:
    """Text to annotated Docs through `nlp.pipe`, the better of two runs."""
    times, words = [], 0
    for _ in range(2):
        start = time.perf_counter()
        words = sum(len(doc) for doc in nlp.pipe(texts))
        times.append(time.perf_counter() - start)
    return words / min(times)


def render(doc: Doc, gold: Doc) -> str:
    """One report: its category with its probability, its entities with theirs."""
    best = max(doc.cats, key=doc.cats.__getitem__)
    true = max(gold.cats, key=gold.cats.__getitem__)
    note = "" if best == true else f" — the annotators say <b>{escape(true)}</b>"
    scores = doc.spans["ents"].attrs["scores"]
    ents = [
        {
            "start": ent.start_char,
            "end": ent.end_char,
            "label": ent.label_,
            "kb_id": f"{score:.2f}",
            "kb_url": "#",
        }
        for ent, score in zip(doc.spans["ents"], scores, strict=True)
    ]
    html = displacy.render(
        {"text": doc.text, "ents": ents}, style="ent", manual=True, options={"colors": COLORS}
    )
    css = "cat" if best == true else "cat wrong"
    category = f'<span class="{css}">{escape(best)} {doc.cats[best]:.2f}</span>'
    return f"<h2>{category}{note}</h2>\n{html}"


def page(header: list[str], rows: list[list[str]], body: str) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    cells = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Maritime incident reports</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style>
<h1>Maritime incident reports</h1>
<p>The test reports as the jointly trained pipeline reads them: a category for each, entities, and
the probability of each. None of them was seen in training.</p>
<table><tr>{head}</tr>{cells}</table>
{body}
<footer>Made by spacy_bert_heads.</footer></html>
"""


if __name__ == "__main__":
    typer.run(main)
