"""Settings under the names of version 0.1: they work, warn, and are stored under the new names."""

import json
import warnings

import pytest
import spacy
from spacy.language import Language

from spacy_bert_heads.encoder.model import build_bert_encoder, shim_of
from spacy_bert_heads.heads.find import head_classes
from spacy_bert_heads.heads.layers import build_token_head
from spacy_bert_heads.pipe_configs import pipe_configs_of

OLD, NEW = "rate_factor", "learning_rate_multiplier"
WARNING = f"The setting {OLD} is deprecated .* Use {NEW}"


def multiplier_of(nlp: Language, name: str) -> float:
    return shim_of(nlp.get_pipe(name).model).optimization.learning_rate_multiplier


def stored_in(nlp: Language, name: str) -> dict[str, float]:
    """The setting as the pipeline's config has it, under either name."""
    model = nlp.config["components"][name]["model"]
    return {key: model[key] for key in (OLD, NEW) if key in model}


HEADS = [cls.factory for cls in head_classes().values()]
# Components that version 0.1 and 0.2 had under the old name.
FACTORIES = ["bert_encoder", *(factory for factory in HEADS if factory != "bert_seq2seq")]


@pytest.mark.parametrize("factory", FACTORIES)
def test_both_names_of_every_component(factory):
    nlp = spacy.blank("xx")
    if factory != "bert_encoder":
        nlp.add_pipe("bert_encoder")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nlp.add_pipe(factory, "new", config={"model": {NEW: 7.0}})
    with pytest.warns(DeprecationWarning, match=WARNING) as warned:
        nlp.add_pipe(factory, "old", config={"model": {OLD: 7.0}})
    assert len(warned) == 1
    for name in ("new", "old"):
        assert multiplier_of(nlp, name) == 7.0
        assert stored_in(nlp, name) == {NEW: 7.0}


def test_a_head_alone_stores_the_new_name():
    for factory in FACTORIES:
        nlp = spacy.blank("xx")
        nlp.add_pipe(factory)
        assert stored_in(nlp, factory) == {NEW: 1.0}


def test_both_names_together_are_an_error():
    both = {OLD: 2.0, NEW: 3.0}
    with pytest.raises(ValueError, match=r"rate_factor = 2.0 and .* = 3.0 are both .* remove it"):
        spacy.blank("xx").add_pipe("bert_ner", config={"model": both})
    with pytest.raises(ValueError, match="both given"):
        build_bert_encoder("checkpoint", **both)


def test_the_functions_take_the_old_name():
    with pytest.warns(DeprecationWarning, match=WARNING):
        model = build_token_head(build_bert_encoder("checkpoint"), rate_factor=4.0)
    assert shim_of(model).optimization.learning_rate_multiplier == 4.0


def test_a_config_with_the_old_name(checkpoint):
    """As `spacy train` and `spacy init fill-config` read it, with a variable."""
    nlp = spacy.blank("xx")
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, NEW: 0.25}})
    nlp.add_pipe("bert_textcat", config={"model": {NEW: 0.5}})
    text = nlp.config.to_str()
    text = text.replace(f"{NEW} = 0.5", f"{OLD} = ${{vars.rate}}") + "\n[vars]\nrate = 0.5\n"
    config = spacy.util.load_config_from_str(text.replace(NEW, OLD), interpolate=False)
    with pytest.warns(DeprecationWarning, match=WARNING) as warned:
        filled = spacy.util.load_model_from_config(config, auto_fill=True)
    assert len(warned) == 2
    assert multiplier_of(filled, "bert_encoder") == 0.25
    assert multiplier_of(filled, "bert_textcat") == 0.5
    assert stored_in(filled, "bert_encoder") == {NEW: 0.25}
    assert stored_in(filled, "bert_textcat") == {NEW: "${vars.rate}"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        again = spacy.util.load_model_from_config(filled.config, auto_fill=True)
    assert multiplier_of(again, "bert_textcat") == 0.5


def test_an_override_when_a_pipeline_is_loaded(joint):
    old = {"components": {"bert_ner": {"model": {OLD: 5.0}}}}
    with pytest.warns(DeprecationWarning, match=WARNING):
        nlp = spacy.load(joint, config=old)
    assert multiplier_of(nlp, "bert_ner") == 5.0
    assert stored_in(nlp, "bert_ner") == {NEW: 5.0}


def test_encoders_of_the_components_own(joint, tmp_path):
    """`replace_listeners` copies the encoder's settings into the head's model."""
    nlp = spacy.load(joint)
    nlp.replace_listeners("bert_encoder", "bert_ner", ["model.tok2vec"])
    nlp.to_disk(tmp_path / "own")
    assert OLD not in json.dumps(nlp.config)
    file = tmp_path / "own" / "config.cfg"
    file.write_text(file.read_text().replace(NEW, OLD))
    with pytest.warns(DeprecationWarning, match=WARNING):
        again = spacy.load(tmp_path / "own", exclude=["bert_encoder"])
    assert OLD not in json.dumps(again.config)


def test_configs_from_before_the_first_component_of_ours():
    nlp = spacy.blank("xx")
    ours = {"@architectures": "spacy_bert_heads.BertEncoder.v1"}
    others = {"@architectures": "other.Model.v1", OLD: 2.0}  # a setting of another package
    model = {"tok2vec": {**ours, OLD: None, NEW: 1.0}, "other": others}
    nlp._pipe_configs["tagger"] = spacy.util.Config({"model": model})
    expected = {"tok2vec": {**ours, NEW: 1.0}, "other": others}
    assert pipe_configs_of(nlp)["tagger"] == {"model": expected}
