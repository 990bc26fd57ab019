"""Create the self-contained demo page of the server."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from typing import Any

from ..pages.style import COLOURS
from .annotator import Annotator
from .limits import Limits

PARTS = ("page.html", "page.css", "page.js")


def render_page(annotator: Annotator, *, name: str, lang: str, limits: Limits) -> str:
    """Return the demo page, with the inputs that the pipeline supports."""
    html, css, script = (files(__package__).joinpath(part).read_text("utf8") for part in PARTS)
    settings: dict[str, Any] = {
        "kinds": list(annotator.columns.labels),
        "labels": annotator.labels("entities"),
        "colours": COLOURS,
        "maxChars": min(limits.max_chars, annotator.nlp.max_length),
        "asks": {
            "questions": annotator.answers_questions,
            "hypotheses": annotator.judges_hypotheses,
            "categories": annotator.classifies,
            "others": annotator.compares,
            "options": annotator.chooses,
        },
    }
    values = {
        "name": escape(name),
        "lang": "" if lang == "xx" else f' lang="{escape(lang, quote=True)}"',
        "css": css,
        "script": script,
        # "<" could end the script element.
        "settings": json.dumps(settings).replace("<", "\\u003c"),
    }
    for key, value in values.items():
        html = html.replace("{{" + key + "}}", value)
    return html
