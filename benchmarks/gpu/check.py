"""What only a GPU can show: that pipelines find and learn the same there, that memory stays flat,
and where the host waits for the device.

    python benchmarks/gpu/check.py ENCODER
    python benchmarks/gpu/check.py ENCODER --device cpu --docs 2000    # a test of this script

It needs no data set. Every check prints a line; one that fails says so and the others go on. Heads
are random, which changes nothing here. For torch 2.10 and later, transformers 4 or 5.
"""

import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import spacy
import torch
import torch.nn.functional as F
import transformers
import typer
from spacy.language import Language
from spacy.training import Example
from thinc.api import Adam
from torch.profiler import ProfilerActivity, profile

from spacy_bert_heads.encoder.attention import PackedAttention, uses_varlen
from spacy_bert_heads.encoder.buckets import BucketedBatch
from spacy_bert_heads.encoder.encoder import Encoder
from spacy_bert_heads.encoder.loading import load_checkpoint
from spacy_bert_heads.encoder.model import checkpoint_of, encoder_of, shim_of
from spacy_bert_heads.encoder.shim import autocast_for
from spacy_bert_heads.pairs import make_answer, make_verdict
from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.settings import read_settings

BENCHMARKS = Path(__file__).parents[1]
sys.path.append(str(BENCHMARKS))
TEXT = "The coaster Hanne Lind left Skagen on Tuesday with 40 tonnes of timber for Hull."
OTHER = "Fire broke out in the engine room; nobody was hurt."


def main(
    encoder: Annotated[str, typer.Argument(help="The checkpoint")],
    device: str = "cuda",
    docs: Annotated[int, typer.Option(help="Documents that are kept")] = 100_000,
) -> None:
    """Run all checks."""
    use(device)
    versions = [f"{one.__name__} {one.__version__}" for one in (torch, transformers, spacy)]
    print(*versions, torch.cuda.get_device_name() if device == "cuda" else "no GPU", sep=", ")
    checks: list[tuple[str, Callable[[], str]]] = [
        ("attention", lambda: compare_attention(device)),
        ("the same results", lambda: compare_results(encoder, device)),
        ("the same after ten steps", lambda: compare_learning(encoder, device)),
        *(
            (f"learning in {precision}", lambda p=precision: learn(encoder, device, p))
            for precision in ("fp32", "bf16", "fp16")
        ),
        ("buckets", lambda: weigh_buckets(encoder, device)),
        ("speed and memory", lambda: keep_docs(encoder, device, docs)),
        *(
            (f"pretraining, length {n}", lambda n=n: profile_pretraining(encoder, device, n))
            for n in (128, 512)
        ),
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


def compare_attention(device: str) -> str:
    """Sequences of many lengths at once, beside each by itself in fp32: on a GPU this is the kernel
    for sequences of any length ("varlen"), which predictions use."""
    n, longest = (256, 512) if device == "cuda" else (8, 64)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    lengths = torch.randint(1, longest + 1, (n,), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(longest) < lengths[:, None]).flatten().to(device)
    zeros = torch.zeros(n * longest, dtype=torch.long, device=device)
    layout = BucketedBatch(zeros, zeros, mask, zeros, [(n, longest)], [True])
    q, k, v = torch.randn(3, n * longest, 12, 64, device=device, dtype=dtype)
    with torch.inference_mode():
        if device == "cuda" and not uses_varlen(q):
            raise RuntimeError("the kernel for sequences of any length is not used")
        found = PackedAttention(layout).attend(q, k, v).unflatten(0, (n, longest))
        ours = clock(device, lambda: PackedAttention(layout).attend(q, k, v))
        rows = [one.float().unflatten(0, (n, longest)).transpose(1, 2) for one in (q, k, v)]
        worst = 0.0
        for i, length in enumerate(lengths.tolist()):
            parts = (row[i : i + 1, :, :length] for row in rows)
            alone = F.scaled_dot_product_attention(*parts)[0].transpose(0, 1)
            worst = max(worst, float((alone - found[i, :length]).abs().max()))
    if worst > (0.05 if dtype == torch.bfloat16 else 1e-5):
        raise RuntimeError(f"results differ by {worst:.1e}")
    return f"{n} sequences of 1 to {longest}: {1e3 * ours:.2f} ms, differs by {worst:.1e} at most"


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
        heads = [shim_of(nlp.get_pipe(name).model).module for name in nlp.pipe_names[1:]]
        for module in (part for whole in (bert, *heads) for part in whole.modules()):
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout_prob"):  # of attention in transformers 4
                module.dropout_prob = 0.0
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


def weigh_buckets(encoder: str, device: str) -> str:
    """What a bucket costs by itself, in positions: what `Encoder.bucket_overhead` should be. The
    same positions are run as one bucket and as eight; with a graph, because without one a GPU in
    half precision has no buckets."""
    bert = Encoder(load_checkpoint(encoder)).to(device).eval()
    n = 512 if device == "cuda" else 32
    ids = torch.randint(1000, 2000, (n * 32,), device=device)
    positions = torch.arange(32, device=device).repeat(n)
    best = []
    for k in (1, 8):
        shapes = [(n // k, 32)] * k
        layout = BucketedBatch(ids, torch.zeros_like(ids), ids > 0, positions, shapes, [False] * k)
        with autocast_for("auto", ids.device):
            best.append(min(clock(device, partial(bert.run, layout)) for _ in range(20)))
    one, eight = best
    overhead = (eight - one) / 7 / (one / ids.numel())
    return (
        f"{ids.numel():,} positions: {1e3 * one:.2f} ms in a bucket, {1e3 * eight:.2f} in eight: "
        f"each costs {overhead:,.0f} positions; {bert.bucket_overhead:,} are taken"
    )


def clock(device: str, work: Callable[[], Any]) -> float:
    """The seconds of some work, until the device has done it."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def keep_docs(encoder: str, device: str, n_docs: int) -> str:
    """Documents a second, all kept in a list, beside spaCy's tokenizer and the encoder's alone."""
    nlp = build(encoder, precision="bf16" if device == "cuda" else "fp32")
    nlp.disable_pipes("bert_nli", "bert_qa")
    texts = [f"{TEXT} {OTHER}"] * n_docs
    tokenizer = checkpoint_of(nlp.get_pipe("bert_encoder").model).tokenizer.tokenizer
    blank, few = spacy.blank("en"), texts[:5000]
    floors = {
        "spaCy's tokenizer": lambda: list(blank.pipe(few)),
        "the encoder's": lambda: tokenizer.encode_batch(few),
    }
    alone = {name: len(few) / clock(device, work) for name, work in floors.items()}
    kept, memory = [], []
    list(nlp.pipe(texts[:500]))  # warm

    def keep() -> None:
        for doc in nlp.pipe(texts, batch_size=1000):
            kept.append(doc)
            if len(kept) in (1000, n_docs) and device == "cuda":
                memory.append(f"{torch.cuda.memory_allocated() / 2**20:,.1f} MiB")

    speed = n_docs / clock(device, keep)
    parts = [f"{speed:,.0f} Docs/s, {speed * len(kept[0]):,.0f} words/s with two heads"]
    parts += [f"{name} alone {floor:,.0f}" for name, floor in alone.items()]
    if memory:
        parts.append(f"on the GPU after 1,000 Docs and after all: {' and '.join(memory)}")
    return "; ".join(parts)


def profile_pretraining(encoder: str, device: str, length: int) -> str:
    """The share of matrix products in the steps of `bert pretrain`, and wordpieces a second
    without and with the profiler: 8 steps each, after 4."""
    is_cuda = device == "cuda"
    chance, words = random.Random(0), f"{TEXT} {OTHER}".split()
    documents = 2000 if is_cuda else 40
    texts = [" ".join(chance.choices(words, k=1000)) for _ in range(documents)]
    prof = profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_cuda)
    times = {}

    def on_step(step: int) -> None:
        wait(device)
        times[step] = time.perf_counter()
        if step == 12:
            prof.start()
        if step == 20:
            prof.stop()

    with TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.txt"
        raw.write_text("\n\n".join(texts))
        tokens = 65536 if is_cuda else 1024
        settings: dict[str, Any] = {
            "paths.raw": str(raw),
            "paths.encoder": encoder,
            "text.workers": 1,
        }
        settings |= {"paths.cache": f"{folder}/cache", "training.precision": "bf16"}
        settings |= {"training.phases": [{"max_length": length, "share": 1.0}]}
        settings |= {"training.batch_tokens": tokens, "training.max_batch_tokens": tokens}
        settings |= {"training.max_steps": 20, "training.eval_frequency": 1000}
        config = read_settings(BENCHMARKS.parent / "configs" / "pretrain.cfg", settings)
        gpu_id = 0 if is_cuda else -1
        options: dict[str, Any] = {"gpu_id": gpu_id, "say": lambda text: None}
        report = pretrain(config, Path(folder) / "out", on_step=on_step, **options)
    own = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    # Operators alone: on a GPU kernels are listed beside them, with the same time once more.
    operators = [e for e in prof.key_averages() if e.device_type == torch.autograd.DeviceType.CPU]
    total = sum(getattr(event, own) for event in operators)
    spent = {event.key: getattr(event, own) / total for event in operators}
    products = sum(spent.get(f"aten::{name}", 0) for name in ("mm", "addmm", "bmm", "baddbmm"))
    most = sorted(spent, key=spent.__getitem__, reverse=True)[:5]
    a_step = report.tokens / 20
    return (
        f"products {products:.0%} ({', '.join(f'{key} {spent[key]:.0%}' for key in most)}); "
        f"{8 * a_step / (times[12] - times[4]):,.0f} wordpieces/s, with the profiler "
        f"{8 * a_step / (times[20] - times[12]):,.0f}"
    )


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
