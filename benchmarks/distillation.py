"""Students of half a teacher's layers, by the product's own commands (jobs.py has the command line;
run it with --precision bf16).

teacher-SEED
    Entities, categories and verdicts, learned jointly in one epoch.
student-SEED, student-more-SEED
    A student that begins with layers 0, 2 and 4 and learns all three from the teacher's
    predictions on the same texts without their annotation, and with `more` also on the sentences of
    MRPC and the premises of RTE, which are news.
student-shared-SEED
    A student that applies one layer three times, as ALBERT does (Lan et al. 2020, section 3.1); it
    begins with the teacher's layer 2.
speed-SEED
    Words per CPU second of a teacher and its students in three precisions, in turns.
"""

import csv
import json
import shutil
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import spacy
from jobs import Bench, Job, print_head, print_row, read_results, run_script
from joint import gather, make_config, predict
from spacy.tokens import DocBin
from spacy.vocab import Vocab
from tasks import TASKS
from torch import nn
from transformers import AlbertConfig, AlbertModel, AutoModel, AutoTokenizer

from spacy_bert_heads.distill import distill
from spacy_bert_heads.training.loop import train

NAMES = ("wnut17", "sst2", "sick")
SEEDS = range(5)
KEPT = (0, 2, 4)
STEPS, STUDENT_STEPS = 890, 2100
RATE = 1e-4
KINDS, PRECISIONS = ("teacher", "student", "student-shared"), ("fp32", "bf16", "int8")


def list_jobs() -> list[Job]:
    jobs = []
    for seed in SEEDS:
        teacher = f"teacher-{seed}"
        jobs.append(Job(teacher, 6, partial(learn, "teacher", seed)))
        for kind in ("student", "student-more", "student-shared"):
            run = partial(learn, kind, seed)
            jobs.append(Job(f"{kind}-{seed}", 12, run, needs=teacher))
        jobs.append(Job(f"speed-{seed}", 3, partial(measure, seed), needs=f"student-shared-{seed}"))
    return jobs


def measure(seed: int, bench: Bench) -> dict[str, Any]:
    """The medians of three rounds over every third text of the test sets of WNUT17 and SST-2."""
    texts = []
    for task in ("wnut17", "sst2"):
        data = DocBin().from_disk(gather(bench, (task,))[task])
        texts += [doc.text for doc in data.get_docs(Vocab())][::3]
    pipelines, found = {}, {}
    for kind in KINDS:
        for precision in PRECISIONS:
            settings = {"components.bert_encoder.model.precision": precision}
            folder = bench.work(f"{kind}-{seed}") / "model-last"
            nlp = spacy.load(folder, config=settings, disable=["bert_nli"])
            pipelines[f"{kind} {precision}"] = nlp
            found[f"{kind} {precision}"] = []
            _ = list(nlp.pipe(texts[:300]))
    for _ in range(3):
        for name, nlp in pipelines.items():
            start = time.process_time()
            num_words = sum(map(len, nlp.pipe(texts)))
            found[name].append(num_words / (time.process_time() - start))
    return {"speed": {name: statistics.median(values) for name, values in found.items()}}


def learn(kind: str, seed: int, bench: Bench) -> dict[str, Any]:
    files, folder = gather(bench, NAMES), bench.work(f"{kind}-{seed}")
    teacher = bench.work(f"teacher-{seed}") / "model-last"
    config = partial(make_config, bench, NAMES, files, seed)
    if kind != "teacher":
        encoder = teacher / "bert_encoder" / "model"
        kept = KEPT
        if kind == "student-shared":
            encoder, kept = share_layer(encoder, bench.work(f"shared-{seed}")), ()
        student = config(STUDENT_STEPS, encoder=str(encoder), by_task=False)
        student["training"]["optimizer"]["learn_rate"]["initial_rate"] = RATE
        if kind == "student-more":
            student["paths"]["train"] = str(add_news(bench, files["train"]))
        nlp = distill(teacher, student, folder, keep_layers=kept, force=True)
    else:
        nlp = train(config(STEPS), folder, force=True)
    scores = {}
    for task in NAMES:
        head, examples = predict(nlp, task, files[task])
        scores[task] = head.score(examples)[TASKS[task].metric]
    return {"scores": scores}


def share_layer(bert: Path, folder: Path) -> Path:
    """A checkpoint of ALBERT with the embeddings of a BERT and the middle one of its layers that
    students keep."""
    teacher = AutoModel.from_pretrained(bert, add_pooling_layer=False)
    facts = teacher.config.to_dict()
    names = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act",
             "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id",
             "hidden_dropout_prob", "attention_probs_dropout_prob")  # fmt: skip
    config = AlbertConfig(
        **{name: facts[name] for name in names},
        embedding_size=facts["hidden_size"],
        num_hidden_layers=len(KEPT),
    )
    student = AlbertModel(config, add_pooling_layer=False)
    student.embeddings.load_state_dict(teacher.embeddings.state_dict())
    mapping = student.encoder.embedding_hidden_mapping_in
    nn.init.eye_(mapping.weight)
    nn.init.zeros_(mapping.bias)
    own, known = student.encoder.albert_layer_groups[0].albert_layers[0], teacher.encoder.layer[2]
    attention = known.attention
    parts = {
        own.attention.query: attention.self.query,
        own.attention.key: attention.self.key,
        own.attention.value: attention.self.value,
        own.attention.dense: attention.output.dense,
        own.attention.LayerNorm: attention.output.LayerNorm,
        own.ffn: known.intermediate.dense,
        own.ffn_output: known.output.dense,
        own.full_layer_layer_norm: known.output.LayerNorm,
    }
    for part, source in parts.items():
        part.load_state_dict(source.state_dict())
    student.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder


def add_news(bench: Bench, texts: Path) -> Path:
    """A folder with these texts and the news."""
    folder = bench.work("more-texts")
    shutil.copytree(texts, folder, dirs_exist_ok=True)
    news = []
    for task, columns in {"MRPC": ("#1 String", "#2 String"), "RTE": ("sentence1",)}.items():
        with (bench.data / "glue_small" / task / "train.tsv").open(encoding="utf-8-sig") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                news += [row[column] for column in columns]
    lines = (json.dumps({"text": text}) + "\n" for text in news if text)
    (folder / "news.jsonl").write_text("".join(lines), "utf8")
    return folder


def print_tables(bench: Bench) -> None:
    """Means over seeds, and what share they are of those of the same teachers; then speeds."""
    done = read_results(bench)
    scores = {name: run["scores"] for name, run in done.items() if "scores" in run}
    names = dict.fromkeys(name.rpartition("-")[0] for name in scores)
    print_head("", "seeds", *NAMES)
    for name in sorted(names, key=lambda name: name != "teacher"):
        seeds = [one.rpartition("-")[2] for one in scores if one.rpartition("-")[0] == name]
        cells = []
        for task in NAMES:
            own, known = (
                statistics.mean(scores[f"{who}-{seed}"][task] for seed in seeds)
                for who in (name, "teacher")
            )
            cells.append(f"{own:.3f} ({own / known:.1%})")
        print_row(name, len(seeds), *cells)
    for name in done.keys() - scores.keys():
        speeds = done[name]["speed"]
        print_head(name, *PRECISIONS)
        for kind in KINDS:
            own = {precision: speeds[f"{kind} {precision}"] for precision in PRECISIONS}
            ratios = {key: value / speeds[f"teacher {key}"] for key, value in own.items()}
            print_row(kind, *(f"{own[key]:,.0f} ({ratios[key]:.2f})" for key in PRECISIONS))


if __name__ == "__main__":
    run_script(list_jobs, print_tables)
