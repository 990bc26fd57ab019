"""Small runs of `bert train`."""

import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import spacy
import torch
from checkpoints import make_checkpoint
from joint import HEADS, LANG, make_examples
from spacy.tokens import DocBin
from thinc.api import Config

from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.training import loop
from spacy_bert_heads.training.loop import train

STEPS = 12
SGD = {"@optimizers": "SGD.v1", "learn_rate": 0.05, "grad_clip": 1.0, "use_averages": False}


def write_texts(path: Path) -> Path:
    """Texts of many lengths, a third of them annotated for some heads alone."""
    nlp, docs = spacy.blank(LANG), []
    for i in range(6):
        for doc in (eg.reference for eg in make_examples(nlp)):
            doc = doc.copy()
            doc.cats = doc.cats if i % 3 else {}
            if i % 3 == 1:
                doc._.hypotheses = doc._.nli = []
            docs.append(doc)
            docs.append(nlp.make_doc(doc.text[: 5 * i + 5]))
            docs[-1].cats = doc.cats
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


def config_maker(folder: Path) -> Callable[..., Config]:
    """A function that makes a config for some heads, with texts and encoders in a folder."""
    data = write_texts(folder / "train.spacy")
    with_dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    encoders = {
        False: make_checkpoint(folder / "plain"),
        True: make_checkpoint(folder / "dropout", **with_dropout),
    }

    def make(heads=HEADS, *, dropout: bool = False, **training) -> Config:
        config = init_config(
            list(heads), lang=LANG, name=str(encoders[dropout]), train=str(data), dev=str(data)
        )
        config["training"].update(
            {"max_steps": STEPS, "eval_frequency": 4, "patience": 0, **training}
        )
        config["training"]["optimizer"]["learn_rate"].update(
            initial_rate=2e-4, warmup_steps=2, total_steps=2 * STEPS
        )
        config["training"]["batcher"]["size"] = 200
        config["components"]["bert_encoder"]["model"].update(window=64, stride=48)
        return config

    return make


def run(config: Config, output: Path, **settings) -> dict[str, torch.Tensor]:
    """Train without a word. Gives the weights."""
    return weights(train(config, output, stdout=StringIO(), stderr=StringIO(), **settings))


def weights(nlp) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, pipe in nlp.pipeline
        for i, node in enumerate(pipe.model.walk())
        for shim in node.shims
        for key, value in shim.module.state_dict().items()
    }


def assert_same(ours, theirs, *, atol: float = 0) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def train_until_killed(config: Config, output: Path, at: int, number: int) -> None:
    plain = loop.Updater.__call__
    count = 0

    def update(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), number)
        return plain(self, *args, **kwargs)

    loop.Updater.__call__ = update
    torch.set_num_threads(1)
    run(config, output, resume=True)
