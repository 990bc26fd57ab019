"""Every model type that may be loaded, beside transformers' own loading and its own model."""

import pytest
import torch
import transformers
from checkpoints import FAMILIES as MAIN_FAMILIES
from checkpoints import MORE_FAMILIES, TEXTS, load_encoder, make_checkpoint

from spacy_bert_heads.encoder.loading import load_checkpoint
from spacy_bert_heads.encoder.untrusted import FAMILIES
from spacy_bert_heads.text.packing import pack_docs

# Settings that a configuration class doesn't list among its parameters, or that change what is
# computed: dropping one of them would show.
SETTINGS: dict[str, dict] = {
    "bert": {"layer_norm_eps": 1e-3, "hidden_act": "relu"},
    "albert": {"num_hidden_groups": 2},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "talking_head": True},
    "deberta-v2": {"conv_kernel_size": 3, "conv_act": "gelu", "position_buckets": 8},
    "big_bird": {"attention_type": "original_full"},
    "longformer": {"attention_window": 8},
    "mobilebert": {"initializer_range": 0.02},  # its norms do not normalize
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
}
# Of the installed version; transformers 4 has no EuroBERT.
LACKING = set(FAMILIES) - set(transformers.CONFIG_MAPPING)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - LACKING))
def test_hidden_states_are_those_of_transformers(family, tmp_path):
    import spacy

    name = make_checkpoint(tmp_path, family=family, **SETTINGS.get(family, {}))
    bert = load_encoder(name)
    theirs = transformers.AutoModel.from_pretrained(name).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    docs = [spacy.blank("xx").make_doc(text) for text in TEXTS]
    batch = pack_docs(docs, bert.checkpoint.tokenizer, window=64, stride=48)
    found = bert.encode(batch, max_batch_tokens=512).states
    for text, ours in zip(TEXTS, found.split(batch.seqlens.tolist()), strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            expected = theirs(**inputs).last_hidden_state[0]
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("family", sorted(LACKING))
def test_a_type_that_transformers_lacks_asks_for_a_newer_one(family, tmp_path):
    make_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(f'{{"model_type": "{family}"}}')
    with pytest.raises(ValueError, match=f"'{family}' model, which .* pip install -U transformers"):
        load_checkpoint(str(tmp_path))


def test_every_type_has_a_tokenizer_for_its_test():
    assert set(FAMILIES) == {*MAIN_FAMILIES, *MORE_FAMILIES}
