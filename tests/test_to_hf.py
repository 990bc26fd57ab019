"""Nothing is lost on the way back to Hugging Face."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
import transformers
from checkpoints import TEXTS, make_checkpoint
from hf_models import (
    ANSWERS,
    ENDS,
    MOODS,
    PLACES,
    SEQUENCES,
    TOKENS,
    VERDICTS,
    load,
    run,
    save,
    token_logits,
)
from safetensors.torch import load_file
from spacy.cli.train import train
from spacy.tokens import DocBin
from typer.testing import CliRunner

import spacy_bert_heads
from spacy_bert_heads import from_hf, to_hf
from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.pairs import make_verdict


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
@pytest.mark.parametrize(
    "auto_class, labels", [(TOKENS, PLACES), (SEQUENCES, VERDICTS), (ANSWERS, ENDS)]
)
def test_in_and_out_and_in_is_lossless(family, auto_class, labels, tmp_path):
    folder = save(tmp_path / "hf", auto_class, labels, family=family)
    nlp = from_hf(folder)
    head = nlp.pipe_names[1]
    to_hf(nlp, head, tmp_path / "out")
    again = from_hf(str(tmp_path / "out"))
    assert again.pipe_names == nlp.pipe_names
    its_own = {"encoder": again.get_pipe("bert_encoder").id}
    assert again.get_pipe(head).cfg == nlp.get_pipe(head).cfg | its_own
    for name in again.pipe_names:
        ours, theirs = (shim_of(p.get_pipe(name).model).module for p in (nlp, again))
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for key, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[key]), key
    _, tokenizer = load(folder, auto_class)
    _, back = load(str(tmp_path / "out"), auto_class)
    assert tokenizer(TEXTS).input_ids == back(TEXTS).input_ids
    info = auto_class.from_pretrained(tmp_path / "out", output_loading_info=True)[1]
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_half_precision_on_request(tmp_path):
    nlp = from_hf(save(tmp_path / "hf", SEQUENCES, MOODS))
    to_hf(nlp, "bert_textcat", tmp_path / "half", precision="fp16")
    dtypes = {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()}
    assert dtypes == {torch.float16}
    assert nlp.get_pipe("bert_encoder").model.shims[0].module.model.dtype == torch.float32
    again = from_hf(str(tmp_path / "half"))
    to_hf(again, "bert_textcat", tmp_path / "whole")  # is not rounded, whatever it came from
    dtypes = {t.dtype for t in load_file(tmp_path / "whole" / "model.safetensors").values()}
    assert dtypes == {torch.float32}
    found = from_hf(str(tmp_path / "half"))(TEXTS[0]).cats
    assert found == pytest.approx(nlp(TEXTS[0]).cats, abs=1e-2)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_heads_trained_here_are_hugging_faces(family, tmp_path, make_nlp):
    """Not only what came from there goes back."""
    name = make_checkpoint(tmp_path / "encoder", family=family)
    nlp = make_nlp("ner", "textcat", "tagger", name=name)
    for head, auto_class in (("bert_ner", TOKENS), ("bert_textcat", SEQUENCES)):
        to_hf(nlp, head, tmp_path / head)
        model, tokenizer = load(str(tmp_path / head), auto_class)
        doc = nlp.make_doc(TEXTS[2])
        found = nlp.get_pipe(head).predict([doc])
        if head == "bert_ner":
            found, expected = found.logits, token_logits(model, tokenizer, doc)
        else:
            expected = run(model, tokenizer, doc.text).logits
        np.testing.assert_allclose(found, expected, atol=1e-4)
    to_hf(nlp, "bert_encoder", tmp_path / "alone")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "alone").state_dict()
    ours = shim_of(nlp.get_pipe("bert_encoder").model).module.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_what_hugging_face_has_no_class_for(tmp_path, make_nlp):
    nlp = make_nlp()
    nlp.add_pipe("bert_textcat", config={"model": {"pooling": "mean"}})
    with pytest.raises(ValueError, match=r"pooling = 'mean'. Train it with pooling = \"pooler\""):
        nlp.get_pipe("bert_textcat").add_label("a")
        nlp.get_pipe("bert_textcat").add_label("b")
        nlp.initialize()
        to_hf(nlp, "bert_textcat", tmp_path)
    nlp.add_pipe("sentencizer")
    with pytest.raises(ValueError, match="not a component of spacy_bert_heads"):
        to_hf(nlp, "sentencizer", tmp_path)
    with pytest.raises(ValueError, match="has no 'ner'. It has: bert_encoder"):
        to_hf(nlp, "ner", tmp_path)
    with pytest.raises(ValueError, match="Unknown precision 'int4'"):
        to_hf(nlp, "bert_textcat", tmp_path, precision="int4")


def test_what_was_loaded_is_trained_further_and_handed_back(tmp_path):
    """The whole road, as the commands take it."""

    def bert(*words: str) -> str:
        result = CliRunner().invoke(bert_app, list(words))
        assert result.exit_code == 0, result.output
        return result.output

    folder = save(tmp_path / "hf", TOKENS, PLACES)
    pipeline, config = str(tmp_path / "pipeline"), str(tmp_path / "config.cfg")
    said = bert("from-hf", folder, pipeline)
    assert "bert_encoder, bert_ner" in said
    assert "PLACE, DATE" in said
    nlp = spacy.blank("en")
    doc = nlp("Anna met Barack in Berlin")
    doc.set_ents([doc.char_span(19, 25, label="PLACE")])
    data = tmp_path / "data.spacy"
    DocBin(docs=[doc] * 8).to_disk(data)
    bert("init-config", config, "--source", pipeline, "--train", str(data), "--dev", str(data))
    overrides = {
        "training.max_steps": 60,
        "training.optimizer.learn_rate.initial_rate": 0.003,
        "training.eval_frequency": 20,
    }
    train(Path(config), tmp_path / "out", overrides=overrides)
    found = spacy.load(tmp_path / "out" / "model-best")("Anna met Barack in Berlin").ents
    assert [(ent.text, ent.label_) for ent in found] == [("Berlin", "PLACE")]

    bert("to-hf", str(tmp_path / "out" / "model-best"), "bert_ner", str(tmp_path / "back"))
    pipe = transformers.pipeline(
        "token-classification", str(tmp_path / "back"), aggregation_strategy="first"
    )
    (entity,) = pipe("Anna met Barack in Berlin")
    assert (entity["word"], entity["entity_group"]) == ("berlin", "PLACE")
    card = (tmp_path / "back" / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "`PLACE`, `DATE`" in card
    assert "| `ents_f` | 1.0000 |" in card
    assert "learning rate: 0.003" in card


def test_the_lines_of_the_documentation(tmp_path, monkeypatch):
    """Each road between the worlds, as it is written there."""
    page = Path(__file__).parent.parent / "docs" / "hugging-face.md"
    table = page.read_text(encoding="utf8").split("| you have … | use … |")[1].split("\n\n")[0]
    lines = [line.split("| `")[1].removesuffix("` |") for line in table.splitlines()[2:]]
    assert len(lines) == 9
    monkeypatch.chdir(tmp_path)
    save(Path("my-ner"), TOKENS, PLACES)
    save(Path("my-sentiment"), SEQUENCES, MOODS)
    save(Path("my-nli"), SEQUENCES, ["LABEL_0", "LABEL_1", "LABEL_2"])
    for name in ("train", "dev"):
        doc = spacy.blank("en")("A text")
        doc._.hypotheses, doc._.nli = ["A text."], [make_verdict("entailment")]
        DocBin(docs=[doc], store_user_data=True).to_disk(f"{name}.spacy")
    variables = {"spacy_bert_heads": spacy_bert_heads}
    for line in lines:
        if line.startswith("python -m spacy bert "):
            words = shlex.split(line.removeprefix("python -m spacy bert "))
            result = CliRunner().invoke(bert_app, words)
            assert result.exit_code == 0, f"{line}\n{result.output}"
        else:
            exec(line, variables)
    assert spacy.load("my-pipeline").get_pipe("bert_nli").labels[0] == "entailment"
    assert load_file("my-checkpoint/model.safetensors")["classifier.bias"].dtype == torch.float16
