"""The layers that heads read: their learned weights."""

import numpy as np
import pytest
import spacy
import torch
from conftest import make_examples
from typer.testing import CliRunner

from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.encoder.features import mix_of
from spacy_bert_heads.inspection.weights import read_weights


@pytest.mark.parametrize("replaced", [False, True])
def test_weights_of_heads(checkpoint, tmp_path, replaced):
    nlp = spacy.blank("en")
    settings = {"name": checkpoint, "window": 64, "stride": 48}
    nlp.add_pipe("bert_encoder", config={"model": settings})
    listener = {"@architectures": "spacy_bert_heads.BertListener.v1", "combine": "weighted"}
    listeners = {
        "bert_tagger": {**listener, "layers": [2, 0, -2]},
        "bert_ner": {**listener, "layers": "all", "combine": "sum"},
        "bert_textcat_multilabel": {**listener, "layers": "all"},
    }
    for name, tok2vec in listeners.items():
        nlp.add_pipe(name, config={"model": {"tok2vec": tok2vec}})
    nlp.initialize(lambda: make_examples(nlp))
    weighted = [node for node in nlp.get_pipe("bert_tagger").model.walk() if node.shims]
    mix = next(mix_of(node) for node in weighted if node.name == "layer_features")
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([1.0, 2.0, 5.0]).log())
        mix.scale.fill_(0.5)
    if replaced:
        nlp.replace_listeners("bert_encoder", "bert_tagger", ["model.tok2vec"])
    nlp.to_disk(tmp_path / "pipeline")
    tagger, textcat = read_weights(str(tmp_path / "pipeline"))
    assert tagger[:2] == ("bert_tagger", (2, 0, 1)) and tagger[3:] == (0.5, 2)
    np.testing.assert_allclose(tagger.weights, [1 / 8, 2 / 8, 5 / 8], atol=1e-6)
    assert tagger.centre == pytest.approx((1 * 2 + 2 * 0 + 5 * 1) / 8)
    assert textcat[:2] == ("bert_textcat_multilabel", (0, 1, 2)) and textcat.scale == 1
    np.testing.assert_allclose(textcat.weights, [1 / 3] * 3, atol=1e-6)

    command = ["inspect", "weights", str(tmp_path / "pipeline"), "-o", str(tmp_path / "weights")]
    result = CliRunner().invoke(bert_app, command)
    assert result.exit_code == 0, result.output
    assert "bert_tagger: mean layer 0.88, scale 0.500" in result.output
    assert (tmp_path / "weights.png").stat().st_size and (tmp_path / "weights.html").exists()


def test_heads_that_read_one_layer_have_no_weights(make_nlp, tmp_path):
    make_nlp("ner").to_disk(tmp_path / "pipeline")
    with pytest.raises(ValueError, match="No head of .* has learned layer weights .bert_encoder, "):
        read_weights(str(tmp_path / "pipeline"))


def test_a_checkpoint_has_no_layer_weights(checkpoint):
    with pytest.raises(ValueError, match="There is no pipeline .* checkpoint has no heads"):
        read_weights(checkpoint)
