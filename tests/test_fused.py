"""Fused layers give the hidden states of the family's own."""

import numpy as np
import pytest
import torch
from checkpoints import load_encoder
from conftest import needs_onednn

from spacy_bert_heads.encoder import fused
from spacy_bert_heads.encoder.inference import for_inference
from spacy_bert_heads.text.batch import PackedBatch, cumulate


@needs_onednn
@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("family", fused.FAMILIES)
@pytest.mark.parametrize("lengths", [(7,), (16,), (5, 5), (9, 3, 4, 20)])
def test_fused_layers_are_the_familys_own(family, lengths, folders):
    bert = load_encoder(folders(family))
    fast = for_inference(bert, "fp32")
    assert fast.is_fused is bool(bert.interface)  # transformers 4 has no such ELECTRA
    torch.manual_seed(0)
    ids = torch.randint(5, 20, (sum(lengths),)).numpy()
    batch = PackedBatch(ids, np.zeros_like(ids), cumulate(np.asarray(lengths)), np.ones(1, int))
    layers = (0, 1, 2)
    made, exact = (one.encode(batch, layers, max_batch_tokens=32).states for one in (fast, bert))
    torch.testing.assert_close(made, exact, atol=1e-5, rtol=1e-5)
    made, exact = (one.encode(batch, max_batch_tokens=32).states for one in (fast, bert))
    torch.testing.assert_close(made, exact, atol=1e-5, rtol=1e-5)
