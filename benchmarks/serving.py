"""How fast is `bert serve` beside `nlp(text)` in a pool of threads?

    python benchmarks/serving.py training/joint/model-best

Texts are the sentences of assets/train.jsonl, one a request. Heads of pairs
are left out. torch has one thread, here and in the server. Clients ask again as soon as
they are answered; they are threads of this process, the server is another.
"""

import json
import re
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from threading import local
from time import perf_counter, sleep
from typing import Annotated, Any
from urllib.request import urlopen

import numpy as np
import spacy
import torch
import typer

from spacy_bert_heads.heads.pair_head import BertPairHead

ROOT = Path(__file__).parent.parent
CLIENTS = (1, 8, 32)


def main(
    model: Annotated[Path, typer.Argument(help="A pipeline")],
    seconds: Annotated[float, typer.Option(help="Of each measurement")] = 20,
) -> None:
    """Measure."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    nlp = spacy.load(model)
    for name in [name for name, pipe in nlp.pipeline if isinstance(pipe, BertPairHead)]:
        nlp.remove_pipe(name)
    texts = read_sentences()
    with tempfile.TemporaryDirectory() as folder:
        nlp.to_disk(folder)
        print(f"\n{'':14}{'clients':>8}{'requests/s':>12}{'p50 ms':>9}{'p95 ms':>9}")
        for number in CLIENTS:
            show("thread pool", number, ask(nlp, texts, number, seconds), seconds)
            with Server(folder) as server:
                ask(server.annotate, texts, number, 2)
                show("bert serve", number, ask(server.annotate, texts, number, seconds), seconds)


def read_sentences() -> list[str]:
    lines = (ROOT / "assets" / "train.jsonl").read_text("utf8").splitlines()
    found = [re.split(r"(?<=[.!?]) ", json.loads(line)["text"]) for line in lines]
    return [sentence for sentences in found for sentence in sentences if len(sentence) > 20]


def ask(call: Callable[[str], Any], texts: list[str], number: int, seconds: float) -> list[float]:
    """The seconds of each call, of so many clients."""
    end = perf_counter() + seconds

    def work(first: int) -> list[float]:
        took, i = [], first
        while (start := perf_counter()) < end:
            call(texts[i % len(texts)])
            took.append(perf_counter() - start)
            i += number
        return took

    with ThreadPoolExecutor(number) as pool:
        return [one for some in pool.map(work, range(number)) for one in some]


def show(what: str, number: int, took: list[float], seconds: float) -> None:
    p50, p95 = np.percentile(took, [50, 95]) * 1000
    print(f"{what:14}{number:8}{len(took) / seconds:12.1f}{p50:9.1f}{p95:9.1f}", flush=True)


class Server:
    """`bert serve` in a process of its own."""

    def __init__(self, model: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._connections = local()
        words = [sys.executable, "-m", "spacy", "bert", "serve", model, "--threads", "1"]
        self._process = subprocess.Popen(
            [*words, "--port", str(self.port)], stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> "Server":
        while self._process.poll() is None:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/health", timeout=60):
                return self
            sleep(0.2)
        raise SystemExit("the server did not start")

    def __exit__(self, *error: Any) -> None:
        self._process.terminate()
        self._process.wait()

    def annotate(self, text: str) -> None:
        """Ask by the thread's own connection, which stays open."""
        connections = self._connections
        if not hasattr(connections, "one"):
            connections.one = HTTPConnection("127.0.0.1", self.port)
        body = json.dumps({"texts": text})
        connections.one.request("POST", "/annotate", body, {"Content-Type": "application/json"})
        answer = connections.one.getresponse()
        assert answer.read() and answer.status == 200, answer.status


if __name__ == "__main__":
    typer.run(main)
