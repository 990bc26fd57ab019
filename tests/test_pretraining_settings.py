"""Settings of a run: defaults, errors, phases."""

from pathlib import Path

import pytest

from spacy_bert_heads.pretraining.schedule import phase_at
from spacy_bert_heads.pretraining.settings import SIZES, Encoder, Phase, read_settings


def test_phases_by_step():
    phases = [Phase(128, 0.9), Phase(512, 0.1)]
    assert [phase_at(phases, step, 100) for step in (0, 89, 90, 99, 100)] == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "line, message",
    [
        ("[training]\nsteps = 3", "Unknown setting 'steps' in \\[training\\]"),
        ("[training]\nmax_steps = 0", "training.max_steps is 0"),
        ("[training]\nmax_steps = 1.5", "training.max_steps must be int"),
        ("[training]\nwarmup_steps = -1", "training.warmup_steps is -1"),
        ('[objective]\nsentences = "x"', "objective.sentences is 'x'"),
        ("[masking]\nrate = 2", "masking.rate is 2.0"),
        ("[training]\nphases = []", "training.phases needs"),
        ("[other]\na = 1", "Unknown setting 'other'"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, line, message):
    path = tmp_path / "pretrain.cfg"
    path.write_text(f'[paths]\nraw = "a"\nencoder = "b"\n\n{line}\n')
    with pytest.raises(ValueError, match=message):
        read_settings(path, {})


@pytest.mark.parametrize(
    "lines, message",
    [
        ('family = "gpt"', "encoder.family is 'gpt'. Choose one of: bert, albert, roberta"),
        ('size = "huge"', f"encoder.size is 'huge'. Choose one of: {', '.join(SIZES)}"),
        ("vocab_size = 0", "encoder.vocab_size is 0"),
        ("add_words = -1", "encoder.add_words is -1"),
        ("add_words = 5", "Raise encoder.vocab_size instead, or name an encoder.tokenizer"),
        ("words = 5", "Unknown setting 'words' in \\[encoder\\]"),
        ("[training]\nrate_factor = 0.0", "training.rate_factor is 0.0; it must be above 0"),
        ('[training]\nprecision = "int8"', "Unknown precision 'int8'. Choose one of: auto, fp32"),
        ('[training]\nprecision = "fp16"', 'Take "bf16"'),
    ],
)
def test_settings_of_a_new_encoder_that_make_no_sense(tmp_path, lines, message):
    path = tmp_path / "pretrain.cfg"
    path.write_text(f'[paths]\nraw = "a"\nencoder = null\n\n[encoder]\n{lines}\n')
    with pytest.raises(ValueError, match=message):
        read_settings(path, {})


def test_the_shipped_config_has_the_defaults():
    settings = read_settings(Path(__file__).parent.parent / "configs" / "pretrain.cfg", {})
    assert settings.encoder == Encoder()


def test_a_new_encoder_without_settings_is_complete(tmp_path):
    path = tmp_path / "pretrain.cfg"
    path.write_text('[paths]\nraw = "a"\nencoder = null\n')
    assert read_settings(path, {}).encoder == Encoder()
    path.write_text('[paths]\nraw = "a"\n')
    with pytest.raises(ValueError, match="\\[paths\\] needs: raw, encoder"):
        read_settings(path, {})
