"""Small pretraining runs: their raw text, their configuration, and what they leave on disk."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.settings import Settings, read_settings

TEXT = "the boat left harbour at night and a fire broke out near Hull on Tuesday"


def write_raw(path: Path) -> Path:
    rng = random.Random(0)
    with path.open("w") as file_:
        for _ in range(60):
            sentences = [
                " ".join(rng.choices(TEXT.split(), k=rng.randint(4, 9))).capitalize() + "."
                for _ in range(rng.randint(3, 9))
            ]
            file_.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return path


def write_config(folder: Path, raw: Path, encoder: str) -> Path:
    path = folder / "pretrain.cfg"
    path.write_text(
        f"""
[paths]
raw = "{raw}"
encoder = "{encoder}"
cache = "{folder / "cache"}"

[text]
held_out = 0.2
workers = 1

[training]
max_steps = 12
batch_tokens = 256
max_batch_tokens = 128
eval_frequency = 4
eval_tokens = 512
checkpoint_frequency = 3
phases = [{{"max_length": 32, "share": 0.75}}, {{"max_length": 64, "share": 0.25}}]

[training.optimizer]

[training.optimizer.learn_rate]
initial_rate = 0.001
warmup_steps = 2
"""
    )
    return path


def make_settings(folder: Path, encoder: str) -> Settings:
    """Write raw text and a config to a folder, and read the settings of a run of 12 steps."""
    raw = write_raw(folder / "raw.jsonl")
    return read_settings(write_config(folder, raw, encoder), {"training.max_steps": 12})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model-last" / "model.safetensors")


def log(folder: Path) -> list[dict]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "tokens_per_second"} for x in lines]


class Stop(Exception):
    pass


def run_until(settings: Settings, folder: Path, step: int, **options) -> list[str]:
    """Run until a step is done, and return what was said."""
    said: list[str] = []

    def stop(now: int) -> None:
        if now == step:
            raise Stop

    with pytest.raises(Stop):
        pretrain(settings, folder, on_step=stop, say=said.append, **options)
    return said
