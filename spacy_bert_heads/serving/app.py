"""Define the HTTP server: routes, limits, errors as JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from time import monotonic
from typing import Any

import spacy
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from spacy.language import Language
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..data.records import is_utf8
from . import hugging_face as hf
from .annotator import Annotator, Query, Record, log_error
from .batcher import Batcher
from .limits import Limits, Rejected
from .metrics import Metrics
from .page import render_page
from .schemas import (
    AnnotateRequest,
    ClassifyRequest,
    Error,
    InputsRequest,
    QuestionRequest,
    RankedParameters,
    ZeroShotRequest,
    make_response,
)

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": description}
    for status, description in {
        413: "The request is too large",
        422: "The request is invalid",
        429: "Too many requests are waiting",
        503: "The server is shutting down",
        504: "The request timed out",
    }.items()
}
NOT_UNICODE = (
    "A text contains a lone surrogate, which is not valid Unicode. Decode the source again with "
    "the right encoding."
)
SEND_JSON = "Send a JSON object in UTF-8, with the header Content-Type: application/json."
# The page has only inline scripts and styles, and connects only to this server.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src "
    "'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


def make_app(
    nlp: Language, *, name: str, limits: Limits | None = None, gpu_id: int = -1
) -> FastAPI:
    """Return the server of a pipeline. `name` is shown on the demo page, `gpu_id` is the GPU of the
    pipeline, -1 for the CPU.

    Raises ValueError if the pipeline sets no annotations.
    """
    limits = limits or Limits()
    annotator = Annotator(nlp)
    batcher = Batcher(
        annotator.annotate,
        limits,
        lambda *batch: metrics.note_batch(*batch),
        lambda: gpu_id < 0 or spacy.require_gpu(gpu_id),  # thinc and cupy have one for each thread
    )
    metrics = Metrics(lambda: batcher.queue_cost)
    desk = Desk(annotator, batcher, limits, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(
        title=name,
        version=version("spacy_bert_heads"),
        description=f"Annotations of {name} ({', '.join(nlp.pipe_names)}).",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
    )
    app.add_middleware(Guard, metrics=metrics, max_body=limits.max_body)
    for kind in (RequestValidationError, HTTPException, Rejected):
        app.add_exception_handler(kind, show_error)
    page = render_page(annotator, name=name, lang=nlp.lang or "xx", limits=limits)

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=HEADERS)

    @app.get("/health", responses={503: {"model": Error}})
    async def health() -> JSONResponse:
        """Return status 200 if requests are accepted."""
        if not batcher.is_ready:
            raise Rejected(503, "The server is shutting down. Use another one.")
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def show_metrics() -> PlainTextResponse:
        """Return metrics in Prometheus's format."""
        return PlainTextResponse(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    response = make_response(annotator)

    @app.post("/annotate", responses={200: {"model": response}, **ERRORS})
    async def annotate(request: AnnotateRequest) -> JSONResponse:
        """Annotate one or several texts. The result of a text that can't be annotated is an
        "error"."""
        return JSONResponse({"results": await desk.answer(request.queries())})

    add_tasks(app, desk)
    return app


class Desk:
    """Check and answer queries of all formats."""

    def __init__(
        self, annotator: Annotator, batcher: Batcher, limits: Limits, metrics: Metrics
    ) -> None:
        self.annotator, self._batcher = annotator, batcher
        self._limits, self._metrics = limits, metrics

    async def answer(self, queries: Sequence[Query]) -> list[Record]:
        """Return the answers to queries in order. Raises Rejected if there are too many, or if the
        pipeline has no head for them."""
        self._check(queries)
        faults = [self._fault_of(query.text) for query in queries]
        pairs = zip(queries, faults, strict=True)
        good = [self.annotator.complete(query) for query, fault in pairs if not fault]
        answers = iter(await self._batcher.submit(good) if good else ())
        records = [{"error": fault} if fault else next(answers) for fault in faults]
        self._metrics.failed.inc(sum("error" in record for record in records))
        return records

    def _fault_of(self, text: str) -> str:
        """Return the reason why a text can't be annotated, "" if it can."""
        longest = min(self._limits.max_chars, self.annotator.nlp.max_length)
        if len(text) > longest:
            return f"This text has {len(text):,} characters, more than {longest:,}. Split it."
        return "" if is_utf8(text) else NOT_UNICODE

    def _check(self, queries: Sequence[Query]) -> None:
        limits, annotator = self._limits, self.annotator
        num_pairs = sum(len(query.second_texts) for query in queries)
        if len(queries) > limits.max_texts:
            raise Rejected(
                413,
                f"{len(queries)} texts; at most {limits.max_texts} are allowed. Split the request.",
            )
        if num_pairs > limits.max_pairs:
            raise Rejected(
                413,
                f"{num_pairs} pairs of a text with a question, hypothesis or other second text; at "
                f"most {limits.max_pairs} are allowed. Split the request.",
            )
        if not all(is_utf8(text) for query in queries for text in query.second_texts):
            raise Rejected(422, NOT_UNICODE)
        for name, is_known, head in (
            ("questions", annotator.answers_questions, "bert_qa"),
            ("hypotheses", annotator.judges_hypotheses, "bert_nli"),
            ("categories", annotator.classifies, 'bert_nli with a label "entailment"'),
            ("others", annotator.compares, "bert_similarity"),
            ("choices", annotator.chooses, "bert_choice"),
        ):
            if not is_known and any(getattr(query, name) for query in queries):
                raise Rejected(422, f"The pipeline has no {head}. Leave out {name}.")

    async def run(self, asked: hf.Asked, write: Callable[[Record, Query], Any]) -> list[Any]:
        """Answer the queries of a Hugging Face task. Its format can't report the error of a single
        text, so one error rejects the request."""
        records = await self.answer(asked[0])
        for record in records:
            if "error" in record:
                raise Rejected(422, record["error"])
        return [write(record, query) for record, query in zip(records, asked[0], strict=True)]


def add_tasks(app: FastAPI, desk: Desk) -> None:
    """Add a route for each Hugging Face task that the pipeline supports, for
    `InferenceClient(model=…)`."""
    annotator = desk.annotator
    route: dict[str, Any] = {"responses": ERRORS, "tags": ["Hugging Face's formats"]}

    if "entities" in annotator.columns.labels:

        @app.post("/pipeline/token-classification", **route)
        async def token_classification(request: InputsRequest) -> JSONResponse:
            asked = hf.read_token_classification(request)
            found = await desk.run(asked, lambda record, _: hf.write_entities(record))
            return JSONResponse(found if asked[1] else found[0])

    if "categories" in annotator.columns.labels or annotator.judges_hypotheses:

        @app.post("/pipeline/text-classification", **route)
        async def text_classification(request: ClassifyRequest) -> JSONResponse:
            top_k = request.parameters.top_k if request.parameters else None
            asked = hf.read_text_classification(request)
            has_categories = "categories" in annotator.columns.labels
            if not has_categories and not all(query.hypotheses for query in asked[0]):
                raise Rejected(
                    422, 'The pipeline classifies only pairs. Send {"text": …, "text_pair": …}.'
                )
            return JSONResponse(
                await desk.run(asked, lambda record, query: hf.write_classes(record, query, top_k))
            )

    if annotator.classifies:

        @app.post("/pipeline/zero-shot-classification", **route)
        async def zero_shot(request: ZeroShotRequest, http: Request) -> JSONResponse:
            client = re.search(r"hf_hub/(\d+)", http.headers.get("user-agent", ""))
            is_new = client is not None and int(client[1]) >= 1
            asked = hf.read_zero_shot(request)
            found = await desk.run(
                asked, lambda record, query: hf.write_zero_shot(record, query, is_new)
            )
            return JSONResponse(found if asked[1] else found[0])

    if annotator.answers_questions:

        @app.post("/pipeline/question-answering", **route)
        async def question_answering(request: QuestionRequest) -> JSONResponse:
            parameters = request.parameters or RankedParameters()
            asked = hf.read_question(request)
            found = await desk.run(asked, lambda record, _: hf.write_answers(record, parameters))
            return JSONResponse(found[0])


# --- errors


async def show_error(request: Request, error: Exception) -> JSONResponse:
    """Return an error in a format that Hugging Face's clients also show, without the user's
    text."""
    headers = {}
    if isinstance(error, RequestValidationError):
        status = 422
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        message = "; ".join(dict.fromkeys(faults))
        if any(one["loc"] == ("body",) for one in error.errors()):
            # Without that header, FastAPI doesn't parse the body.
            message = f"The request has no JSON object as its body. {SEND_JSON}"
    elif isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
        if status == 400:  # FastAPI's for a body that is not UTF-8
            message = f"The body can't be read. {SEND_JSON}"
    else:
        assert isinstance(error, Rejected)
        status, message = error.status, str(error)
    if status in (429, 503):
        headers["Retry-After"] = "2"
    return JSONResponse({"error": message}, status, headers)


class Guard:
    """Wrap all routes: limit the size of requests, count them, and hide unexpected errors from
    clients."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_body: int) -> None:
        self._app, self._metrics, self._max_body = app, metrics, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, size = monotonic(), 0, 0

        async def count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def measure() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body:
                raise HTTPException(
                    413, f"The request has more than {self._max_body:,} bytes. Split it."
                )
            return message

        try:
            await self._app(scope, measure, count)
        except Exception as error:
            log_error(error)
            if not status:
                message = {"error": "Internal server error. The server's log has its location."}
                await JSONResponse(message, 500)(scope, receive, count)
        route = scope.get("route")
        path = getattr(route, "path", "other")
        self._metrics.note_request(path, status or 500, monotonic() - start)
