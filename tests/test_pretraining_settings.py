"""Settings of a run: defaults, overrides, old keys, errors."""

import re
from pathlib import Path

import pytest
from thinc.api import Config

from spacy_bert_heads.pretraining.settings import (
    Encoder,
    Masking,
    Paths,
    Phase,
    Settings,
    Training,
    adam,
    make_config,
    read_settings,
)

LEAST = '[paths]\nraw = "a"\nencoder = "b"\n'


@pytest.fixture
def read(tmp_path):
    def read(text: str, **overrides) -> Settings:
        (tmp_path / "pretrain.cfg").write_text(text)
        dotted = {name.replace("__", "."): value for name, value in overrides.items()}
        return read_settings(tmp_path / "pretrain.cfg", dotted)

    return read


def test_two_paths_are_a_config(read):
    assert read(LEAST) == Settings(Paths(["a"], "b"))
    assert read('[paths]\nraw = ["a", "c"]\nencoder = null\n').encoder == Encoder()
    assert read('[paths]\nencoder = "b"\n', paths__raw="a") == read(LEAST)
    with pytest.raises(ValueError, match=r"\[paths\] has no encoder. .* or to null for a new"):
        read('[paths]\nraw = "a"\n')
    with pytest.raises(
        ValueError, match="in exactly one place: paths.raw .* or a reader in .corpora.raw."
    ):
        read('[paths]\nencoder = "b"\n')


def test_every_default_can_be_overridden(read):
    def flatten(section, prefix=""):
        for key, value in section.items():
            if isinstance(value, dict):
                yield from flatten(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    other = {"paths.raw": "z", "objective.sentences": "sop", "training.max_steps": 7}
    for name, value in flatten(make_config(raw="a", encoder="b")):
        overrides = {name.replace(".", "__"): other.get(name, value)}
        assert isinstance(read(LEAST, **overrides), Settings), name
    found = read(LEAST, objective__sentences="full-sentences", training__optimizer__beta2=0.98)
    assert found.objective.sentences == "full-sentences"
    assert found.training.optimizer == adam(beta2=0.98)


def test_a_made_config_is_complete(read):
    config = make_config(raw="a", encoder="b", lang="de")
    expected = read(LEAST, text__lang="de")
    assert read(config.to_str()) == expected
    assert "#" not in config.to_str()
    assert {key for key in config if config[key]} == set(Config().from_str(config.to_str()))


def test_the_shipped_config_has_the_defaults():
    path = Path(__file__).parent.parent / "configs" / "pretrain.cfg"
    settings = read_settings(path)
    training = Training(phases=[Phase(128, 0.9), Phase(512, 0.1)])
    assert settings == Settings(settings.paths, training=training)


def test_blocks_replace_or_complete_the_defaults(read):
    completed = read(f"{LEAST}[training]\n\n[training.optimizer]\nL2 = 0.5\n")
    assert completed.training.optimizer == adam(L2=0.5)
    schedule = {"@schedules": "constant.v1", "rate": 0.5}
    lines = "[training]\n[training.optimizer]\n[training.optimizer.learn_rate]\n"
    replaced = read(f'{LEAST}{lines}@schedules = "constant.v1"\nrate = 0.5\n')
    assert replaced.training.optimizer == adam(schedule)
    constant = read(f"{LEAST}[training]\n[training.optimizer]\nlearn_rate = 0.5\n")
    assert constant.training.optimizer == {**adam(), "learn_rate": 0.5}


OLD = """
[training]
batch_pieces = 256
eval_pieces = 512
rate_factor = 7.0
learn_rate = 0.5
warmup_steps = 3
weight_decay = 0.0
grad_clip = 2.0
"""


def test_keys_of_version_0_1(read):
    with pytest.warns(DeprecationWarning) as warned:
        training = read(LEAST + OLD).training
    assert training == Training(
        batch_tokens=256,
        eval_tokens=512,
        new_head_lr_multiplier=7.0,
        optimizer=adam(0.5, warmup_steps=3, L2=0.0, grad_clip=2.0),
    )
    messages = [str(one.message) for one in warned]
    assert len(messages) == 7
    assert re.search(
        "training.batch_pieces is deprecated.* Use training.batch_tokens, of all", messages[0]
    )
    with pytest.warns(DeprecationWarning, match="Use training.optimizer.learn_rate.initial_rate"):
        assert read(LEAST, training__learn_rate=0.5).training == Training(optimizer=adam(0.5))
    with pytest.warns(DeprecationWarning):  # an override wins
        assert read(LEAST + OLD, training__batch_pieces=9).training.batch_tokens == 9


def test_the_length_of_a_run(read):
    def length(text: str, **overrides) -> tuple[int | None, float | None]:
        training = read(LEAST + text, **overrides).training
        return training.max_steps, training.max_epochs

    epochs, steps = "[training]\nmax_epochs = 2\n", "[training]\nmax_steps = 5\n"
    assert length("") == (1000, None)
    assert (length(epochs), length(steps)) == ((None, 2.0), (5, None))
    assert length(epochs, training__max_steps=7) == (7, None)
    assert length(steps, training__max_epochs=0.5) == (None, 0.5)
    with pytest.raises(ValueError, match="max_steps is 5 and training.max_epochs is 2.0. Set one"):
        length(epochs + "max_steps = 5")


@pytest.mark.parametrize(
    "lines, message",
    [
        (
            "[training]\nsteps = 3",
            r"Unknown setting 'steps' in \[training\]. Choose from: max_steps",
        ),
        ("[training]\nmax_steps = 0", "training.max_steps is 0: it should be greater"),
        ("[training]\nmax_steps = 1.5", "training.max_steps is 1.5: it should be a valid integer"),
        ('[training]\nmax_steps = "5"', "training.max_steps is '5'"),
        ("[training]\nnew_head_lr_multiplier = 0", "new_head_lr_multiplier is 0: it should be gr"),
        ('[training]\nprecision = "fp16"', "precision is 'fp16': it should be 'auto', 'fp32' or"),
        ("[training]\nphases = []", r"training.phases is \[\]"),
        ('[training]\nphases = [{"share": 4}]', "training.phases.0.max_length is missing"),
        ('[training]\nphases = [{"max_length": 4}]', "training.phases.0.max_length is 4"),
        (
            '[training]\nphases = [{"max_length": 9, "a": 4}]',
            r"'a' in \[training.phases.0\]. Choose from: max_length",
        ),
        ('[objective]\nsentences = "x"', "objective.sentences is 'x': it should be 'nsp', 'sop'"),
        ("[masking]\nrate = 2", "masking.rate is 2: it should be less than or equal to 1"),
        ("[masking]\nmask = 0.9\nrandom = 0.2", r"masking.mask \+ masking.random is 1.1"),
        ("[other]\na = 1", r"Unknown setting 'other' in \[the config\]"),
        ('[encoder]\nfamily = "gpt"', "encoder.family is 'gpt': it should be 'bert', 'albert' or"),
        ('[encoder]\nsize = "huge"', "encoder.size is 'huge': it should be 'tiny', 'mini'"),
        ("[encoder]\nvocab_size = 0", "encoder.vocab_size is 0"),
        ("[encoder]\nadd_words = -1", "encoder.add_words is -1"),
        ("[encoder]\nlowercase = 1", "encoder.lowercase is 1"),
        ("[encoder]\nadd_words = 5", "Increase encoder.vocab_size instead, or set"),
    ],
)
def test_settings_that_make_no_sense(read, lines, message):
    with pytest.raises(ValueError, match=message):
        read(f'[paths]\nraw = "a"\nencoder = null\n\n{lines}\n')


def test_no_config(tmp_path):
    with pytest.raises(ValueError, match="There is no config .*init-config --pretrain .*no.cfg"):
        read_settings(tmp_path / "no.cfg")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[paths", b"raw = 1"])
def test_what_is_no_config(tmp_path, content):
    (tmp_path / "a.cfg").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.cfg can't be read as a config: .*init-config --pretr"):
        read_settings(tmp_path / "a.cfg")


def test_a_falling_masking_rate():
    masking = Masking(rate=0.3, final_rate=0.15)
    assert [masking.rate_at(step, 4) for step in (1, 2, 3, 4)] == pytest.approx(
        [0.3, 0.25, 0.2, 0.15]
    )
    assert masking.rate_at(1, 1) == 0.3
    assert Masking(rate=0.2).rate_at(3, 4) == 0.2
