"""Define the schemas of requests and responses, with the pipeline's labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from .annotator import Annotator, Query

TEMPLATE = "This example is {}."  # Hugging Face's
Asked = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
Softmax = Literal["labels", "contradiction", "categories"]


class Choice(BaseModel):
    """Options, one of which is chosen, and an optional question."""

    model_config = ConfigDict(extra="forbid")

    question: Annotated[str, StringConstraints(pattern=r"^$|\S")] = ""
    options: Annotated[list[Asked], Field(min_length=2)]


class AnnotateRequest(BaseModel):
    """Texts, with questions and other inputs for each of them."""

    model_config = ConfigDict(extra="forbid")

    texts: list[str] | str = Field(description="One text or a list")
    questions: list[Asked] = Field([], description="Questions, answered by spans of the text")
    hypotheses: list[Asked] = Field([], description="Hypotheses that the text may entail")
    categories: list[Asked] | dict[Asked, Asked] = Field(
        [], description="Zero-shot categories: names, or an object that maps names to hypotheses"
    )
    hypothesis_template: str = Field(
        TEMPLATE, description="Turns a category into a hypothesis", pattern=r"\{\}"
    )
    category_softmax: Softmax | None = Field(
        None,
        description="What the softmax is over: all verdicts (labels), entailment and contradiction "
        "(contradiction), or all categories, so they sum to 1 (categories)",
    )

    others: list[Asked] = Field([], description="Texts to compare with the text")
    choices: list[Choice] = Field([], description="Choices; one option of each is chosen")

    def queries(self) -> list[Query]:
        """Return a query for each text."""
        texts = [self.texts] if isinstance(self.texts, str) else self.texts
        categories = make_hypotheses(self.categories, self.hypothesis_template)
        asked = (self.questions, self.hypotheses, categories, self.category_softmax, self.others)
        choices = [choice.model_dump() for choice in self.choices]
        return [Query(text, *asked, choices) for text in texts]


def make_hypotheses(categories: list[str] | dict[str, str], template: str) -> dict[str, str]:
    """Return a hypothesis for each category."""
    if isinstance(categories, dict):
        return categories
    return {category: template.replace("{}", category) for category in categories}


Place = Annotated[int | None, Field(description="A character offset in the text")]
Probability = Annotated[float | None, Field(ge=0, le=1)]


class Span(BaseModel):
    text: str | None = Field(description="The text of the span; empty for no answer")
    start: Place
    end: Place
    score: Probability


class Answer(Span):
    question: str
    no_answer_score: Probability
    alternatives: list[Span]


class Chosen(BaseModel):
    question: str
    options: list[str]
    answer: int | None = Field(description="The number of the option, from 0")
    text: str | None
    score: Probability
    scores: list[float] | None = Field(description="The probability of each option")


class Error(BaseModel):
    """The reason of a failure, and what to do."""

    error: str


def make_response(annotator: Annotator) -> type[BaseModel]:
    """Return the schema of the response of `POST /annotate`, for the documentation."""
    label = one_of(annotator.labels("entities"))
    verdict_label = one_of(annotator.labels("verdicts"))
    # With thresholds a verdict may have no label.
    decided = verdict_label | Literal[""] if "review" in annotator.columns.labels else verdict_label
    tag = {"start": int, "end": int, "tag": str | None, "pos": str | None}
    verdict = {
        "hypothesis": str,
        "label": decided | None,
        "score": Probability,
        "scores": by_label(verdict_label) | None,
    }
    numbers = by_label(one_of(annotator.labels("similarities")))
    similarity = {"other": str, "scores": numbers | None}
    kinds: dict[str, Any] = {
        "entities": list_of(make_model("Entity", {"label": label}, base=Span)),
        "categories": by_label(one_of(annotator.labels("categories"))),
        "verdicts": list_of(make_model("Verdict", verdict)),
        "answers": list[Answer],
        "similarities": list_of(make_model("Similarity", similarity)),
        "chosen": list[Chosen],
        "numbers": by_label(one_of(annotator.labels("numbers"))),
        "generated": str,
        "tags": list_of(make_model("Tag", tag)),
        "review": bool,
    }
    fields = {name: kinds[name] for name in annotator.columns.labels}
    if annotator.classifies:
        described = Field(
            description="Probabilities of the request's categories; only if it has any"
        )
        fields["zero_shot"] = Annotated[dict[str, float], described]
    result: Any = make_model("Annotations", fields) | Error
    described = Field(description="One result per text, in order")
    return make_model("AnnotateResponse", {"results": Annotated[list_of(result), described]})


def make_model(name: str, fields: dict[str, Any], base: type[BaseModel] = BaseModel) -> Any:
    """Create a model whose fields are all required."""
    required: dict[str, Any] = {key: (kind, ...) for key, kind in fields.items()}
    return create_model(name, __base__=base, **required)


def list_of(kind: Any) -> Any:
    return list[kind]


def by_label(label: Any) -> Any:
    """Return the type of a dict from labels to numbers."""
    return dict[label, float]


def one_of(labels: list[str]) -> Any:
    """Return the type of labels: these, or any string if they are unknown."""
    return Literal[tuple(labels)] if labels else str


# --- Hugging Face's formats


class InputsRequest(BaseModel):
    inputs: str | list[str]
    parameters: dict[str, Any] | None = None


class TextPair(BaseModel):
    text: str
    text_pair: Asked


class RankedParameters(BaseModel):
    """Parameters of tasks that return several results, most probable first."""

    model_config = ConfigDict(extra="allow")  # others have no effect

    top_k: Annotated[int, Field(strict=True, ge=1)] | None = None
    handle_impossible_answer: bool | None = None


class ClassifyRequest(BaseModel):
    inputs: str | list[str] | TextPair | list[TextPair]
    parameters: RankedParameters | None = None


class ZeroShotParameters(BaseModel):
    candidate_labels: list[Asked] | Asked
    hypothesis_template: str = Field(TEMPLATE, pattern=r"\{\}")
    multi_label: bool = False


class ZeroShotRequest(BaseModel):
    inputs: str | list[str]
    parameters: ZeroShotParameters


class QuestionContext(BaseModel):
    question: Asked
    context: str


class QuestionRequest(BaseModel):
    inputs: QuestionContext
    parameters: RankedParameters | None = None
