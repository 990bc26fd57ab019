"""Convert requests and responses in the formats of Hugging Face's inference endpoints and
`huggingface_hub.InferenceClient`."""

from __future__ import annotations

from typing import Any

from .annotator import Query, Record
from .limits import Rejected
from .schemas import (
    ClassifyRequest,
    InputsRequest,
    QuestionRequest,
    RankedParameters,
    ZeroShotRequest,
    make_hypotheses,
)

Asked = tuple[list[Query], bool]  # the queries, and whether the inputs were a list


def read_token_classification(request: InputsRequest) -> Asked:
    if (request.parameters or {}).get("aggregation_strategy") == "none":
        raise Rejected(
            422, 'aggregation_strategy "none" is not supported. Use "simple": entities are merged.'
        )
    return _queries(request.inputs)


def write_entities(record: Record) -> list[dict[str, Any]]:
    return [
        {
            "entity_group": entity["label"],
            "score": 1.0 if entity["score"] is None else entity["score"],
            "word": entity["text"],
            "start": entity["start"],
            "end": entity["end"],
        }
        for entity in record["entities"]
    ]


def read_text_classification(request: ClassifyRequest) -> Asked:
    inputs = request.inputs
    many = inputs if isinstance(inputs, list) else [inputs]
    queries = [
        Query(one) if isinstance(one, str) else Query(one.text, hypotheses=[one.text_pair])
        for one in many
    ]
    return queries, isinstance(inputs, list)


def write_classes(record: Record, query: Query, top_k: int | None) -> list[dict[str, Any]]:
    """Return the categories, or the labels of a pair, most probable first."""
    if query.hypotheses:
        scores = record["verdicts"][0]["scores"]
        if scores is None:
            raise Rejected(
                422, "The text_pair is too long for a window of the encoder. Shorten it."
            )
    else:
        scores = record["categories"]
    return _sorted(scores)[:top_k]


def read_zero_shot(request: ZeroShotRequest) -> Asked:
    parameters = request.parameters
    labels = parameters.candidate_labels
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    if not labels:
        raise Rejected(422, "candidate_labels is empty. Pass at least one.")
    categories = make_hypotheses(labels, parameters.hypothesis_template)
    softmax = "contradiction" if parameters.multi_label else "categories"
    many, is_list = _queries(request.inputs)
    return [Query(one.text, categories=categories, softmax=softmax) for one in many], is_list


def write_zero_shot(record: Record, query: Query, is_new: bool) -> Any:
    """Return the format of the pipeline in transformers, or for huggingface_hub 1 and newer
    (`is_new`) a list."""
    found = _sorted(record["zero_shot"])
    if is_new:
        return found
    return {
        "sequence": query.text,
        "labels": [one["label"] for one in found],
        "scores": [one["score"] for one in found],
    }


def read_question(request: QuestionRequest) -> Asked:
    return [Query(request.inputs.context, questions=[request.inputs.question])], False


def write_answers(record: Record, parameters: RankedParameters) -> Any:
    """Return the best answer, or the `top_k` best. As in Hugging Face's pipeline, the best answer
    is a span even if "no answer" is more probable, unless `handle_impossible_answer` is set."""
    answer = record["answers"][0]
    if answer["text"] is None:
        raise Rejected(422, "The question is too long for a window of the encoder. Shorten it.")
    found = [answer, *answer["alternatives"]]
    if not answer["text"] and len(found) > 1 and not parameters.handle_impossible_answer:
        found = found[1:]
    shown = [
        {"score": one["score"], "start": one["start"], "end": one["end"], "answer": one["text"]}
        for one in found
    ]
    top_k = parameters.top_k or 1
    return shown[0] if top_k == 1 else shown[:top_k]


def _queries(inputs: str | list[str]) -> Asked:
    many = inputs if isinstance(inputs, list) else [inputs]
    return [Query(text) for text in many], isinstance(inputs, list)


def _sorted(scores: dict[str, float]) -> list[dict[str, Any]]:
    ordered = sorted(scores.items(), key=lambda item: -item[1])
    return [{"label": label, "score": score} for label, score in ordered]
