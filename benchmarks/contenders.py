"""What `speed.py` measures: each contender sets one task up and takes rounds over a list of inputs.

This file is also the process that a contender works in. It gets a JSON object as its argument, and
may be run by an interpreter of another environment, so everything beyond the standard library is
imported where it is needed. Heads are not trained.
"""

import json
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

WINDOW, OVERLAP = 256, 64  # of long texts: the defaults of bert_encoder
QA_WINDOW, QA_OVERLAP = 384, 128  # BERT's own
TOKEN_BUDGET, MAX_ANSWER = 4096, 30  # wordpieces
HEADS = {"ner": "bert_ner", "textcat": "bert_textcat", "nli": "bert_nli", "qa": "bert_qa"}
LABELS = {
    "ner": ["corporation", "creative-work", "group", "location", "person", "product"],
    "textcat": ["negative", "positive"],
    "nli": ["contradiction", "entailment", "neutral"],
    "qa": [],
}
RATE, BATCH_SIZE = 5e-5, 32
# What is measured: `task`, `inputs`, `encoder`, `device`; the contender's name in two, `system` and
# `variant`; the `heads` of ours; and `work`, the folder of our pipeline with all heads and, by
# task, of the same heads for Hugging Face's classes.
Spec = SimpleNamespace
Run = Callable[[Iterable[Any]], Iterable[Any]]  # inputs to results, lazily or at once


# --- ours


def start_ours(spec: Spec) -> Run:
    """spacy_bert_heads, loaded from disk as its users do. variant: the precision."""
    import spacy

    settings: dict[str, Any] = {"precision": spec.variant}
    if spec.heads == ["bert_qa"]:
        settings |= {"window": QA_WINDOW, "stride": QA_WINDOW - QA_OVERLAP}
    config = {"components": {"bert_encoder": {"model": settings}}}
    exclude = [name for name in HEADS.values() if name not in spec.heads]
    nlp = spacy.load(f"{spec.work}/pipeline", exclude=exclude, config=config)
    if spec.task == "train":
        return train_spacy(nlp)
    asked = {"nli": "hypotheses", "qa": "questions"}.get(spec.task)
    if asked is None:
        return nlp.pipe
    return lambda inputs: nlp.pipe(((text, {asked: more}) for text, more in inputs), as_tuples=True)


# --- spaCy's two


def start_spacy(spec: Spec) -> Run:
    """spacy-transformers or spacy-curated-transformers under spaCy's own components, with the
    settings of `spacy init config --gpu`."""
    import spacy
    from spacy.tokens import Doc
    from spacy.training import Example

    task = "textcat" if spec.task == "textcat" else "ner"
    nlp = spacy.blank("en")
    nlp.batch_size = 128
    is_curated = spec.system == "spacy-curated-transformers"
    listener = (add_curated_transformer if is_curated else add_transformer)(nlp, spec.encoder)
    if task == "ner":
        parser = {"@architectures": "spacy.TransitionBasedParser.v2", "state_type": "ner"}
        parser |= {"extra_state_tokens": False, "hidden_width": 64, "maxout_pieces": 2}
        nlp.add_pipe("ner", config={"model": {**parser, "use_upper": False, "tok2vec": listener}})
    else:
        classifier = {"@architectures": "spacy.TextCatCNN.v2", "exclusive_classes": True}
        nlp.add_pipe("textcat", config={"model": {**classifier, "tok2vec": listener}})
    for label in LABELS[task]:
        nlp.get_pipe(task).add_label(label)
    sample = Doc(nlp.vocab, words=["Some", "words"], ents=["O", "O"])
    sample.cats = {label: float(i == 0) for i, label in enumerate(LABELS["textcat"])}
    nlp.initialize(lambda: [Example(Doc(nlp.vocab, words=["Some", "words"]), sample)])
    return train_spacy(nlp) if spec.task == "train" else nlp.pipe


def add_transformer(nlp: Any, encoder: str) -> dict[str, Any]:
    """The component with its defaults, and its listener's config."""
    import spacy_transformers  # noqa: F401  (or say that it is missing)

    nlp.add_pipe("transformer", config={"model": {"name": encoder}})
    pooling = {"@layers": "reduce_mean.v1"}
    listener = "spacy-transformers.TransformerListener.v1"
    return {"@architectures": listener, "pooling": pooling, "grad_factor": 1.0}


def add_curated_transformer(nlp: Any, encoder: str) -> dict[str, Any]:
    """As above. Its models are built from sizes, of BERT here."""
    import spacy_curated_transformers  # noqa: F401

    sizes = json.loads((Path(encoder) / "config.json").read_text(encoding="utf8"))
    architecture = "spacy-curated-transformers.{}.v1".format
    names = ("vocab_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings")
    model = {
        "@architectures": architecture("BertTransformer"),
        "hidden_width": sizes["hidden_size"],
        "intermediate_width": sizes["intermediate_size"],
        **{name: sizes[name] for name in names},
        "piece_encoder": {"@architectures": architecture("BertWordpieceEncoder")},
        "with_spans": {"@architectures": architecture("WithStridedSpans")},
    }
    nlp.add_pipe("curated_transformer", name="transformer", config={"model": model})
    loaders = {"encoder": "HFTransformerEncoderLoader", "piecer": "HFPieceEncoderLoader"}
    nlp.config["initialize"]["components"]["transformer"] = {
        f"{part}_loader": {"@model_loaders": architecture(loader), "name": encoder}
        for part, loader in loaders.items()
    }
    return {
        "@architectures": architecture("LastTransformerLayerListener"),
        "width": sizes["hidden_size"],
        "pooling": {"@layers": "reduce_mean.v1"},
        "upstream": "transformer",
    }


def train_spacy(nlp: Any) -> Run:
    """spaCy's own loop, with fresh Examples for every epoch as its reader makes them."""
    from spacy.tokens import Doc
    from spacy.training import Example
    from spacy.util import minibatch
    from thinc.api import Adam

    optimizer = Adam(RATE, L2=0.01, L2_is_weight_decay=True, grad_clip=1.0, use_averages=False)

    def run(sentences: Iterable[Any]) -> Iterator[None]:
        for batch in minibatch(sentences, BATCH_SIZE):
            docs = [(Doc(nlp.vocab, words=w), Doc(nlp.vocab, words=w, ents=t)) for w, t in batch]
            nlp.update([Example(*pair) for pair in docs], sgd=optimizer)
            yield

    return run


# --- Hugging Face's


def start_pipeline(spec: Spec) -> Run:
    """transformers.pipeline. variant: "b" and the batch size."""
    from transformers import pipeline

    names = {"ner": "token-classification", "qa": "question-answering"}
    name, size = names.get(spec.task, "text-classification"), int(spec.variant.removeprefix("b"))
    pipe = pipeline(name, f"{spec.work}/{spec.task}", device=spec.device, batch_size=size)
    options: dict[str, Any] = {"truncation": True}
    if spec.task == "ner":
        options = {"aggregation_strategy": "first", "stride": OVERLAP}
    if spec.task == "qa":
        options = {"max_seq_len": QA_WINDOW, "doc_stride": QA_OVERLAP, "max_answer_len": MAX_ANSWER}
    if spec.task not in ("nli", "qa"):
        return lambda texts: pipe(list(texts), **options)
    first, second = ("text", "text_pair") if spec.task == "nli" else ("context", "question")
    return lambda inputs: pipe(
        [{first: text, second: one} for text, more in inputs for one in more], **options
    )


def start_trainer(spec: Spec) -> Run:
    """transformers.Trainer, on sentences that are tokenized before, padded to the longest of a
    batch. variant: "grouped" for batches of like length, "bf16", or nothing."""
    from plain_loops import tag_words
    from transformers import (
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainingArguments,
    )

    model, _, encode = tag_words(spec.encoder, spec.inputs)
    rows = [{k: v[0].tolist() for k, v in encode([item]).items()} for item in spec.inputs]
    grouped: dict[str, Any] = {"train_sampling_strategy": "group_by_length"}
    if hasattr(TrainingArguments, "group_by_length"):  # before transformers 5
        grouped = {"group_by_length": True}
    arguments = TrainingArguments(
        f"{spec.work}/trainer",
        per_device_train_batch_size=BATCH_SIZE,
        num_train_epochs=1,
        learning_rate=RATE,
        weight_decay=0.01,
        bf16=spec.variant == "bf16",
        use_cpu=spec.device == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **(grouped if spec.variant == "grouped" else {}),
    )
    collate = DataCollatorForTokenClassification(AutoTokenizer.from_pretrained(spec.encoder))
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=rows)

    def run(sentences: Iterable[Any]) -> list[None]:
        trainer.train_dataset = rows[: len(list(sentences))]
        trainer.train()
        return []

    return run


def start_by_hand(spec: Spec) -> Run:
    """NER as a good engineer would write it: the fast tokenizer over all texts, windows of like
    length under a budget, tags of words in plain Python. variant: the precision of the weights."""
    import numpy as np
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(f"{spec.work}/ner").eval()
    model.to(spec.device, torch.bfloat16 if spec.variant == "bf16" else torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(f"{spec.work}/ner")
    options = {"truncation": True, "max_length": WINDOW, "stride": OVERLAP}
    options |= {"return_overflowing_tokens": True, "return_offsets_mapping": True}
    names = ("input_ids", "token_type_ids", "attention_mask")

    def run(texts: Iterable[str]) -> list[list[tuple[int, int, str]]]:
        encoded = tokenizer(list(texts), **options)
        lengths = np.asarray([len(ids) for ids in encoded["input_ids"]])
        tags: list[list[tuple[int, int, str]]] = [[] for _ in lengths]
        for rows in batches_by_length(lengths):
            inputs = {k: np.zeros((len(rows), lengths[rows].max()), np.int64) for k in names}
            for name, array in inputs.items():
                for i, row in enumerate(rows):
                    array[i, : lengths[row]] = encoded[name][row]
            tensors = {name: torch.from_numpy(a).to(spec.device) for name, a in inputs.items()}
            with torch.inference_mode():
                best = model(**tensors).logits.argmax(-1).tolist()
            for row, found in zip(rows, best, strict=True):
                words, offsets = encoded.word_ids(row), encoded["offset_mapping"][row]
                for i, word in enumerate(words):
                    if word is not None and word != words[i - 1]:
                        tags[row].append((*offsets[i], model.config.id2label[found[i]]))
        return [[one for one in row if one[2] != "O"] for row in tags]

    return run


def batches_by_length(lengths: Any) -> Iterator[list[int]]:
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > TOKEN_BUDGET:
            yield batch
            batch = []
        batch.append(row)
    yield batch


# --- others


def start_edsnlp(spec: Spec) -> Run:
    """EDS-NLP's recognizer on the same encoder, its tags by a softmax over each word's."""
    import edsnlp
    from edsnlp.pipes import ner_crf, transformer
    from spacy.tokens import Span

    embedding = transformer(model=spec.encoder, window=WINDOW, stride=WINDOW - OVERLAP)
    options = {"mode": "independent", "target_span_getter": ["ents"], "span_setter": ["ents"]}
    nlp = edsnlp.blank("eds")
    nlp.add_pipe(ner_crf(embedding=embedding, **options), name="ner")
    doc = nlp.make_doc("a b c d e f")
    doc.ents = [Span(doc, i, i + 1, label=label) for i, label in enumerate(LABELS["ner"])]
    nlp.post_init([doc])
    return nlp.pipe


def start_gliner(spec: Spec) -> Run:
    """GLiNER with its default head over the same encoder, asked for all labels."""
    from gliner import GLiNER

    model = GLiNER.from_config({"model_type": "gliner", "model_name": spec.encoder})
    return lambda texts: model.inference(list(texts), LABELS["ner"], batch_size=16)


def start_setfit(spec: Spec) -> Run:
    """SetFit: the mean of the last layer, and a logistic regression."""
    from setfit import SetFitModel

    model = SetFitModel.from_pretrained(spec.encoder)
    model.model_head.fit(model.encode(spec.inputs[:8]), LABELS["textcat"] * 4)
    return lambda texts: model.predict(list(texts))


# --- the process

START: dict[str, Callable[[Spec], Run]] = {
    "ours": start_ours,
    "spacy-transformers": start_spacy,
    "spacy-curated-transformers": start_spacy,
    "hf-pipeline": start_pipeline,
    "hf-trainer": start_trainer,
    "by-hand": start_by_hand,
    "edsnlp": start_edsnlp,
    "gliner": start_gliner,
    "setfit": start_setfit,
}


def peak_rss() -> float:
    """In MiB, of this process. (The counter of `resource` would begin at its parent's.)"""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on a Mac
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10


def serve(
    *, inputs: str, warm_up: int, threads: int, cpu_time: bool, device: str, **spec: Any
) -> None:
    """Set a contender up and write the versions of its packages; then for each line of the input
    take a round and write its seconds and the peak of memory in MiB. inputs: a file of JSON."""
    import torch

    # Libraries print too: that goes to the errors.
    replies = os.fdopen(os.dup(1), "w", encoding="utf8")
    os.dup2(2, 1)
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    is_cuda = device == "cuda"
    if is_cuda and spec["system"].startswith(("ours", "spacy")):
        from thinc.api import require_gpu, set_gpu_allocator

        require_gpu()
        set_gpu_allocator("pytorch")  # as in the configs of `init-config --gpu`
    synchronize = torch.cuda.synchronize if is_cuda else lambda: None
    clock = time.process_time if cpu_time else time.perf_counter
    items = json.loads(Path(inputs).read_text(encoding="utf8"))
    run = START[spec["system"]](Spec(inputs=items, device=device, **spec))
    list(run(items[:warm_up]))
    names = {"torch", "transformers", "spacy", spec["system"]}
    reply: dict[str, Any] = {d.name: d.version for d in distributions() if d.name in names}
    print(json.dumps(reply), file=replies, flush=True)
    for _ in sys.stdin:
        synchronize()
        begin = clock()
        deque(run(items), maxlen=0)
        synchronize()
        peak = torch.cuda.max_memory_allocated() / 2**20 if is_cuda else peak_rss()
        print(json.dumps({"seconds": clock() - begin, "peak_mib": peak}), file=replies, flush=True)


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
