"""Exports of Label Studio whose results are not all of the text."""

import json

import pytest
from conversion import run, seen

pytestmark = pytest.mark.usefixtures("share_blank_pipelines")


def label_studio(*results: dict) -> str:
    return json.dumps(
        [{"data": {"text": "Anna left Rome"}, "annotations": [{"result": [*results]}]}]
    )


def choice(control: str, label: str, **value) -> dict:
    return {"from_name": control, "type": "choices", "value": {"choices": [label], **value}}


def test_what_is_said_of_a_span_is_not_said_of_the_text(tmp_path):
    span = {"type": "labels", "value": {"start": 0, "end": 4, "text": "Anna", "labels": ["PER"]}}
    rating = {"from_name": "weight", "type": "rating", "value": {"start": 0, "end": 4, "rating": 4}}
    of_span = choice("mood", "good", start=0, end=4)
    (doc,), report = run(tmp_path, "a.json", label_studio(span, of_span, rating))
    assert seen(doc) == ("Anna left Rome", [("Anna", "PER")], {})
    assert report.notes.counts == {
        "results of Label Studio that were not read: choices of a span": 1,
        "results of Label Studio that were not read: rating of a span": 1,
    }


def test_several_controls_with_categories_are_not_mixed(tmp_path):
    content = label_studio(choice("is_spam", "yes"), choice("is_urgent", "no"))
    with pytest.raises(ValueError, match="--label-column: is_spam, is_urgent"):
        run(tmp_path, "a.json", content)
    (doc,), report = run(tmp_path, "a.json", content, label_column="is_urgent")
    assert doc.cats == {"no": 1.0}
    assert report.notes.counts == {"results of Label Studio that were not read: choices is_spam": 1}
