"""A pipeline behind a live server, and what it should say."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from joint import assert_same
from spacy.language import Language

from spacy_bert_heads.annotate.records import Columns
from spacy_bert_heads.text.user_data import set_value

pytest.importorskip("fastapi", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")

Answer = tuple[int, Any]


class Client:
    """Asks a live server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Answer:
        return self._ask(Request(self.url + path))

    def post(self, path: str, body: Any) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask(Request(self.url + path, data, {"Content-Type": "application/json"}))

    def annotate(self, texts: Any, **asked: Any) -> list[dict[str, Any]]:
        status, body = self.post("/annotate", {"texts": texts, **asked})
        assert status == 200, body
        return body["results"]

    def _ask(self, request: Request) -> Answer:
        try:
            with urlopen(request, timeout=60) as response:
                status, body = response.status, response.read()
        except HTTPError as error:
            status, body = error.code, error.read()
        try:
            return status, json.loads(body)
        except ValueError:
            return status, body.decode()


@contextmanager
def serve(app: Any) -> Iterator[tuple[Client, Any]]:
    """Serve an app on a free port; gives a client, and uvicorn's server."""
    import uvicorn

    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])))
    thread.start()
    try:
        yield Client(f"http://127.0.0.1:{bound.getsockname()[1]}"), server
    finally:
        server.should_exit = True
        thread.join()


def offline(nlp: Language, text: str, **asked: list[str]) -> dict[str, Any]:
    """What the pipeline says by itself."""
    doc = nlp.make_doc(text)
    for name, texts in asked.items():
        set_value(name, doc, texts)
    return Columns.of(nlp).read(nlp(doc))


def assert_record(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal, but for the last digits of probabilities."""
    assert_same(found, expected)
