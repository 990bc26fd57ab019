"""Losses and gradients next to Hugging Face's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from pretraining_runs import make_settings
from transformers import (
    AlbertForPreTraining,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    BertForPreTraining,
)

from spacy_bert_heads.encoder.buckets import BucketedBatch
from spacy_bert_heads.pretraining.data import Data
from spacy_bert_heads.pretraining.objectives import Totals, load_pretrainer, save_pretrainer
from spacy_bert_heads.pretraining.prepare import prepare
from spacy_bert_heads.pretraining.settings import Settings


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("encoder") / "bert", dropout=0.1)


@pytest.fixture(scope="module")
def settings(encoder, tmp_path_factory) -> Settings:
    return make_settings(tmp_path_factory.mktemp("settings"), encoder)


@pytest.mark.parametrize(
    "family, objective, model_class",
    [
        ("bert", "nsp", BertForPreTraining),
        ("bert", "sop", BertForPreTraining),
        ("albert", "sop", AlbertForPreTraining),
        ("bert", "full-sentences", AutoModelForMaskedLM),
        ("roberta", "doc-sentences", AutoModelForMaskedLM),
        ("distilbert", "full-sentences", AutoModelForMaskedLM),
        ("electra", "full-sentences", AutoModelForMaskedLM),
        ("mpnet", "full-sentences", AutoModelForMaskedLM),
        ("deberta-v2", "full-sentences", AutoModelForMaskedLM),
        ("modernbert", "full-sentences", AutoModelForMaskedLM),
    ],
)
def test_losses_and_gradients_are_hugging_faces(settings, tmp_path, family, objective, model_class):
    name = make_checkpoint(tmp_path / family, family=family)
    settings = replace(settings, objective=replace(settings.objective, sentences=objective))
    pretrainer = load_pretrainer(name, sentence_objective=objective)
    assert "masked-LM head" in pretrainer.new_heads
    pretrainer.model.save_pretrained(tmp_path / "saved")
    corpus = prepare(
        settings.paths.raw, tmp_path, wordpieces=pretrainer.encoder.checkpoint.tokenizer, workers=1
    )
    data = Data(corpus, pretrainer.vocabulary(), settings, tmp_path / "plans")
    batch = data.held_out_batches(0)[0]
    scales = (1 / len(batch.masked), 1 / max((batch.labels >= 0).sum(), 1), 0.0)
    sums = pretrainer.run(
        batch,
        max_batch_tokens=64,
        autocast=torch.autocast("cpu", enabled=False),
        scales=scales,
    )
    found = Totals(*sums.tolist())

    theirs = model_class.from_pretrained(tmp_path / "saved").eval()
    packed, targets = batch.packed, np.full(len(batch.packed.input_ids), -100)
    targets[batch.masked] = batch.targets
    total = 0.0
    begin = 0
    for i, length in enumerate(packed.seqlens.tolist()):
        part = slice(begin, begin + length)
        begin += length
        inputs = {"input_ids": torch.from_numpy(packed.input_ids[None, part])}
        if family in ("bert", "albert", "electra"):
            inputs["token_type_ids"] = torch.from_numpy(packed.token_type_ids[None, part])
        output = theirs(**inputs)
        logits = getattr(output, "prediction_logits", getattr(output, "logits", None))
        gold = torch.from_numpy(targets[None, part])
        loss = torch.nn.functional.cross_entropy(logits[0], gold[0], reduction="sum")
        total = total + loss * scales[0]
        if batch.labels[i] >= 0:
            logits = getattr(output, "seq_relationship_logits", getattr(output, "sop_logits", None))
            label = torch.tensor([int(batch.labels[i])])
            total = total + torch.nn.functional.cross_entropy(logits, label) * scales[1]
    total.backward()
    ours = found.mlm_loss * scales[0] + found.sentence_loss * scales[1]
    assert ours == pytest.approx(float(total.detach()), abs=1e-4)
    assert found.n_masked == len(batch.masked)
    gradients = {n: p.grad for n, p in pretrainer.model.named_parameters() if p.grad is not None}
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    learning = {n for n, p in pretrainer.model.named_parameters() if p.requires_grad}
    assert set(gradients) == learning
    for key, gradient in expected.items():
        if key in gradients:
            torch.testing.assert_close(gradients[key], gradient, atol=1e-5, rtol=1e-3)
    assert len(set(gradients) & set(expected)) >= (10 if family == "modernbert" else 20)


@pytest.mark.parametrize(
    "family, objective", [("bert", "nsp"), ("albert", "sop"), ("bert", "full-sentences")]
)
def test_all_that_learns_takes_part_in_every_part(tmp_path, family, objective):
    name = make_checkpoint(tmp_path / family, family=family)
    pretrainer = load_pretrainer(name, sentence_objective=objective)
    ids, none = torch.full((14,), 5), torch.empty(0, dtype=torch.int64)
    positions = torch.arange(7).repeat(2)
    layout = BucketedBatch(ids, torch.zeros_like(ids), ids == 5, positions, [(2, 7)], [False])
    mlm_loss, _, sentence_loss, *_ = pretrainer(layout, none, none, none, none)
    (mlm_loss + sentence_loss).backward()
    assert (mlm_loss.item(), sentence_loss.item()) == (0.0, 0.0)
    for key, parameter in pretrainer.named_parameters():
        is_frozen = objective == "full-sentences" and ("pooler" in key or "seq_rel" in key)
        assert parameter.requires_grad != is_frozen, key
        assert is_frozen or not parameter.grad.any(), key  # there is one, and it is zero


def test_an_objective_that_the_family_has_no_head_for(tmp_path):
    name = make_checkpoint(tmp_path / "roberta", family="roberta")
    with pytest.raises(ValueError, match="full-sentences"):
        load_pretrainer(name, sentence_objective="nsp")


@pytest.mark.parametrize("has_masks", [True, False])
@pytest.mark.parametrize("objective", ["nsp", "full-sentences"])
def test_a_new_head_that_is_not_trained_is_not_saved(tmp_path, objective, has_masks):
    name = make_checkpoint(tmp_path / "bert", auto_class=AutoModelForTokenClassification)
    first = load_pretrainer(name, sentence_objective=objective, has_masks=has_masks)
    expected = {"pooler", "sentence head"} if objective == "full-sentences" else set()
    expected |= set() if has_masks else {"masked-LM head"}
    named = first.model.named_parameters(remove_duplicate=False)
    learning = {key for key, one in named if one.requires_grad}
    assert first.untrained == first.new_parameters - learning
    save_pretrainer(first, tmp_path / "saved")
    again = load_pretrainer(str(tmp_path / "saved"), sentence_objective=objective)
    assert set(again.new_heads) == expected


@pytest.mark.parametrize(("family", "objective"), [("bert", "nsp"), ("albert", "sop")])
def test_a_pooler_without_its_head_is_made_anew(tmp_path, family, objective):
    name = make_checkpoint(tmp_path / family, family=family)
    kept = load_pretrainer(name, sentence_objective=None)
    renewed = load_pretrainer(name, sentence_objective=objective)
    assert "pooler" not in kept.new_heads and "pooler" in renewed.new_heads
    (weight, bias), (old, _) = (
        list(one.sentence_head()[0].parameters()) for one in (renewed, kept)
    )
    assert not torch.equal(weight, old)
    assert abs(weight.std().item() / renewed.model.config.initializer_range - 1) < 0.1
    assert not bias.any()
    # A checkpoint with the whole head keeps its pooler.
    save_pretrainer(renewed, tmp_path / "saved")
    again = load_pretrainer(str(tmp_path / "saved"), sentence_objective=objective)
    assert not again.new_parameters
    assert torch.equal(again.sentence_head()[0].state_dict().popitem(last=False)[1], weight)
