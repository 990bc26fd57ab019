"""Decoders: their weights, their logits and texts beside transformers' EncoderDecoderModel."""

import copy

import numpy as np
import pytest
import spacy
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from seq2seq_cases import DATA, build, learn, make_examples, write

from spacy_bert_heads.encoder.model import checkpoint_of, shim_of
from spacy_bert_heads.heads.decoder import FAMILIES, Sources
from spacy_bert_heads.heads.generation import group_by_length, pad_states, padded_index
from spacy_bert_heads.hf import from_hf, to_hf
from spacy_bert_heads.text.batch import PackedBatch

TEXTS = [text for text, _ in DATA]


def decoder_of(nlp):
    return shim_of(nlp.get_pipe("bert_seq2seq").model).module


def encoder_of(nlp):
    return checkpoint_of(nlp.get_pipe("bert_encoder").model)


def export(nlp, folder):
    to_hf(nlp, "bert_seq2seq", folder)
    model = transformers.EncoderDecoderModel.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_loss_and_texts_as_transformers(family, folders, tmp_path):
    nlp = learn(build(folders(family), num_beams=3), 4)
    model, tokenizer = export(nlp, tmp_path / "hf")
    head = nlp.get_pipe("bert_seq2seq")
    examples = make_examples(nlp)
    targets = head.encode([eg.reference._.targets[0] for eg in examples])
    output, _ = head.model.begin_update(Sources([eg.predicted for eg in examples], targets))
    total = count = 0.0
    for text, eg in zip(TEXTS, examples, strict=True):
        labels = tokenizer(eg.reference._.targets[0], return_tensors="pt").input_ids[:, 1:]
        with torch.no_grad():
            loss = model(**tokenizer(text, return_tensors="pt"), labels=labels).loss
        total, count = total + float(loss) * labels.numel(), count + labels.numel()
    assert float(head.loss(examples, output)) == pytest.approx(total / count, rel=1e-4)

    found = write(nlp, TEXTS)
    for text, own in zip(TEXTS, found, strict=True):
        ids = model.generate(**tokenizer(text, return_tensors="pt"))
        assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == own
    again = from_hf(str(tmp_path / "hf"))
    assert again.pipe_names == ["bert_encoder", "bert_seq2seq"]
    assert write(again, TEXTS) == found


@pytest.mark.parametrize("family", ["distilbert", "albert", "modernbert", "deberta-v2", "mpnet"])
def test_families_without_decoders_get_one_of_bert(family, folders):
    checkpoint = folders(family)
    with pytest.raises(ValueError, match=f"can't be initialised from a '{family}' encoder"):
        build(checkpoint)
    nlp = build(checkpoint, model={"decoder": "random", "num_layers": 1})
    model = decoder_of(nlp).model
    assert (model.config.model_type, model.config.num_hidden_layers) == ("bert", 1)
    assert write(learn(nlp, 80), TEXTS) == [targets[0] for _, targets in DATA]


@pytest.mark.parametrize("num_layers, chosen", [(None, [0, 1, 2, 3]), (3, [0, 2, 3]), (1, [0])])
def test_weights_of_the_encoder(num_layers, chosen, folders):
    name = folders("bert", num_hidden_layers=4)
    nlp = build(name, model={"decoder": "encoder", "num_layers": num_layers})
    model, encoder = decoder_of(nlp).model, encoder_of(nlp).model
    assert len(model.bert.encoder.layer) == len(chosen)
    for own, number in zip(model.bert.encoder.layer, chosen, strict=True):
        weights = own.state_dict()
        for key, value in encoder.encoder.layer[number].state_dict().items():
            assert torch.equal(weights[key], value)
    words = encoder.embeddings.word_embeddings.weight
    assert torch.equal(model.get_output_embeddings().weight, words)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_input_embeddings().weight is not words  # each learns on its own


def test_decoders_that_do_not_fit(checkpoint, folders, tmp_path):
    with pytest.raises(ValueError, match="num_layers is 9, but the encoder .* has 2 layers"):
        build(checkpoint, model={"num_layers": 9})
    with pytest.raises(ValueError, match="is no decoder"):
        build(checkpoint, model={"decoder": checkpoint})
    nlp = build(checkpoint)
    decoder_of(nlp).model.save_pretrained(tmp_path / "decoder")
    own = build(checkpoint, model={"decoder": str(tmp_path / "decoder")})
    for one, other in zip(decoder_of(own).parameters(), decoder_of(nlp).parameters(), strict=True):
        assert torch.equal(one, other)
    wider = folders("bert", hidden_size=48)
    with pytest.raises(ValueError, match="has hidden_size = 32, but the encoder 48"):
        build(wider, model={"decoder": str(tmp_path / "decoder")})
    with pytest.raises(ValueError, match="A decoder reads the last layer of an encoder"):
        build(checkpoint, model={"tok2vec": {"layers": [-2]}})


def test_hugging_face_errors(checkpoint, tmp_path):
    nlp = build(checkpoint)
    with pytest.raises(ValueError, match="writes texts step by step"):
        to_hf(nlp, "bert_seq2seq", tmp_path / "onnx", format="onnx")
    to_hf(nlp, "bert_seq2seq", tmp_path / "hf")
    with pytest.raises(ValueError, match="which writes texts: give no labels"):
        from_hf(str(tmp_path / "hf"), labels=["X"])
    with pytest.raises(ValueError, match="it can become a bert_seq2seq alone"):
        from_hf(str(tmp_path / "hf"), task="ner")
    assert "pipeline_tag: text2text-generation" in (tmp_path / "hf" / "README.md").read_text()


def test_precisions(checkpoint):
    """The decoder computes as its encoder does."""
    nlp = learn(build(checkpoint))
    for precision in ("bf16", "fp32"):
        config = copy.deepcopy(nlp.config)
        config["components"]["bert_encoder"]["model"]["precision"] = precision
        own = spacy.blank("en").from_config(config).from_bytes(nlp.to_bytes())
        assert write(own, TEXTS) == [targets[0] for _, targets in DATA]
        derived = shim_of(own.get_pipe("bert_seq2seq").model)._derived[1]
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
        assert next(derived.decoder.parameters()).dtype == dtype


# --- arrays


def test_padding():
    assert padded_index(np.array([2, 0, 3])).tolist() == [[0, 1, -1], [-1, -1, -1], [2, 3, 4]]
    states = torch.arange(12.0).reshape(6, 2)
    # Two windows of the first text, one of the second.
    batch = PackedBatch(np.zeros(6), np.zeros(6), np.array([0, 2, 5, 6]), np.array([2, 1]))
    memory, mask = pad_states(states, batch)
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert torch.equal(memory[0], states[:5])
    assert memory[1].tolist() == [[10.0, 11.0], *[[0.0, 0.0]] * 4]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_groups(lengths, budget):
    groups = list(group_by_length(np.array(lengths, dtype=np.int64), budget))
    assert sorted(np.concatenate(groups).tolist() if groups else []) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget
