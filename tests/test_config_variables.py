"""Variables of a config, such as ${paths.encoder}, are resolved where their value counts."""

import warnings

import pytest
import spacy
from conftest import make_examples
from spacy.util import load_model_from_config
from thinc.api import Config

from spacy_bert_heads import to_hf

CONFIG = """
[paths]
encoder = "{encoder}"

[vars]
frozen = {frozen}

[nlp]
lang = "en"
pipeline = ["bert_encoder","bert_ner"]

[components]

[components.bert_encoder]
factory = "bert_encoder"

[components.bert_encoder.model]
@architectures = "spacy_bert_heads.BertEncoder.v1"
name = ${{paths.encoder}}
window = 64
stride = 48

[components.bert_ner]
factory = "bert_ner"

[training]
frozen_components = ${{vars.frozen}}
"""


def build(encoder: str, frozen: str = "[]"):
    """As `spacy train` does: the config keeps its variables."""
    config = Config().from_str(CONFIG.format(encoder=encoder, frozen=frozen), interpolate=False)
    nlp = load_model_from_config(config, auto_fill=True)
    assert "${paths.encoder}" in nlp.config.to_str()
    nlp.initialize(lambda: make_examples(nlp))
    return nlp


@pytest.mark.parametrize("saved", [False, True])
def test_a_model_card_names_the_encoder(checkpoint, saved, tmp_path):
    nlp = build(checkpoint)
    nlp.meta["performance"] = {"ents_f": 0.5}
    if saved:
        nlp.to_disk(tmp_path / "pipeline")
        nlp = spacy.load(tmp_path / "pipeline")
    to_hf(nlp, "bert_ner", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "- encoder: bert\n" in card  # the last part of the folder
    assert "$" not in card


def test_a_frozen_encoder_is_told_by_a_variable(checkpoint):
    nlp = build(checkpoint, frozen='["bert_encoder"]')
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="bert_ner learns, but 'bert_encoder' does not")
        nlp.update(make_examples(nlp), exclude=["bert_encoder"], sgd=nlp.create_optimizer())
    assert nlp.get_pipe("bert_encoder").num_updates == 0
