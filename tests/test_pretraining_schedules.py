"""Learning rates and phases by step; how much of the text a run reads."""

import math
from dataclasses import replace

import pytest
from checkpoints import make_checkpoint
from pretraining_runs import log, make_settings, run_until
from spacy.util import registry

from spacy_bert_heads.pretraining.data import Data, Position
from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.objectives import load_pretrainer
from spacy_bert_heads.pretraining.schedule import AdamValues, divide_steps, phase_at
from spacy_bert_heads.pretraining.settings import Masking, Phase, Settings, adam
from spacy_bert_heads.pretraining.start import prepare_texts


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    folder = tmp_path_factory.mktemp("settings")
    return make_settings(folder, make_checkpoint(folder / "bert"))


def rates(block: dict, num_steps: int) -> list[float]:
    values = AdamValues(adam(block) if "@schedules" in block else block, num_steps)
    return [values.at(step).learn_rate for step in range(1, num_steps + 1)]


def test_linear():
    assert rates(adam(1.0, warmup_steps=2), 6) == [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert rates(adam(1.0, warmup_steps=0), 4) == [0.8, 0.6, 0.4, 0.2]
    assert rates(adam(1.0), 1) == [0.5]  # a single step learns
    block = {**adam(1.0)["learn_rate"], "warmup_steps": 0, "total_steps": 8}  # not those of the run
    assert rates(block, 4) == [0.875, 0.75, 0.625, 0.5]


def test_constant():
    assert rates({"@schedules": "constant.v1", "rate": 0.5}, 3) == [0.5, 0.5, 0.5]


def test_cosine():
    block = {"@schedules": "spacy_bert_heads.warmup_cosine.v1", "initial_rate": 1.0}
    block |= {"warmup_steps": 2, "total_steps": None}
    half = math.sqrt(0.5) / 2
    expected = [0.5, 1.0, 0.5 + half, 0.5, 0.5 - half]
    assert rates(block, 5) == pytest.approx(expected)
    lowest = rates({**block, "final_rate": 0.1}, 5)
    assert lowest == pytest.approx([0.5, 1.0, *(0.1 + 0.9 * rate for rate in expected[2:])])


def test_warm_up_stable_decay():
    block = {"@schedules": "spacy_bert_heads.warmup_stable_decay.v1", "initial_rate": 1.0}
    block |= {"warmup_steps": 2, "decay_steps": 4, "total_steps": None}
    assert rates(block, 7) == [0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates({**block, "decay_steps": 0}, 4) == [0.5, 1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"\(2\) and decay_steps \(4\) .* total_steps \(5\)"):
        rates(block, 4)


def test_betas_eps_and_decay_may_have_schedules():
    block = {**adam(beta2=0.98, eps=1e-8, L2=0.3, grad_clip=0.5), "beta1": [0.8, 0.9]}
    values = AdamValues(block, 200)
    first, later = values.at(0), values.at(5)
    assert (first.betas, later.betas) == ((0.8, 0.98), (0.9, 0.98))
    assert later[2:] == (1e-8, 0.3, 0.5)


@pytest.mark.parametrize(
    "block, message",
    [
        (adam(warmup_steps=11), "learn_rate.warmup_steps is 11, but the run has 10 steps"),
        ({**adam(warmup_steps=1), "use_averages": True}, "must be Adam.v1 with use_averages = fal"),
        ({**adam(warmup_steps=1), "L2_is_weight_decay": False}, "L2_is_weight_decay = true"),
        ({"@optimizers": "SGD.v1", "learn_rate": 0.1}, "must be Adam.v1"),
    ],
)
def test_optimizers_that_make_no_sense(block, message):
    with pytest.raises(ValueError, match=message):
        AdamValues(block, 10)


def test_a_schedule_of_the_user(settings, tmp_path):
    @registry.schedules("test.halves.v1")
    def halves(start: float):
        while True:
            yield start
            start /= 2

    optimizer = adam({"@schedules": "test.halves.v1", "start": 1e-3})
    settings = replace(settings, training=replace(settings.training, optimizer=optimizer))
    run_until(settings, tmp_path / "out", 7)
    pretrain(settings, tmp_path / "out", resume=True)  # which begins where it was
    assert [line["lr"] for line in log(tmp_path / "out")] == [1e-3 / 2**n for n in (0, 4, 8, 12)]


# --- phases and epochs


def test_phases_by_step():
    phases = [Phase(128, 0.9), Phase(512, 0.1)]
    assert [phase_at(phases, step, 100) for step in (0, 89, 90, 99, 100)] == [0, 0, 1, 1, 1]
    assert divide_steps(phases, 100) == [90, 10]
    assert divide_steps([Phase(128), Phase(128), Phase(128)], 1) == [0, 1, 0]


@pytest.fixture(scope="module")
def make_data(settings, tmp_path_factory):
    pretrainer = load_pretrainer(settings.paths.encoder, sentence_objective=None)
    corpus = prepare_texts(settings, pretrainer.encoder.checkpoint.tokenizer)[0]
    plans = tmp_path_factory.mktemp("plans")

    def make(masking: Masking | None = None, **training) -> Data:
        changed = replace(settings, training=replace(settings.training, **training))
        changed = replace(changed, masking=masking or Masking())
        return Data(
            corpus, pretrainer.vocabulary(), changed, plans / str(len(list(plans.iterdir())))
        )

    return make


def test_a_run_of_epochs(make_data):
    phases = [Phase(32)]
    data = make_data(max_steps=None, max_epochs=2, phases=phases)
    per_epoch = len(data.plan(0, 0)) // 8
    assert data.num_steps == 2 * per_epoch and data.count_epochs() == 2
    position = Position()
    for step in range(per_epoch):
        _, position = data.train_batch(position, step + 1)
    assert position == Position(epoch=1)
    assert make_data(max_steps=None, max_epochs=0.001, phases=phases).num_steps == 1
    assert make_data(max_steps=per_epoch // 2, phases=phases).count_epochs() == pytest.approx(
        0.5, abs=0.05
    )
    halves = make_data(max_steps=None, max_epochs=1, phases=[Phase(32), Phase(64)])
    each = [len(halves.plan(phase, 0)) // size for phase, size in ((0, 8), (1, 4))]
    assert halves.num_steps == round(sum(each) / 2)


def test_what_is_read_is_said(settings, tmp_path):
    said: list[str] = []
    training = replace(settings.training, max_steps=1, optimizer=adam(warmup_steps=0))
    pretrain(replace(settings, training=training), tmp_path / "a", say=said.append)
    assert said[-1] == "Steps: 1. The run reads 0.024 of the corpus."


def test_masks_grow_fewer(make_data):
    def share(data: Data, step: int) -> float:
        batch, _ = data.train_batch(Position(), step)
        return len(batch.masked) / (len(batch.packed.input_ids) - 3 * len(batch.labels))

    falling = make_data(Masking(rate=0.5, final_rate=0.1), batch_tokens=1024)
    first, last = share(falling, 1), share(falling, 12)
    assert first == pytest.approx(0.5, abs=0.03) and last == pytest.approx(0.1, abs=0.03)
    # A function of the position and the step.
    one, other = (falling.train_batch(Position(), 7)[0] for _ in range(2))
    assert (one.masked == other.masked).all()
    # Held-out losses can be compared over the run.
    held_out = make_data(Masking(rate=0.1)).held_out_batches(0)
    for one, other in zip(falling.held_out_batches(0), held_out, strict=True):
        assert (one.masked == other.masked).all()


def test_a_batch_is_split_by_its_examples(make_data):
    data = make_data()
    whole = data.train_batch(Position(), 1)[0].packed
    data.n_parts = 3
    parts = []
    for data.rank in range(3):
        parts.append(data.train_batch(Position(), 1)[0].packed)
    assert [len(part.seqlens) for part in parts] == [3, 3, 2]
    assert sum((part.input_ids.tolist() for part in parts), []) == whole.input_ids.tolist()
    data.n_parts, data.rank = 20, 19  # more processes than examples
    assert len(data.train_batch(Position(), 1)[0].labels) == 0
