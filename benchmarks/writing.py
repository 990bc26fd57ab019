"""Texts written by decoders of several origins (jobs.py has the command line; run it with
--precision bf16): sentences for the records of E2E (Novikova et al. 2017), and one sentence for the
abstract of a paper, SciTLDR (Cachola et al. 2020).

TASK-ORIGIN-SEED, TASK-ORIGIN-frozen-SEED
    A decoder of three layers, at random, from three layers of the encoder, or from denoising
    pretraining; the encoder learns, or is frozen.
pretrain-noise
    The encoder and a decoder, pretrained on half a million wordpieces of WikiText with BART's
    infilling, beside masked wordpieces.

The slot error rate is the share of a record's values that its sentence does not have, word by word.
Nothing is chosen by a score on a test set.
"""

import re
import unicodedata
from functools import partial
from typing import Any

import spacy
from jobs import Bench, Job, finetune, of, pretrain, print_table, read_results, run_script
from spacy.tokens import Doc
from spacy.training import Example
from thinc.api import Config

from spacy_bert_heads.data.reader import BertCorpus

EPOCHS = {"e2e": 12, "scitldr": 2}
N_TEST = 300
NUM_LAYERS = 3
ORIGINS = ("random", "encoder", "denoised")
SEEDS = (0, 1)
# Of E2E's slots, those whose value is a name or a phrase that a sentence has to have.
SLOTS = ("name", "near", "food", "eatType", "area")
NOISED = "pretrain-noise"


def list_jobs() -> list[Job]:
    jobs = [Job(NOISED, 10, learn_noise)]
    for task in EPOCHS:
        for seed in SEEDS:
            for origin in ORIGINS:
                for frozen in ("", "-frozen"):
                    name = f"{task}-{origin}{frozen}-{seed}"
                    needs = NOISED if origin == "denoised" else None
                    run = partial(train, name, task, origin, bool(frozen), seed)
                    jobs.append(Job(name, 6, run, needs))
    return jobs


def learn_noise(bench: Bench) -> dict[str, Any]:
    steps = bench.scaled(120, least=2)
    settings = {
        "paths.raw": bench.data / "raw_wikitext2",
        "paths.encoder": bench.encoder,
        "objective.sentences": "doc-sentences",
        "denoising.kinds": ["infilling"],
        "denoising.num_layers": NUM_LAYERS,
        "training.max_steps": steps,
        "training.eval_frequency": steps,
    }
    report = pretrain(bench, NOISED, settings)
    keys = ("tokens", "held_out_denoising_loss", "held_out_denoising_accuracy")
    return {key: report[key] for key in keys}


def train(
    name: str, task: str, origin: str, frozen: bool, seed: int, bench: Bench
) -> dict[str, Any]:
    noised = bench.work(NOISED) / "model-last"

    def change(config: Config) -> None:
        head = config["components"]["bert_seq2seq"]
        decoder = str(noised / "decoder") if origin == "denoised" else origin
        head["model"] |= {"decoder": decoder, "num_layers": NUM_LAYERS}
        if origin == "random":
            head["model"]["learning_rate_multiplier"] = 10.0
        if frozen:
            config["training"]["frozen_components"] = ["bert_encoder"]
            config["training"]["annotating_components"] = []

    def look(nlp: spacy.Language) -> dict[str, Any]:
        test = list(BertCorpus(bench.work(name) / "test")(nlp))
        docs = list(nlp.pipe(example.reference.text for example in test))
        pairs = zip(docs, test, strict=True)
        examples = [Example(doc, gold.reference) for doc, gold in pairs]
        scores = nlp.get_pipe("bert_seq2seq").score(examples)
        found = {key: scores[key] for key in scores if key.startswith("seq2seq")}
        found["samples"] = [[doc.text, doc._.generated] for doc in docs[:5]]
        if task == "e2e":
            found["slot_error_rate"] = slot_error_rate(docs)
        return found

    encoder = str(noised) if origin == "denoised" else bench.encoder
    result = finetune(
        bench, bench.work(name), task, encoder,
        seed=seed, epochs=EPOCHS[task], n_test=N_TEST, change=change, look=look,
    )  # fmt: skip
    return {"task": task, "origin": origin, "frozen": frozen, "seed": seed, **result}


def slot_error_rate(docs: list[Doc]) -> float:
    """The share of values that are missing in what is written for their records."""
    slots = [
        (value, doc._.generated)
        for doc in docs
        for slot, value in re.findall(r"(\w+)\[(.*?)\]", doc.text)
        if slot in SLOTS
    ]
    missing = sum(words(value) not in words(text) for value, text in slots)
    return missing / len(slots)


def words(text: str) -> str:
    """The letters and digits of a text without accents: an uncased checkpoint writes none, and
    BERT's tokenizer sets blanks differently."""
    return re.sub(r"\W", "", unicodedata.normalize("NFKD", text.lower()))


def print_tables(bench: Bench) -> None:
    done = read_results(bench)
    for task in EPOCHS:
        columns = {name: of(f"seq2seq_{key}", ".3f") for name, key in
                   {"BLEU": "bleu", "ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}
                   .items()}  # fmt: skip
        if task == "e2e":
            columns["slot errors"] = of("slot_error_rate")
        rows = {
            f"{origin}, encoder {how}": f"{task}-{origin}{frozen}"
            for origin in ORIGINS
            for frozen, how in {"": "trained", "-frozen": "frozen"}.items()
        }
        print_table(done, f"{task}, test", columns, rows)


if __name__ == "__main__":
    run_script(list_jobs, print_tables, default_precision="bf16")
