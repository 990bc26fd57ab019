"""ONNX files compute what the pipeline's heads do, for any number of texts of any length."""

import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import spacy
import torch
import transformers
from checkpoints import FAMILIES, TEXTS
from hf_models import ANSWERS, ENDS, MOODS, PLACES, SEQUENCES, TOKENS, VERDICTS, save, token_logits
from pair_examples import predict_pairs
from typer.testing import CliRunner

from spacy_bert_heads import from_hf, onnx, to_hf
from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.heads.choice import BertChoice
from spacy_bert_heads.text.pairs import Pairs

pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
CHOICES = transformers.AutoModelForMultipleChoice
CROSS_ENCODER = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
SECOND = ["A boat had trouble at sea, somewhere off the coast.", "Nobody swam", "船"]
# A head, the class of its checkpoint, the names of the classes, other settings.
SINGLE = [
    ("textcat", SEQUENCES, MOODS, {}),
    ("textcat_multilabel", SEQUENCES, MOODS, {"problem_type": "multi_label_classification"}),
    ("regression", SEQUENCES, ["rating", "length"], {"problem_type": "regression"}),
]
PAIRED = [
    ("nli", SEQUENCES, VERDICTS, {}),
    ("similarity", SEQUENCES, ["LABEL_0"], CROSS_ENCODER),
    ("choice", CHOICES, ENDS, {}),
    ("qa", ANSWERS, ENDS, {}),
]


class OnnxModel:
    """An exported folder, called like a model of transformers."""

    def __init__(self, folder):
        self.session = onnxruntime.InferenceSession(folder / "model.onnx")
        self.config = transformers.AutoConfig.from_pretrained(folder)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def __call__(self, **inputs):
        names = [one.name for one in self.session.get_inputs()]
        found = self.session.run(None, {name: inputs[name].numpy() for name in names})
        outputs = [one.name for one in self.session.get_outputs()]
        return SimpleNamespace(**dict(zip(outputs, map(torch.from_numpy, found), strict=True)))

    def run(self, *texts: list[str]):
        """The outputs for a padded batch, and its mask."""
        inputs = self.tokenizer(*texts, return_tensors="pt", padding=True)
        return self(**inputs), inputs["attention_mask"].bool()


def export(tmp_path, head: str, auto_class, labels, **settings):
    """A pipeline, its head, and the head's ONNX file."""
    nlp = from_hf(save(tmp_path / "hf", auto_class, labels, **settings), task=head)
    to_hf(nlp, f"bert_{head}", tmp_path / "onnx", format="onnx")
    return nlp, nlp.get_pipe(f"bert_{head}"), OnnxModel(tmp_path / "onnx")


@pytest.mark.parametrize("head, auto_class, labels, settings", SINGLE)
def test_logits_of_texts(head, auto_class, labels, settings, tmp_path):
    nlp, pipe, model = export(tmp_path, head, auto_class, labels, **settings)
    for texts in (TEXTS, TEXTS[:1], ["A fire"] * 3):
        output, _ = model.run(texts)
        expected = pipe.predict([nlp.make_doc(text) for text in texts])
        np.testing.assert_allclose(output.logits, expected, atol=1e-4)
    assert list(model.config.id2label.values()) == labels


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_tokens(family, tmp_path):
    nlp, pipe, model = export(tmp_path, "ner", TOKENS, PLACES, family=family)
    docs = [nlp.make_doc(text) for text in TEXTS[:4]]
    found = np.concatenate([token_logits(model, model.tokenizer, doc) for doc in docs])
    np.testing.assert_allclose(found, pipe.predict(docs).logits, atol=1e-4)
    assert list(model.config.id2label.values()) == pipe.tags


def test_logits_of_a_tagger(tmp_path):
    nlp, pipe, model = export(tmp_path, "tagger", TOKENS, ["NN", "VB", "DT"])
    doc = nlp.make_doc(TEXTS[1])
    found = token_logits(model, model.tokenizer, doc)
    np.testing.assert_allclose(found, pipe.predict([doc]).logits, atol=1e-4)


@pytest.mark.parametrize(
    "family",
    ["bert", *(pytest.param(one, marks=pytest.mark.long) for one in ("roberta", "modernbert"))],
)
@pytest.mark.parametrize("head, auto_class, labels, settings", PAIRED)
def test_logits_of_pairs(head, auto_class, labels, settings, family, tmp_path):
    if (head, family) == ("choice", "modernbert") and not hasattr(
        transformers, "ModernBertForMultipleChoice"
    ):
        pytest.skip("this version of transformers has no ModernBertForMultipleChoice")
    nlp, pipe, model = export(tmp_path, head, auto_class, labels, family=family, **settings)
    first, second = [TEXTS[0]] * 3, SECOND
    if head == "qa":
        output, mask = model.run(second, first)
        found = torch.stack([output.start_logits, output.end_logits], dim=-1)[mask]
        pairs = Pairs([nlp.make_doc(TEXTS[0])], [second], doc_first=False)
        expected = predict_pairs(pipe, pairs).logits
    else:
        inputs = model.tokenizer(first, second, return_tensors="pt", padding=True)
        if head == "choice":
            inputs = {name: tensor[None] for name, tensor in inputs.items()}
            second = BertChoice.texts_of({"question": "", "options": SECOND})
        found = model(**inputs).logits.reshape(3, -1)
        expected = predict_pairs(pipe, Pairs([nlp.make_doc(TEXTS[0])], [second], doc_first=True))
    assert float(expected.std()) > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_trained_pipeline_by_the_command(joint, tmp_path):
    """What was trained here, MiniLM's kind; the folder has what optimum reads and no more."""
    words = ["to-onnx", str(joint), "bert_textcat", str(tmp_path / "onnx")]
    result = CliRunner().invoke(bert_app, words)
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "onnx").glob("[!.]*")}
    assert {"model.onnx", "config.json", "tokenizer.json", "README.md"} <= names
    assert not list((tmp_path / "onnx").glob("*.safetensors"))
    assert "tags: [spacy, spacy_bert_heads, onnx]" in (tmp_path / "onnx/README.md").read_text()
    nlp, model = spacy.load(joint), OnnxModel(tmp_path / "onnx")
    output, _ = model.run(TEXTS)
    for text, row in zip(TEXTS, output.logits.softmax(1).tolist(), strict=True):
        found = dict(zip(model.config.id2label.values(), row, strict=True))
        assert found == pytest.approx(nlp(text).cats, abs=1e-5)
    assert CliRunner().invoke(bert_app, words).exit_code == 0  # again, into its own folder
    refused = CliRunner().invoke(bert_app, ["to-hf", *words[1:]])
    assert "was not made by `bert to-hf`" in refused.output


def test_an_encoder_alone(joint, tmp_path):
    nlp = spacy.load(joint)
    to_hf(nlp, "bert_encoder", tmp_path / "onnx", format="onnx")
    output, mask = OnnxModel(tmp_path / "onnx").run(TEXTS)
    docs = [nlp.make_doc(text) for text in TEXTS]
    expected = nlp.get_pipe("bert_encoder").predict(docs).states
    np.testing.assert_allclose(output.last_hidden_state[mask], expected, atol=1e-4)


def test_what_can_not_be_exported(joint, tmp_path, make_nlp, monkeypatch):
    nlp = spacy.load(joint)
    with pytest.raises(ValueError, match="Unknown format 'tflite'. Choose one of: safetensors, on"):
        to_hf(nlp, "bert_ner", tmp_path / "a", format="tflite")
    with pytest.raises(ValueError, match='precision is "bf16", but ONNX files are written in fp32'):
        to_hf(nlp, "bert_ner", tmp_path / "a", format="onnx", precision="bf16")
    crf = make_nlp(initialize=False)
    crf.add_pipe("bert_ner", config={"loss": "crf"}).add_label("PLACE")
    crf.initialize()
    crf.to_disk(tmp_path / "crf")
    words = ["to-onnx", str(tmp_path / "crf"), "bert_ner", str(tmp_path / "a")]
    result = CliRunner().invoke(bert_app, words)
    assert result.exit_code == 1
    assert "Hugging Face has no class for bert_ner, a conditional random field" in result.output
    # A file that computes something else is not kept.
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="'bert' models can't be exported to ONNX with this"):
        to_hf(nlp, "bert_ner", tmp_path / "a", format="onnx")
    assert not (tmp_path / "a").exists()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'spacy_bert_heads\[onnx\]'"):
        to_hf(nlp, "bert_ner", tmp_path / "a", format="onnx")


@pytest.mark.parametrize(
    "head, auto_class, labels",
    [
        ("ner", TOKENS, PLACES),
        ("qa", ANSWERS, ENDS),
        ("choice", CHOICES, ENDS),
    ],
)
def test_optimum_loads_it(head, auto_class, labels, tmp_path):
    name = {"ner": "TokenClassification", "qa": "QuestionAnswering", "choice": "MultipleChoice"}[
        head
    ]
    try:
        ort_class = getattr(import_module("optimum.onnxruntime"), f"ORTModelFor{name}")
    except Exception as error:  # whatever optimum raises beside versions that it doesn't know
        pytest.skip(f"optimum's classes for ONNX Runtime can't be imported: {error}")
    _, _, model = export(tmp_path, head, auto_class, labels)
    loaded = ort_class.from_pretrained(tmp_path / "onnx")
    inputs = model.tokenizer(TEXTS[:3], SECOND, return_tensors="pt", padding=True)
    if head == "choice":
        inputs = {key: tensor[None] for key, tensor in inputs.items()}
    theirs, ours = loaded(**inputs), model(**inputs)
    for key, tensor in vars(ours).items():
        assert torch.equal(theirs[key], tensor), key
