"""Damaged texts, and the decoder that learns to restore them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from checkpoints import make_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from seq2seq_cases import build

from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.encoder.shim import autocast_for
from spacy_bert_heads.pretraining.data import Data, Position
from spacy_bert_heads.pretraining.denoising import add_decoder
from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.noise import KINDS, Noise, damage, fill_spans
from spacy_bert_heads.pretraining.objectives import Totals, load_pretrainer
from spacy_bert_heads.pretraining.schedule import adam
from spacy_bert_heads.pretraining.settings import check_config, make_config
from spacy_bert_heads.pretraining.start import prepare_texts

MASK = -1
TEXT = "The crew used a pump. A fire broke out in the engine room. Nobody can swim."


def make_random(seed=0):
    return np.random.default_rng(seed)


# --- damage


@given(st.integers(1, 60), st.lists(st.integers(1, 59)), st.integers(0, 1000), st.data())
def test_what_damage_keeps(n, inner, seed, data):
    ids = np.arange(n)
    sentences = np.array(sorted({0, *(i for i in inner if i < n)}))
    kind = data.draw(st.sampled_from(KINDS))
    rate = data.draw(st.floats(0, 1))
    found = damage(ids, sentences, Noise((kind,), rate), MASK, make_random(seed))
    assert ids.tolist() == list(range(n))  # unchanged
    assert 1 <= len(found.ids) <= n
    kept = found.ids[found.ids != MASK].tolist()
    if kind == "mass":
        length = max(round(rate * n), 1)
        assert (found.ids == MASK).sum() == len(found.restored) == length
        start = int(found.restored[0])
        assert found.restored.tolist() == list(range(start, start + length))
        assert found.ids[start : start + length].tolist() == [MASK] * length
        return
    assert found.restored.tolist() == list(range(n))
    if kind == "permutation":
        parts = [part.tolist() for part in np.split(ids, sentences[1:])]
        starts = {part[0]: part for part in parts}
        rebuilt = []
        while len(rebuilt) < n:
            rebuilt += starts.pop(kept[len(rebuilt)])
        assert rebuilt == kept
    elif kind == "rotation":
        assert kept == np.roll(ids, -kept[0]).tolist()
    else:
        assert kept == sorted(set(kept))  # in order
    if kind == "deletion":
        assert len(kept) == n - min(round(rate * n), n - 1)


def test_spans():
    """A span of any length is one mask."""
    ids = np.arange(2000)
    found = fill_spans(ids, Noise(rate=0.3, mean_span=3.0), MASK, make_random())
    kept = found[found != MASK]
    assert len(kept) == 1400
    # Spans have 600 wordpieces, 3 each on the average.
    assert 150 < (found == MASK).sum() < 260
    # Wordpieces that don't follow each other in the text have a mask between them.
    neighbours = (found[:-1] != MASK) & (found[1:] != MASK)
    assert (np.diff(found)[neighbours] == 1).all()
    assert fill_spans(ids, Noise(rate=0.0), MASK, make_random()).tolist() == ids.tolist()
    assert fill_spans(ids, Noise(rate=1.0), MASK, make_random()).tolist() == [MASK] * len(
        fill_spans(ids, Noise(rate=1.0), MASK, make_random())
    )


# --- pretraining


def make_settings(checkpoint, folder, **sections):
    raw = folder / "raw.txt"
    raw.write_text("\n\n".join([TEXT] * 12), encoding="utf8")
    config = make_config(raw=str(raw), encoder=checkpoint)
    config["paths"]["cache"] = str(folder / "cache")
    config["objective"]["sentences"] = "doc-sentences"
    config["training"].update(
        max_steps=4, batch_tokens=512, eval_frequency=2, checkpoint_frequency=2, phases=[
            {"max_length": 64, "share": 1.0}
        ],
    )  # fmt: skip
    config["denoising"]["kinds"] = ["infilling"]
    for section, values in sections.items():
        config[section].update(values)
    return check_config(config)


@pytest.mark.parametrize("kinds", [["mass"], ["permutation", "rotation", "deletion", "infilling"]])
@pytest.mark.parametrize("mlm_weight", [0.0, 1.0])
def test_a_decoder_is_pretrained_and_used(kinds, mlm_weight, checkpoint, tmp_path):
    settings = make_settings(
        checkpoint, tmp_path, denoising={"kinds": kinds, "num_layers": 1},
        objective={"mlm_weight": mlm_weight},
    )  # fmt: skip
    last = pretrain(settings, tmp_path / "out", say=lambda text: None)
    assert (last.mlm_loss is None) == (mlm_weight == 0.0)
    assert last.held_out_denoising_loss > 0
    assert 0 <= last.held_out_denoising_accuracy <= 1
    if not mlm_weight:
        assert last.loss == pytest.approx(last.denoising_loss)
    folder = tmp_path / "out" / "model-last"
    decoder = transformers.AutoModelForCausalLM.from_pretrained(folder / "decoder")
    assert decoder.config.add_cross_attention
    nlp = build(str(folder), model={"decoder": str(folder / "decoder")})
    own = shim_of(nlp.get_pipe("bert_seq2seq").model).module.model.state_dict()
    for name, weights in decoder.state_dict().items():
        assert torch.equal(own[name], weights)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("origin", ["encoder", "random"])
def test_what_a_decoder_does_not_take_from_the_encoder_is_new(family, origin, tmp_path):
    name = make_checkpoint(tmp_path / family, family=family)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        pretrainer = load_pretrainer(name, sentence_objective="doc-sentences")
        add_decoder(pretrainer, name, origin, 1)
        made.append(pretrainer)
    one, other = (dict(pretrainer.parts.named_parameters()) for pretrainer in made)
    for key, parameter in one.items():
        if key.startswith("decoder.") and not torch.equal(parameter, other[key]):
            assert made[0].is_new(key), key
    copied = [key for key in one if key.startswith("decoder.") and not made[0].is_new(key)]
    assert bool(copied) == (origin == "encoder")
    assert not any("crossattention" in key for key in copied)


def test_a_decoder_learns(checkpoint, tmp_path):
    """The encoder is told all but a few wordpieces of one text."""
    optimizer = adam(3e-3)
    settings = make_settings(
        checkpoint, tmp_path, objective={"mlm_weight": 0.0},
        training={"max_steps": 60, "eval_frequency": 60, "optimizer": optimizer},
    )  # fmt: skip
    last = pretrain(settings, tmp_path / "out", say=lambda text: None)
    assert last.held_out_denoising_accuracy > 0.9


def test_a_resumed_run_has_the_same_weights(checkpoint, tmp_path):
    settings = make_settings(checkpoint, tmp_path)
    pretrain(settings, tmp_path / "whole", say=lambda text: None)

    def stop(step):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(settings, tmp_path / "parts", say=lambda text: None, on_step=stop)
    pretrain(settings, tmp_path / "parts", resume=True, say=lambda text: None)
    for name in ("model.safetensors", "decoder/model.safetensors"):
        one, other = (tmp_path / run / "model-last" / name for run in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes()
    rows = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    assert all(json.loads(row)["held_out_denoising_loss"] > 0 for row in rows)


def test_the_loss_is_that_of_transformers(checkpoint, tmp_path):
    """The first report is of the unadapted encoder and a decoder made of it."""
    settings = make_settings(
        checkpoint, tmp_path, objective={"mlm_weight": 0.0}, denoising={"kinds": ["rotation"]}
    )
    pretrainer = load_pretrainer(checkpoint, sentence_objective="doc-sentences").eval()
    add_decoder(pretrainer, checkpoint, "encoder", None)
    pretrainer.eval()
    tokenizer = pretrainer.encoder.checkpoint.tokenizer
    corpus, _ = prepare_texts(settings, tokenizer)
    data = Data(corpus, pretrainer.vocabulary(), settings, tmp_path / "plans")
    batch, _ = data.train_batch(Position(), 1)
    assert not len(batch.masked) and len(batch.restored) == len(batch.labels)
    cpu = torch.device("cpu")
    totals = Totals(
        *pretrainer.run(
            batch, max_batch_tokens=128, autocast=autocast_for("fp32", cpu), scales=None
        ).tolist()
    )
    expected = count = 0.0
    bounds = batch.packed.cu_seqlens
    for number, restored in batch.restored.items():
        ids = torch.from_numpy(batch.packed.input_ids[bounds[number] : bounds[number + 1]])[None]
        start, end = int(tokenizer.prefix[0]), int(tokenizer.suffix[-1])
        given = torch.tensor([[start, *restored.tolist()]])
        wanted = torch.tensor([*restored.tolist(), end])
        with torch.no_grad():
            states = pretrainer.encoder.checkpoint.model(ids).last_hidden_state
            logits = pretrainer.decoder.model(given, encoder_hidden_states=states).logits[0]
        expected += float(F.cross_entropy(logits, wanted, reduction="sum"))
        count += len(wanted)
    assert totals.n_restored == count
    assert totals.denoising_loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"denoising": {"kinds": ["mass", "deletion"]}}, "denoising.kinds has mass"),
        ({"objective": {"sentences": "nsp"}}, 'Set it to "doc-sentences"'),
        ({"denoising": {"kinds": ["noise"]}}, "denoising.kinds"),
    ],
)
def test_settings_that_make_no_sense(sections, message, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_settings(checkpoint, tmp_path, **sections)
