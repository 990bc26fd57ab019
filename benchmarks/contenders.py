"""What `speed.py` measures: each contender sets one task up and answers a list of inputs.

This file is also the process that a contender works in. It reads requests from its standard input,
a line of JSON each, and may be run by an interpreter of another environment, so everything beyond
the standard library is imported where it is needed.
"""

import json
import os
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

# Windows over long texts. NER and textcat: the defaults of bert_encoder. Questions: BERT's own.
WINDOW, OVERLAP = 256, 64
QA_WINDOW, QA_OVERLAP = 384, 128
TOKEN_BUDGET = 4096
MAX_ANSWER = 30  # wordpieces
HEADS = {"ner": "bert_ner", "textcat": "bert_textcat", "nli": "bert_nli", "qa": "bert_qa"}
RATE = 5e-5
BATCH_SIZE = 32
PACKAGES = ("torch", "transformers", "spacy", "spacy-transformers", "spacy-curated-transformers")
INSTALL = {
    "spacy_transformers": "spacy-transformers, which wants transformers<4.53.3: put it into an "
    "environment of its own and name that by --python spacy-transformers=…/bin/python",
    "spacy_curated_transformers": '"spacy-curated-transformers<1"',
}


@dataclass
class Contender:
    """run: inputs to results, lazily or at once. read: a result as plain values, by which
    contenders are compared. spent: seconds in parts of the work, where somebody counts them."""

    run: Callable[[Iterable[Any]], Iterable[Any]]
    read: Callable[[Any], Any] = str
    spent: Counter[str] = field(default_factory=Counter)


class Spec(NamedTuple):
    """What is measured. system and variant: the contender's name in two. pipeline: ours, with all
    heads. checkpoint: the head of the task with the same weights, for Hugging Face's classes."""

    task: str
    system: str
    variant: str
    inputs: list[Any]
    encoder: str
    pipeline: str
    checkpoint: str
    data: str
    device: str
    options: dict[str, Any]


# --- ours


def start_ours(spec: Spec) -> Contender:
    """spacy_bert_heads, loaded from disk as its users do. variant: the precision."""
    nlp = load_ours(spec, HEADS[spec.task])
    read = {"ner": read_entities, "textcat": read_category, "nli": read_verdicts}
    run = nlp.pipe
    if spec.task in ("nli", "qa"):
        asked = {"nli": "hypotheses", "qa": "questions"}[spec.task]

        def run(inputs: Iterable[tuple[str, list[str]]]) -> Iterator[Any]:
            contexts = ((text, {asked: second}) for text, second in inputs)
            return (doc for doc, _ in nlp.pipe(contexts, as_tuples=True))

    return Contender(run, read.get(spec.task, read_answers))


def load_ours(spec: Spec, *heads: str) -> Any:
    import spacy

    settings: dict[str, Any] = {"precision": spec.variant}
    if heads == ("bert_qa",):
        settings |= {"window": QA_WINDOW, "stride": QA_WINDOW - QA_OVERLAP}
    config = {"components": {"bert_encoder": {"model": settings}}}
    exclude = [name for name in HEADS.values() if name not in heads]
    nlp = spacy.load(spec.pipeline, exclude=exclude, config=config)
    if batch_size := spec.options.get("batch_size"):
        nlp.batch_size = batch_size
    nlp.max_length = 10**8
    return nlp


def read_entities(doc: Any) -> Any:
    return [[ent.start_char, ent.end_char, ent.label_] for ent in doc.ents]


def read_category(doc: Any) -> Any:
    return max(doc.cats, key=doc.cats.get)


def read_verdicts(doc: Any) -> Any:
    return [verdict["label"] for verdict in doc._.nli]


def read_answers(doc: Any) -> Any:
    return [answer["text"] for answer in doc._.answers]


def start_joint(spec: Spec) -> Contender:
    """NER, textcat, or both on one encoder."""
    nlp = load_ours(spec, *(HEADS[head] for head in spec.options["heads"]))
    return Contender(nlp.pipe)


def start_overhead(spec: Spec) -> Contender:
    """NER, with the time spent in the encoder's forward pass and in spaCy's tokenizer."""
    from spacy_bert_heads.encoder.encoder import Encoder

    nlp = load_ours(spec, "bert_ner")
    spent: Counter[str] = Counter()
    Encoder.run = timed(Encoder.run, spent, "encoder", spec)
    nlp.make_doc = timed(nlp.make_doc, spent, "tokenizer", spec)
    return Contender(nlp.pipe, spent=spent)


def timed(function: Callable, spent: Counter[str], name: str, spec: Spec) -> Callable:
    """The function, which now counts its seconds."""
    synchronize = synchronizer(spec.device)

    def call(*args: Any, **kwargs: Any) -> Any:
        synchronize()
        begin = clock()
        result = function(*args, **kwargs)
        synchronize()
        spent[name] += clock() - begin
        return result

    return call


# --- spaCy's two


def start_spacy(spec: Spec) -> Contender:
    """spacy-transformers or spacy-curated-transformers under spaCy's own components, with the
    settings of `spacy init config --gpu`."""
    nlp = build_spacy(spec, spec.task)
    return Contender(nlp.pipe, read_entities if spec.task == "ner" else read_category)


def build_spacy(spec: Spec, task: str) -> Any:
    import spacy
    from spacy.tokens import Doc
    from spacy.training import Example

    nlp = spacy.blank("en")
    nlp.batch_size = 128
    add = {
        "spacy-transformers": add_transformer,
        "spacy-curated-transformers": add_curated_transformer,
    }
    listener = add[spec.system](nlp, spec.encoder)
    if task == "ner":
        parser = {"@architectures": "spacy.TransitionBasedParser.v2", "state_type": "ner"}
        parser |= {"extra_state_tokens": False, "hidden_width": 64, "maxout_pieces": 2}
        nlp.add_pipe("ner", config={"model": {**parser, "use_upper": False, "tok2vec": listener}})
    else:
        classifier = {"@architectures": "spacy.TextCatCNN.v2", "exclusive_classes": True}
        nlp.add_pipe("textcat", config={"model": {**classifier, "tok2vec": listener}})
    for label in spec.options["labels"]:
        nlp.get_pipe(task).add_label(label)
    sample = Doc(nlp.vocab, words=["Some", "words"], ents=["O", "O"])
    sample.cats = {label: float(i == 0) for i, label in enumerate(spec.options["labels"])}
    nlp.initialize(lambda: [Example(Doc(nlp.vocab, words=["Some", "words"]), sample)])
    return nlp


def add_transformer(nlp: Any, encoder: str) -> dict[str, Any]:
    """The component with its defaults, and its listener's config."""
    import spacy_transformers  # noqa: F401  (or say that it is missing)

    nlp.add_pipe("transformer", config={"model": {"name": encoder}})
    return {
        "@architectures": "spacy-transformers.TransformerListener.v1",
        "pooling": {"@layers": "reduce_mean.v1"},
        "grad_factor": 1.0,
    }


def add_curated_transformer(nlp: Any, encoder: str) -> dict[str, Any]:
    """As above. Its models are built from sizes, of BERT here."""
    import spacy_curated_transformers  # noqa: F401

    sizes = json.loads((Path(encoder) / "config.json").read_text(encoding="utf8"))
    if sizes["model_type"] != "bert":
        raise ValueError(f"a '{sizes['model_type']}' checkpoint: only BERT's are set up here")
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
    nlp.config["initialize"]["components"]["transformer"] = {
        f"{part}_loader": {"@model_loaders": architecture(loader), "name": encoder}
        for part, loader in (
            ("encoder", "HFTransformerEncoderLoader"),
            ("piecer", "HFPieceEncoderLoader"),
        )
    }
    return {
        "@architectures": architecture("LastTransformerLayerListener"),
        "width": sizes["hidden_size"],
        "pooling": {"@layers": "reduce_mean.v1"},
        "upstream": "transformer",
    }


# --- Hugging Face's pipeline


def start_pipeline(spec: Spec) -> Contender:
    """transformers.pipeline. variant: "b" and the batch size."""
    from transformers import pipeline

    names = {"ner": "token-classification", "qa": "question-answering"}
    name = names.get(spec.task, "text-classification")
    pipe = pipeline(
        name, spec.checkpoint, device=spec.device, batch_size=int(spec.variant.removeprefix("b"))
    )
    if spec.task == "ner":
        options = {"aggregation_strategy": "first", "stride": OVERLAP}
        read = lambda found: [[e["start"], e["end"], e["entity_group"]] for e in found]  # noqa: E731
        return Contender(lambda texts: pipe(list(texts), **options), read)
    if spec.task == "qa":
        options = {"max_seq_len": QA_WINDOW, "doc_stride": QA_OVERLAP, "max_answer_len": MAX_ANSWER}

        def ask(inputs: Iterable[tuple[str, list[str]]]) -> list[Any]:
            return pipe(
                [{"question": q, "context": text} for text, q in pairs_of(inputs)], **options
            )

        return Contender(ask, lambda found: found["answer"])

    def classify(inputs: Iterable[Any]) -> list[Any]:
        if spec.task == "nli":
            inputs = ({"text": text, "text_pair": second} for text, second in pairs_of(inputs))
        return pipe(list(inputs), truncation=True)

    return Contender(classify, lambda found: found["label"])


def pairs_of(inputs: Iterable[tuple[str, list[str]]]) -> list[tuple[str, str]]:
    """Every text with each of its second texts."""
    return [(text, second) for text, texts in inputs for second in texts]


# --- by hand: what a good engineer would write


def start_by_hand(spec: Spec) -> Contender:
    """The fast tokenizer over all texts at once, batches of like length under a budget, weights in
    the precision that is asked for, and results in plain Python. variant: the precision."""
    import transformers
    from torch import bfloat16, float32

    names = {"ner": "TokenClassification", "qa": "QuestionAnswering"}
    auto = getattr(transformers, f"AutoModelFor{names.get(spec.task, 'SequenceClassification')}")
    model = auto.from_pretrained(spec.checkpoint).eval().to(spec.device)
    model.to({"fp32": float32, "bf16": bfloat16}[spec.variant])
    tokenizer = transformers.AutoTokenizer.from_pretrained(spec.checkpoint)
    find = {"ner": find_entities, "qa": find_answers}.get(spec.task, find_classes)
    return Contender(lambda inputs: find(model, tokenizer, list(inputs)), lambda found: found)


def run_sorted(model: Any, encoded: Any) -> list[Any]:
    """The logits of every sequence, in their order: (length, n) or (n,) arrays."""
    import numpy as np
    import torch

    lengths = np.asarray([len(ids) for ids in encoded["input_ids"]])
    names = [name for name in ("input_ids", "token_type_ids", "attention_mask") if name in encoded]
    found: list[Any] = [None] * len(lengths)
    for rows in batches_by_length(lengths):
        longest = int(lengths[rows].max())
        inputs = {name: np.zeros((len(rows), longest), dtype=np.int64) for name in names}
        for name, array in inputs.items():
            for i, row in enumerate(rows):
                array[i, : lengths[row]] = encoded[name][row]
        tensors = {name: torch.from_numpy(a).to(model.device) for name, a in inputs.items()}
        with torch.inference_mode():
            output = model(**tensors)
        if "logits" in output:
            logits = output.logits
        else:
            logits = torch.stack([output.start_logits, output.end_logits], dim=-1)
        logits = logits.float().cpu().numpy()
        for i, row in enumerate(rows):
            found[row] = logits[i, : lengths[row]] if logits.ndim == 3 else logits[i]
    return found


def batches_by_length(lengths: Any) -> Iterator[list[int]]:
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[row] > TOKEN_BUDGET:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def find_classes(model: Any, tokenizer: Any, inputs: list[Any]) -> list[str]:
    """The class of each text or pair. What is longer than the positions is cut off."""
    if isinstance(inputs[0], str):
        encoded = tokenizer(inputs, truncation=True)
    else:
        first, second = zip(*pairs_of(inputs), strict=True)
        encoded = tokenizer(list(first), list(second), truncation=True)
    return [model.config.id2label[int(logits.argmax())] for logits in run_sorted(model, encoded)]


def find_entities(model: Any, tokenizer: Any, texts: list[str]) -> list[list[Any]]:
    """The entities of each text: a word has the tag of its first piece. Where windows overlap, each
    has its half."""
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=WINDOW,
        stride=OVERLAP,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    source = encoded["overflow_to_sample_mapping"]
    tags: list[list[tuple[int, int, str]]] = [[] for _ in texts]
    words: list[int | None] = [None] * len(texts)  # the last one that was read
    for window, logits in enumerate(run_sorted(model, encoded)):
        text = source[window]
        is_first = window == 0 or source[window - 1] != text
        is_last = window + 1 == len(source) or source[window + 1] != text
        offsets, word_ids = encoded["offset_mapping"][window], encoded.word_ids(window)
        best = logits.argmax(axis=-1).tolist()
        begin = 0 if is_first else 1 + OVERLAP // 2
        end = len(best) - (0 if is_last else 1 + OVERLAP // 2)
        for piece in range(begin, end):
            if word_ids[piece] is None:
                continue
            if word_ids[piece] != words[text]:
                words[text] = word_ids[piece]
                tags[text].append((*offsets[piece], model.config.id2label[best[piece]]))
            else:
                start, _, tag = tags[text][-1]
                tags[text][-1] = (start, offsets[piece][1], tag)
    return [join_tags(row) for row in tags]


def join_tags(tags: list[tuple[int, int, str]]) -> list[Any]:
    """BIO tags of words to entities: [first character, end, label]."""
    entities: list[Any] = []
    before = "O"
    for start, end, tag in tags:
        prefix, _, label = tag.partition("-")
        if prefix == "I" and before == label:
            entities[-1][1] = end
        elif prefix != "O":
            entities.append([start, end, label])
        before = label if prefix != "O" else "O"
    return entities


def find_answers(model: Any, tokenizer: Any, inputs: list[Any]) -> list[str]:
    """The best answer to each question, over all windows of its text."""
    import numpy as np

    contexts, questions = zip(*pairs_of(inputs), strict=True)
    encoded = tokenizer(
        list(questions),
        list(contexts),
        truncation="only_second",
        max_length=QA_WINDOW,
        stride=QA_OVERLAP,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    best = [(-np.inf, 0, 0)] * len(questions)
    for window, logits in enumerate(run_sorted(model, encoded)):
        in_context = np.asarray([text == 1 for text in encoded.sequence_ids(window)])
        start, end = np.where(in_context[:, None], logits, -np.inf).T
        # Few starts and ends are worth a look, as in the code of the BERT paper.
        starts, ends = np.argsort(-start)[:20], np.argsort(-end)[:20]
        scores = start[starts][:, None] + end[ends]
        length = ends - starts[:, None]
        scores[(length < 0) | (length >= MAX_ANSWER)] = -np.inf
        i, j = np.unravel_index(scores.argmax(), scores.shape)
        offsets, number = encoded["offset_mapping"][window], encoded["overflow_to_sample_mapping"]
        found = (scores[i, j], offsets[starts[i]][0], offsets[ends[j]][1])
        best[number[window]] = max(best[number[window]], found)
    return [text[start:end] for text, (_, start, end) in zip(contexts, best, strict=True)]


# --- training: WNUT17, an epoch over the sentences given


def start_training_ours(spec: Spec) -> Contender:
    return train_spacy(load_ours(spec, "bert_ner"))


def start_training_spacy(spec: Spec) -> Contender:
    return train_spacy(build_spacy(spec, "ner"))


def train_spacy(nlp: Any) -> Contender:
    """spaCy's own loop, with fresh Examples for every epoch as its reader makes them."""
    from spacy.tokens import Doc
    from spacy.training import Example
    from spacy.util import minibatch
    from thinc.api import Adam

    optimizer = Adam(RATE, L2=0.01, L2_is_weight_decay=True, grad_clip=1.0, use_averages=False)
    losses: dict[str, float] = {}

    def run(sentences: Iterable[Any]) -> Iterator[None]:
        for batch in minibatch(sentences, BATCH_SIZE):
            examples = [
                Example(Doc(nlp.vocab, words=words), Doc(nlp.vocab, words=words, ents=tags))
                for words, tags in batch
            ]
            nlp.update(examples, sgd=optimizer, losses=losses)
            yield

    return Contender(run)


def start_trainer(spec: Spec) -> Contender:
    """transformers.Trainer, on sentences that are tokenized before, padded to the longest of a
    batch. variant: "grouped" for batches of like length, "bf16", or nothing."""
    import accelerate  # noqa: F401
    from plain_loops import plain_wnut17
    from transformers import (
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainingArguments,
    )

    model, _, encode, _ = plain_wnut17(Path(spec.data), spec.encoder, "fp32")
    rows = [
        {name: values[0].tolist() for name, values in encode([item]).items()}
        for item in spec.inputs
    ]
    grouped: dict[str, Any] = {"train_sampling_strategy": "group_by_length"}
    if hasattr(TrainingArguments, "group_by_length"):  # before transformers 5
        grouped = {"group_by_length": True}
    arguments = TrainingArguments(
        spec.options["folder"],
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

    return Contender(run)


# --- products alone: what the machine could do


def start_products(spec: Spec) -> Contender:
    """The linear layers of the encoder's shapes, again and again. variant: "fp32" and "bf16" are
    those of torch, "onednn" has fp32 weights that oneDNN has packed before, "int8" multiplies what
    is rounded already."""
    import torch
    from transformers import AutoConfig

    from spacy_bert_heads.encoder.inference import Int8Linear, PackedLinear

    config = AutoConfig.from_pretrained(spec.encoder)
    width, inner = config.hidden_size, config.intermediate_size
    dtype = torch.bfloat16 if spec.variant == "bf16" else torch.float32
    at = {"device": spec.device, "dtype": dtype}
    shapes = [(width, width)] * 4 + [(width, inner), (inner, width)]  # of a layer
    layers = [torch.nn.Linear(i, o, **at) for i, o in shapes]
    calls: list[Callable] = list(layers)
    rows = {i: torch.randn(TOKEN_BUDGET, i, **at) for i in (width, inner)}
    if spec.variant == "onednn":
        calls = [PackedLinear(layer) for layer in layers]
    elif spec.variant == "int8":
        calls = [Int8Linear(layer).product for layer in layers]
        rows = {i: r.mul(40).add(128).clamp(0, 255).to(torch.uint8) for i, r in rows.items()}

    def run(times: Iterable[Any]) -> Iterator[None]:
        with torch.inference_mode():
            for _ in times:
                for (i, _), call in zip(shapes, calls, strict=True):
                    call(rows[i])
                yield

    return Contender(run)


# --- the process

START: dict[tuple[str, str], Callable[[Spec], Contender]] = {
    ("joint", "ours"): start_joint,
    ("overhead", "ours"): start_overhead,
    ("overhead", "products"): start_products,
    ("train", "ours"): start_training_ours,
    ("train", "spacy-transformers"): start_training_spacy,
    ("train", "spacy-curated-transformers"): start_training_spacy,
    ("train", "hf-trainer"): start_trainer,
    **{
        (task, system): start
        for task in HEADS
        for system, start in (
            ("ours", start_ours),
            ("hf-pipeline", start_pipeline),
            ("by-hand", start_by_hand),
        )
    },
    **{
        (task, system): start_spacy
        for task in ("ner", "textcat")
        for system in ("spacy-transformers", "spacy-curated-transformers")
    },
}


class Worker:
    """Set a contender up, then take rounds."""

    def setup(self, *, inputs: str, warm_up: int, threads: int, cpu_time: bool, **spec: Any) -> Any:
        """inputs: a file of JSON. options["repeat"]: how many of them, again and again from the
        first; they then come as a stream."""
        global clock
        import torch

        if threads:
            torch.set_num_threads(threads)
        torch.manual_seed(0)
        clock = time.process_time if cpu_time else time.perf_counter
        if spec["device"] == "cuda" and spec["system"].startswith(("ours", "spacy")):
            import spacy
            from thinc.api import set_gpu_allocator

            set_gpu_allocator("pytorch")  # as in the configs of `init-config --gpu`
            spacy.require_gpu()
        self.inputs = json.loads(Path(inputs).read_text(encoding="utf8"))
        self.spec = Spec(inputs=self.inputs, **spec)
        self.synchronize = synchronizer(self.spec.device)
        self.contender = START[self.spec.task, self.spec.system](self.spec)
        if warm_up:
            list(self.contender.run(self.inputs[:warm_up]))
        self.contender.spent.clear()
        return {name: found for name in PACKAGES if (found := version_of(name))}

    def round(self) -> dict[str, Any]:
        """Seconds, of parts as well; when (in seconds) how many results were there; and peaks of
        memory in MiB."""
        repeat = self.spec.options.get("repeat")
        inputs = islice(cycle(self.inputs), repeat) if repeat else self.inputs
        self.synchronize()
        begin = clock()
        times = [clock() - begin for _ in self.contender.run(inputs)]
        self.synchronize()
        answer = {"seconds": clock() - begin, "times": times, "rss": peak_rss()}
        answer |= {"spent": dict(self.contender.spent)}
        self.contender.spent.clear()
        if self.spec.device == "cuda":
            import torch

            answer["gpu"] = torch.cuda.max_memory_allocated() / 2**20
        return answer

    def show(self, *, count: int) -> list[Any]:
        """What is found in the first inputs."""
        return [self.contender.read(result) for result in self.contender.run(self.inputs[:count])]


clock: Callable[[], float] = time.perf_counter


def synchronizer(device: str) -> Callable[[], Any]:
    if device != "cuda":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def peak_rss() -> float:
    """In MiB, of this process. (The counter of `resource` would begin at its parent's.)"""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on a Mac
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def serve() -> None:
    """Answer requests until the input ends: {"do": …} and what it takes, to {"answer": …} or
    {"error": …}."""
    # Libraries print too: that goes to the errors.
    replies = os.fdopen(os.dup(1), "w", encoding="utf8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"answer": getattr(worker, request.pop("do"))(**request)}
        except ModuleNotFoundError as error:
            name = (error.name or "").split(".")[0]
            reply = {"error": f"{error.name} is missing: pip install {INSTALL.get(name, name)}"}
        except Exception as error:  # one that fails must not end the run of the others
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve()
