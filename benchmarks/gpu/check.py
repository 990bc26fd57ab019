"""What only a GPU can show: that pipelines find and learn the same there, that memory stays flat,
and where the host waits for the device.

    python benchmarks/gpu/check.py ENCODER
    python benchmarks/gpu/check.py ENCODER --device cpu --docs 2000    # a test of this script

Every check prints a line; one that fails says so and the others go on. Heads are random, which
changes nothing here.
"""

import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import spacy
import torch
import typer
from spacy.language import Language
from spacy.training import Example
from thinc.api import Adam

from spacy_bert_heads.encoder.buckets import BucketedBatch
from spacy_bert_heads.encoder.encoder import Encoder
from spacy_bert_heads.encoder.loading import load_checkpoint
from spacy_bert_heads.encoder.model import checkpoint_of, encoder_of
from spacy_bert_heads.encoder.shim import autocast_for
from spacy_bert_heads.pairs import make_answer, make_verdict

TEXT = "The coaster Hanne Lind left Skagen on Tuesday with 40 tonnes of timber for Hull."
OTHER = "Fire broke out in the engine room; nobody was hurt."
SHAPES = ((4096, 384, 1536), (4096, 768, 3072), (16384, 768, 3072))  # rows, in, out


def main(
    encoder: Annotated[str, typer.Argument(help="The checkpoint")],
    device: str = "cuda",
    docs: Annotated[int, typer.Option(help="Documents that are kept")] = 100_000,
) -> None:
    """Run all checks."""
    use(device)
    print(f"torch {torch.__version__}, spaCy {spacy.__version__}", end="")
    print(f", {torch.cuda.get_device_name()}" if device == "cuda" else ", no GPU")
    checks: list[tuple[str, Callable[[], str]]] = [
        ("the same results", lambda: compare_results(encoder, device)),
        ("the same after ten steps", lambda: compare_learning(encoder, device)),
        *(
            (f"learning in {precision}", lambda p=precision: learn(encoder, device, p))
            for precision in ("fp32", "bf16", "fp16")
        ),
        ("matrix products", lambda: multiply(device)),
        ("buckets", lambda: weigh_buckets(encoder, device)),
        ("speed and memory", lambda: keep_docs(encoder, device, docs)),
        ("waits in nlp.pipe", lambda: count_waits(encoder, device)),
    ]
    for name, check in checks:
        try:
            print(f"{name}: {check()}", flush=True)
        except Exception:  # the other checks go on: a machine is lent for minutes
            print(f"{name}: FAILED\n{traceback.format_exc()}", flush=True)


def use(device: str) -> None:
    """Where pipelines are loaded and made from now on."""
    if device == "cuda":
        spacy.require_gpu()
    else:
        spacy.require_cpu()


def build(encoder: str, *, precision: str = "fp32", **model: Any) -> Language:
    """Four heads on one encoder, with random weights, the same every time."""
    nlp = spacy.blank("en")
    settings = {"name": encoder, "precision": precision, "max_batch_tokens": 32768, **model}
    nlp.add_pipe("bert_encoder", config={"model": settings})
    weighted = {"layers": "all", "combine": "weighted"}
    nlp.add_pipe("bert_ner", config={"model": {"tok2vec": weighted, "dropout": 0.0}})
    for head in ("textcat", "nli", "qa"):
        nlp.add_pipe(f"bert_{head}")
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


def make_examples(nlp: Language) -> list[Example]:
    examples = []
    for text, label in ((TEXT, "voyage"), (OTHER, "fire")):
        doc = nlp.make_doc(text)
        doc.set_ents([doc.char_span(0, 4, label="X", alignment_mode="expand")])
        doc.cats = {one: float(one == label) for one in ("voyage", "fire")}
        doc._.hypotheses = ["She left.", "She sank."]
        doc._.nli = [make_verdict("entailment"), make_verdict("contradiction")]
        doc._.questions = ["What?"]
        doc._.answers = [make_answer(doc, 0, 4)]
        predicted = nlp.make_doc(text)
        predicted._.hypotheses, predicted._.questions = doc._.hypotheses, doc._.questions
        examples.append(Example(predicted, doc))
    return examples


def annotate(nlp: Language) -> list[float]:
    """Every number that the heads write, for a few Docs."""
    docs = []
    for text in (TEXT, OTHER, f"{TEXT} {OTHER} " * 40):
        doc = nlp.make_doc(text)
        doc._.hypotheses, doc._.questions = ["She left."], ["What left?"]
        docs.append(doc)
    numbers: list[float] = []
    for doc in nlp.pipe(docs):
        numbers += doc.cats.values()
        numbers += (p for verdict in doc._.nli for p in verdict["scores"].values())
        numbers += (answer["no_answer_score"] for answer in doc._.answers)
    return numbers


def compare_results(encoder: str, device: str) -> str:
    use("cpu")
    found = []
    with TemporaryDirectory() as folder:
        build(encoder).to_disk(folder)
        expected = np.asarray(annotate(spacy.load(folder)))
        use(device)
        for precision in ("fp32", "bf16"):
            config = {"components": {"bert_encoder": {"model": {"precision": precision}}}}
            difference = np.abs(np.asarray(annotate(spacy.load(folder, config=config))) - expected)
            found.append(f"{precision} probabilities differ by {difference.max():.1e} at the most")
    return "; ".join(found)


def compare_learning(encoder: str, device: str) -> str:
    """Without dropout, so that nothing is random, and of LoRA, whose modules are seen there too."""
    found = {}
    for place in ("cpu", device):
        use(place)
        nlp = build(encoder, adapter="lora", learning_rate_multiplier=10.0)
        bert = encoder_of(nlp.get_pipe("bert_encoder").model)
        for module in bert.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        optimizer = Adam(1e-4, use_averages=False)
        for _ in range(10):
            nlp.update(make_examples(nlp), sgd=optimizer)
        learned = {n: p for n, p in bert.named_parameters() if p.requires_grad}
        found[place] = torch.cat([p.detach().flatten().cpu() for p in learned.values()])
    use(device)
    difference = (found["cpu"] - found[device]).abs().max()
    return f"LoRA's parameters differ by {difference:.1e}, they are {found['cpu'].abs().max():.1e}"


def learn(encoder: str, device: str, precision: str) -> str:
    if device == "cpu" and precision == "fp16":
        return "left out on a CPU"
    nlp = build(encoder, precision=precision)
    optimizer = Adam(5e-5, use_averages=False)
    losses: list[float] = []
    for _ in range(30 if device == "cuda" else 3):
        step: dict[str, float] = {}
        nlp.update(make_examples(nlp), sgd=optimizer, losses=step)
        losses.append(sum(value for name, value in step.items() if name != "bert_encoder"))
    return f"the heads' losses go from {losses[0]:.3f} to {losses[-1]:.3f}"


def multiply(device: str) -> str:
    """The bf16 rate of the shapes of MiniLM and BERT base: the ceiling of everything else."""
    rates = []
    for rows, width, out in SHAPES if device == "cuda" else SHAPES[:1]:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        a = torch.randn(rows, width, device=device, dtype=dtype)
        b = torch.randn(width, out, device=device, dtype=dtype)
        n = 50 if device == "cuda" else 3
        for _ in range(3):
            a @ b
        wait(device)
        start = time.perf_counter()
        for _ in range(n):
            a @ b
        wait(device)
        seconds = time.perf_counter() - start
        rates.append(f"{rows} x {width} x {out}: {2 * rows * width * out * n / seconds / 1e12:.2f}")
    return "TFLOP/s, " + "; ".join(rates)


def weigh_buckets(encoder: str, device: str) -> str:
    """What a bucket costs by itself, in positions, to predict: what `Encoder.bucket_overhead`
    should be. The same positions are run as one bucket and as eight."""
    bert = Encoder(load_checkpoint(encoder)).to(device).eval()
    n_sequences = 512 if device == "cuda" else 32
    ids = torch.randint(1000, 2000, (n_sequences * 32,), device=device)
    positions = torch.arange(32, device=device).repeat(n_sequences)
    best = []
    for n_buckets in (1, 8):
        shapes = [(n_sequences // n_buckets, 32)] * n_buckets
        layout = BucketedBatch(
            ids, torch.zeros_like(ids), ids > 0, positions, shapes, [False] * n_buckets
        )
        times = []
        with torch.no_grad(), autocast_for("auto", ids.device):
            for _ in range(20):
                wait(device)
                start = time.perf_counter()
                bert.run(layout)
                wait(device)
                times.append(time.perf_counter() - start)
        best.append(min(times))
    one, eight = best
    overhead = (eight - one) / 7 / (one / ids.numel())
    return (
        f"{ids.numel():,} positions: {1e3 * one:.2f} ms in a bucket, {1e3 * eight:.2f} in eight: "
        f"each costs {overhead:,.0f} positions; {bert.bucket_overhead:,} are taken"
    )


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def keep_docs(encoder: str, device: str, n_docs: int) -> str:
    """Documents a second, all kept in a list, beside spaCy's tokenizer and the encoder's alone."""
    nlp = build(encoder, precision="bf16" if device == "cuda" else "fp32")
    nlp.disable_pipes("bert_nli", "bert_qa")
    texts = [f"{TEXT} {OTHER}"] * n_docs
    tokenizer = checkpoint_of(nlp.get_pipe("bert_encoder").model).tokenizer.tokenizer
    blank = spacy.blank("en")
    few = texts[:5000]
    start = time.perf_counter()
    for _ in blank.pipe(few):
        pass
    floors = [("spaCy's tokenizer", len(few) / (time.perf_counter() - start))]
    start = time.perf_counter()
    tokenizer.encode_batch(few)
    floors.append(("the encoder's", len(few) / (time.perf_counter() - start)))
    kept, memory = [], []
    list(nlp.pipe(texts[:500]))  # warm
    wait(device)
    start = time.perf_counter()
    for doc in nlp.pipe(texts, batch_size=1000):
        kept.append(doc)
        if len(kept) in (1000, n_docs) and device == "cuda":
            memory.append(f"{torch.cuda.memory_allocated() / 2**20:,.1f} MiB")
    speed = n_docs / (time.perf_counter() - start)
    parts = [f"{speed:,.0f} Docs/s with two heads"]
    parts += [f"{name} alone {floor:,.0f}" for name, floor in floors]
    if memory:
        parts.append(f"on the GPU after 1,000 Docs and after all: {' and '.join(memory)}")
    return "; ".join(parts)


def count_waits(encoder: str, device: str) -> str:
    """How often the host waits for the device in a batch: once a head is what results take."""
    if device != "cuda":
        return "left out on a CPU"
    nlp = build(encoder, precision="bf16")
    nlp.disable_pipes("bert_nli", "bert_qa")
    texts = [TEXT, OTHER] * 128
    list(nlp.pipe(texts))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            list(nlp.pipe(texts, batch_size=len(texts)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places: dict[str, int] = {}
    for one in caught:
        if "synchroniz" in str(one.message):
            place = f"{Path(one.filename).name}:{one.lineno}"
            places[place] = places.get(place, 0) + 1
    found = ", ".join(f"{place} {count}" for place, count in places.items())
    return f"{sum(places.values())} in a batch of {len(texts)} Docs ({found})"


if __name__ == "__main__":
    typer.run(main)
