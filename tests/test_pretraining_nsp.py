"""Next segments are told from random ones."""

import json
import random
from pathlib import Path

import pytest
from pretraining_runs import log

from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.settings import Settings, adam, check_config


def write_topics(path: Path) -> str:
    """Write 120 documents of 12 sentences. A document has one of 14 topics, with five words of its
    own, so one in 14 random segments can't be told from the next."""
    rng = random.Random(0)
    with path.open("w") as file_:
        for number in range(120):
            words = ["bcdfghklmnprst"[number % 14] + vowel for vowel in "aeiou"]
            sentences = (" ".join(rng.choices(words, k=6)).capitalize() + "." for _ in range(12))
            file_.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return str(path)


def make_settings(folder: Path, steps: int, **objective) -> Settings:
    return check_config(
        {
            "paths": {
                "raw": write_topics(folder / "raw.jsonl"),
                "encoder": None,
                "cache": str(folder / "cache"),
            },
            "encoder": {"size": "tiny", "vocab_size": 120},
            "text": {"workers": 1, "held_out": 0.2},
            "objective": {"sentences": "nsp", "short_seq_prob": 0.0, **objective},
            "training": {
                "max_steps": steps,
                "batch_tokens": 512,
                "eval_frequency": steps,
                "eval_tokens": 8192,
                "checkpoint_frequency": steps,
                "precision": "fp32",
                "phases": [{"max_length": 16}],
                "new_head_lr_multiplier": 1.0,
                "optimizer": adam(3e-3),
            },
        }
    )


def test_the_best_model_is_that_of_what_is_learned(tmp_path):
    """Without masked words their loss says nothing of the encoder."""
    settings = make_settings(tmp_path, 60, mlm_weight=0.0)
    pretrain(settings, tmp_path / "out", say=lambda text: None)
    before, after = (line["held_out_nsp_loss"] for line in log(tmp_path / "out"))
    assert after < before
    best, last = (
        (tmp_path / "out" / name / "model.safetensors").read_bytes()
        for name in ("model-best", "model-last")
    )
    assert best == last


@pytest.mark.long
def test_next_sentence_prediction_learns_topics(tmp_path):
    settings = make_settings(tmp_path, 400)
    pretrain(settings, tmp_path / "out", say=lambda text: None)
    before, after = (line["held_out_nsp_accuracy"] for line in log(tmp_path / "out"))
    assert before < 0.6
    assert after > 0.9
