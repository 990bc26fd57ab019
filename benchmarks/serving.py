"""How fast is `bert serve`, and `nlp(text)`, beside the model alone?

python benchmarks/serving.py training/joint/model-best              latency; 1, 8 and 32 clients
python benchmarks/serving.py training/joint/model-best --soak 300   five minutes at 32 clients:
    memory, and each answer beside that of the pipeline by itself

Texts are the sentences of assets/train.jsonl, one a request. Questions and hypotheses of the
pipeline are left out, so a request is what the heads for single texts make of a sentence. torch has
one thread, here and in the server. Clients ask again as soon as they are answered; they are this
process, the server is another.
"""

import asyncio
import json
import re
import socket
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Annotated, Any
from urllib.request import urlopen

import numpy as np
import spacy
import torch
import typer
from spacy.language import Language

from spacy_bert_heads.annotate.records import Columns
from spacy_bert_heads.encoder import inference
from spacy_bert_heads.encoder.model import encoder_of, pack, shim_of
from spacy_bert_heads.heads.pair_head import BertPairHead

ROOT = Path(__file__).parent.parent
CLIENTS = (1, 8, 32)


def main(
    model: Annotated[Path, typer.Argument(help="A pipeline")],
    seconds: Annotated[float, typer.Option(help="Of each measurement")] = 20,
    soak: Annotated[float, typer.Option(help="Seconds at 32 clients, with memory")] = 0,
    latency: Annotated[bool, typer.Option("--latency", help="Measure this alone")] = False,
) -> None:
    """Measure."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    nlp = spacy.load(model, config={"components": without_texts(model)})
    texts = read_sentences()
    words = np.mean([len(text.split()) for text in texts])
    print(f"{len(texts)} sentences of {words:.1f} words")
    with tempfile.TemporaryDirectory() as folder:
        nlp.to_disk(folder)
        if soak:
            with Server(folder) as server:
                run_soak(server, nlp, texts, soak)
            return
        show_latency(nlp, texts[:12])
        if latency:
            return
        print(f"\n{'':14}{'clients':>8}{'requests/s':>12}{'p50 ms':>9}{'p95 ms':>9}")
        for number in CLIENTS:
            show("thread pool", number, in_threads(nlp, texts, number, seconds), seconds)
            with Server(folder) as server:
                asyncio.run(ask_all(server.port, texts, number, 2))
                took = asyncio.run(ask_all(server.port, texts, number, seconds))
            show("bert serve", number, took, seconds)


def without_texts(model: Path) -> dict[str, Any]:
    """Settings by which pair heads ask nothing."""
    heads = [pair for pair in spacy.load(model).pipeline if isinstance(pair[1], BertPairHead)]
    return {name: {head.input_name: []} for name, head in heads}


def read_sentences() -> list[str]:
    lines = (ROOT / "assets" / "train.jsonl").read_text("utf8").splitlines()
    found = [re.split(r"(?<=[.!?]) ", json.loads(line)["text"]) for line in lines]
    return [sentence for sentences in found for sentence in sentences if len(sentence) > 20]


# --- one sentence at a time


def show_latency(nlp: Language, texts: list[str], rounds: int = 40) -> None:
    """Compare CPU times, each the least of many rounds in which all take turns: other programs
    disturb that less than times of a clock."""
    encoder = nlp.get_pipe("bert_encoder").model
    plain = encoder_of(encoder).model
    fuse, inference.fuse_layers = inference.fuse_layers, lambda model: False
    packed = inference.for_inference(encoder_of(encoder), shim_of(encoder).precision).model
    inference.fuse_layers = fuse
    heads = [[name] for name in nlp.pipe_names if name in ("bert_textcat", "bert_ner")]
    rows = []
    for text in texts:
        ids = torch.from_numpy(pack(encoder, [nlp.make_doc(text)]).input_ids)[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        def forward(module: Any, inputs: dict[str, Any] = inputs) -> None:
            with torch.no_grad():
                module(**inputs)

        def annotate(names: list[str], text: str = text) -> None:
            nlp(text, disable=[name for name in nlp.pipe_names[1:] if name not in names])

        calls = [partial(forward, plain), partial(forward, packed)]
        calls += [partial(annotate, names) for names in (*heads, nlp.pipe_names)]
        times = np.zeros((rounds, len(calls)))
        for i in range(rounds):
            for j, call in enumerate(calls):
                call()  # so that each finds its own weights in the processor's cache
                start = process_time()
                call()
                times[i, j] = process_time() - start
        rows.append([ids.shape[1], *times.min(axis=0) * 1000])
    print("\nCPU time in ms of one sentence, mean over sentences of the least of each")
    pieces, hf, same, *ours = np.mean(rows, axis=0)
    print(f"  wordpieces {pieces:.1f}")
    print(f"  forward pass, transformers' code and weights         {hf:.2f}")
    print(f"  forward pass, transformers' code, our packed weights {same:.2f}")
    for (*_, name), took in zip([*heads, ["all heads"]], ours, strict=True):
        print(f"  nlp(text), {name:12} {took:.2f}: {took / hf:.2f} and {took / same:.2f} times")


# --- many clients


def in_threads(nlp: Language, texts: list[str], number: int, seconds: float) -> list[float]:
    """The seconds of each `nlp(text)`, in a pool of threads."""
    end = perf_counter() + seconds

    def work(first: int) -> list[float]:
        took, i = [], first
        while (start := perf_counter()) < end:
            nlp(texts[i % len(texts)])
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
        words = [sys.executable, "-m", "spacy", "bert", "serve", model, "--threads", "1"]
        self._process = subprocess.Popen(
            [*words, "--port", str(self.port)], stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> "Server":
        while self._process.poll() is None:
            with suppress(OSError):
                self.get("/health")
                return self
            sleep(0.2)
        raise SystemExit("the server did not start")

    def __exit__(self, *error: Any) -> None:
        self._process.terminate()
        self._process.wait()

    def get(self, path: str) -> str:
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.read().decode()

    @property
    def memory(self) -> float:
        """Resident memory in MB."""
        found = re.search(r"^process_resident_memory_bytes (\S+)", self.get("/metrics"), re.M)
        assert found is not None
        return float(found[1]) / 1e6


async def ask_all(
    port: int, texts: list[str], number: int, seconds: float, check: Any = lambda text, body: None
) -> list[float]:
    """The seconds of each request of so many clients; `check` sees each text with its answer."""
    end = perf_counter() + seconds

    async def client(first: int) -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        took, i = [], first
        while (start := perf_counter()) < end:
            text = texts[i % len(texts)]
            body = json.dumps({"texts": text}).encode()
            writer.write(
                b"POST /annotate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
                b"\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
            answer = await reader.readexactly(length)
            took.append(perf_counter() - start)
            check(text, answer)
            i += number
        writer.close()
        return took

    found = await asyncio.gather(*map(client, range(number)))
    return [one for some in found for one in some]


def run_soak(server: Server, nlp: Language, texts: list[str], seconds: float) -> None:
    """Ask for minutes, and look at memory and answers."""
    columns = Columns.of(nlp)
    expected = {text: columns.read(nlp(text)) for text in texts}
    worst, wrong, num, took, start = 0.0, 0, 0, [], perf_counter()

    def check(text: str, body: bytes) -> None:
        nonlocal worst, wrong, num
        num += 1
        (found,) = json.loads(body)["results"]
        distance = difference(found, expected[text])
        wrong += distance == np.inf
        worst = max(worst, distance if distance < np.inf else 0.0)

    while perf_counter() - start < seconds:
        took += asyncio.run(ask_all(server.port, texts, CLIENTS[-1], min(seconds, 15), check))
        print(
            f"{perf_counter() - start:6.0f} s {num:8,} answers {server.memory:8.1f} MB", flush=True
        )
    show("bert serve", CLIENTS[-1], took, perf_counter() - start)
    print(f"{wrong} answers differ; largest difference of a probability: {worst:.1e}")


def difference(one: Any, other: Any) -> float:
    """The largest difference of two numbers at the same place; infinite for anything else."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    if type(one) is not type(other):
        return np.inf
    if isinstance(one, dict):
        same = one.keys() == other.keys()
        return max((difference(one[k], other[k]) for k in one), default=0.0) if same else np.inf
    if isinstance(one, list):
        same = len(one) == len(other)
        pairs = zip(one, other, strict=False)
        return max((difference(*pair) for pair in pairs), default=0.0) if same else np.inf
    return 0.0 if one == other else np.inf


if __name__ == "__main__":
    typer.run(main)
