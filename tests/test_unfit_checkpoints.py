"""Fine-tuned checkpoints that don't fit as they are: made to, or rejected with what to do."""

import json
import shutil
import warnings

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from checkpoints import TEXTS, make_checkpoint
from conftest import make_examples
from damage import edit_config
from hf_models import (
    ANSWERS,
    ENDS,
    MOODS,
    SEQUENCES,
    TOKENS,
    VERDICTS,
    load,
    save,
    token_logits,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from thinc.api import Adam

from spacy_bert_heads import from_hf, to_hf
from spacy_bert_heads.encoder.loading import load_checkpoint
from spacy_bert_heads.heads.families import select_classes
from spacy_bert_heads.heads.tags import SCHEMES, read_tags

# What dbmdz's CoNLL checkpoint has, trained on IOB1: no B-PER.
CONLL = ["B-LOC", "B-MISC", "B-ORG", "I-LOC", "I-MISC", "I-ORG", "I-PER", "O"]
UNITS = ["O", "B-X", "I-X", "L-X", "U-X", "U-Y"]

# --- tags that are lacking


@st.composite
def tag_sets(draw):
    """Names of classes: each label with some of its tags, one at least."""
    marks = draw(st.sampled_from(["BI", "BILU", "BIES"]))
    names = ["O"]
    for label in draw(st.lists(st.sampled_from("XYZ"), min_size=1, unique=True)):
        own = draw(st.lists(st.sampled_from(marks), min_size=1, unique=True))
        names += [f"{mark}-{label}" for mark in own]
    assume(any(name[0] in "BI" for name in names))  # or E-MAIL could be a label
    return draw(st.permutations(names))


@given(tag_sets(), st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_what_is_lacking_never_wins_and_hardly_counts(names, seed):
    tags = read_tags(names)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "weight": torch.randn(len(names), 8, generator=generator),
        "bias": torch.randn(len(names), generator=generator),
    }
    nearest, lacking = tags.nearest_classes(), [number < 0 for number in tags.classes]
    ours = dict.fromkeys(SCHEMES[tags.scheme].values())
    labels = ["", *(label for label in tags.labels for _ in ours)]
    for own, number, label in zip(tags.classes, nearest, labels, strict=True):
        assert own in (-1, number)
        assert names[number][2:] == label
    rows = select_classes(weights, nearest, lacking)
    states = torch.randn(50, 8, generator=generator)
    theirs = (states @ weights["weight"].T + weights["bias"]).softmax(-1)
    found = (states @ rows["weight"].T + rows["bias"]).softmax(-1)
    assert not torch.tensor(lacking)[found.argmax(1)].any()
    for i, number in enumerate(tags.classes):
        if number >= 0:
            torch.testing.assert_close(found[:, i], theirs[:, number], atol=2e-4, rtol=0)


@pytest.mark.parametrize("names", [CONLL, UNITS])
def test_tags_are_those_of_hugging_face(names, tmp_path):
    folder = save(tmp_path / "hf", TOKENS, names)
    nlp = from_hf(folder)
    head = nlp.get_pipe("bert_ner")
    model, tokenizer = load(folder, TOKENS)
    found = set()
    for text in TEXTS[:4]:
        doc = nlp.make_doc(text)
        theirs = [names[i] for i in token_logits(model, tokenizer, doc).argmax(1)]
        assert [head.tags[i] for i in head.predict([doc]).logits.argmax(1)] == theirs
        inside = {i for ent in nlp(doc).ents for i in range(ent.start, ent.end)}
        assert inside == {i for i, tag in enumerate(theirs) if tag != "O"}
        found |= set(theirs)
    assert len(found) > 1


def test_a_tag_that_is_lacking_is_learned(tmp_path):
    nlp = from_hf(save(tmp_path / "hf", TOKENS, CONLL))
    assert len(nlp.get_pipe("bert_ner").tags) == 9
    gold = {"entities": [(0, 4, "PER"), (5, 10, "PER"), (16, 22, "LOC")]}
    examples = make_examples(nlp, [("Anna Grete left Skagen on Tuesday", gold)])
    reported = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")  # a random BERT needs it
        optimizer = Adam(3e-3, use_averages=False)
        for _ in range(60):
            losses = nlp.update(examples, sgd=optimizer, losses={})
            reported.append(losses["bert_ner"])
    assert 1 < reported[0] < 20
    assert reported[-1] < 0.1
    # Two neighbours of one label can be told apart by their first tag alone.
    found = [(ent.text, ent.label_) for ent in nlp(examples[0].text).ents]
    assert found == [("Anna", "PER"), ("Grete", "PER"), ("Skagen", "LOC")]


def test_an_export_has_all_tags_and_the_same_predictions(tmp_path):
    folder = save(tmp_path / "hf", TOKENS, CONLL)
    nlp = from_hf(folder)
    to_hf(nlp, "bert_ner", tmp_path / "back")
    texts = [nlp.make_doc(text) for text in TEXTS[:4]]
    for doc in texts:
        before, after = (token_logits(*load(f, TOKENS), doc) for f in (folder, tmp_path / "back"))
        names = json.loads((tmp_path / "back" / "config.json").read_text())["id2label"]
        assert len(names) == 9
        tags = [names[str(i)] for i in after.argmax(1)]
        assert tags == [CONLL[i] for i in before.argmax(1)]


# --- one class


def test_one_logit_never_goes_through_softmax(tmp_path):
    folder = save(tmp_path / "hf", SEQUENCES, ["relevant"])
    with pytest.raises(ValueError, match="one class, 'relevant'.* task=\"textcat_multilabel\""):
        from_hf(folder, task="textcat")
    with pytest.raises(ValueError, match="one class, 'toxic'.* task=\"textcat_multilabel\""):
        from_hf(folder, task="textcat", labels=["toxic"])


def test_one_logit_is_read_as_hugging_face_does(tmp_path):
    folder = save(tmp_path / "hf", SEQUENCES, ["relevant"])
    nlp = from_hf(folder, task="textcat_multilabel")
    pipe = transformers.pipeline("text-classification", folder)
    for text in TEXTS[:3]:
        assert nlp(text).cats == pytest.approx({"relevant": pipe(text)[0]["score"]}, abs=1e-5)


# --- names of classes


@pytest.mark.parametrize(
    "id2label",
    [
        {"0": "LABEL_0", "1": "LABEL_1"},
        None,
        {str(i): f"LABEL_{i}" for i in range(9)},
        {str(i): label for i, label in enumerate(MOODS, start=1)},
        {"0": "a", "2": "b", "5": "c"},
    ],
    ids=["few", "absent", "many", "from one", "gaps"],
)
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_labels_repair_a_configuration(id2label, family, tmp_path):
    folder = tmp_path / "hf"
    save(folder, SEQUENCES, MOODS, family=family)
    expected = from_hf(str(folder))(TEXTS[0]).cats
    config = json.loads((folder / "config.json").read_text())
    del config["label2id"], config["id2label"]
    if id2label is not None:
        config["id2label"] = id2label
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"'.*hf'.* classes.* Give their names in order.*labels=\["
    ):
        from_hf(str(folder))
    nlp = from_hf(str(folder), labels=MOODS)
    assert nlp.pipe_names == ["bert_encoder", "bert_textcat"]
    assert nlp(TEXTS[0]).cats == expected
    with pytest.raises(ValueError, match="'.*hf' has 3 classes, but 2 labels are given"):
        from_hf(str(folder), labels=["yes", "no"])


def test_labels_repair_tags_and_verdicts(tmp_path):
    """The task is read off the labels that are given, not off the ones that are wrong."""
    save(tmp_path / "tags", TOKENS, ["O", "B-X", "I-X"])
    edit_config(tmp_path / "tags", id2label={"1": "O", "2": "B-X", "3": "I-X"})
    nlp = from_hf(str(tmp_path / "tags"), labels=["O", "B-X", "I-X"])
    assert nlp.get_pipe("bert_ner").labels == ("X",)
    save(tmp_path / "nli", SEQUENCES, VERDICTS)
    edit_config(tmp_path / "nli", id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    assert from_hf(str(tmp_path / "nli"), labels=VERDICTS).pipe_names[-1] == "bert_nli"


def test_answers_need_no_names_of_classes(tmp_path):
    """Some were fine-tuned from a checkpoint for three verdicts, whose names stayed."""
    save(tmp_path / "hf", ANSWERS, ENDS)
    edit_config(tmp_path / "hf", id2label={str(i): name for i, name in enumerate(VERDICTS)})
    assert from_hf(str(tmp_path / "hf")).pipe_names[-1] == "bert_qa"


# --- tokenizers


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_a_tokenizer_without_special_tokens(family, tmp_path):
    folder = tmp_path / "hf"
    make_checkpoint(folder, family=family)
    expected = load_checkpoint(str(folder)).tokenizer
    t = transformers.AutoTokenizer.from_pretrained(folder)
    t.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A", pair="$A $B:1", special_tokens=[]
    )
    t.save_pretrained(folder)
    with pytest.raises(ValueError, match=f"'{folder}' puts no special token .*shifted") as error:
        load_checkpoint(str(folder))
    # What the message says, done.
    cure = str(error.value).partition("set ")[2].partition(" = ")[2].partition(" and ")[0]
    t = transformers.AutoTokenizer.from_pretrained(folder)
    t.backend_tokenizer.post_processor = eval(cure, {"tokenizers": tokenizers, "t": t})
    t.save_pretrained(folder)
    cured = load_checkpoint(str(folder)).tokenizer
    np.testing.assert_array_equal(cured.prefix, expected.prefix)
    np.testing.assert_array_equal(cured.suffix, expected.suffix)


def test_a_folder_without_a_tokenizer(copied):
    for file in copied.glob("*token*"):
        file.unlink()
    match = (
        rf"'{copied}': it has no tokenizer, .*from_pretrained\(…\).save_pretrained\('{copied}'\)"
    )
    with pytest.raises(ValueError, match=match):
        load_checkpoint(str(copied))


def test_a_longest_sequence_that_is_no_number(tmp_path):
    folder = save(tmp_path / "hf", SEQUENCES, MOODS)
    expected = from_hf(folder)(TEXTS[0]).cats
    file = tmp_path / "hf" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": "100"}))
    assert from_hf(folder)(TEXTS[0]).cats == expected


# --- weights of another kind


def test_an_adapter_without_its_base(copied):
    """As peft writes it: no config.json, weights of the adapter alone."""
    (copied / "config.json").unlink()
    shutil.move(copied / "model.safetensors", copied / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (copied / "adapter_config.json").write_text(json.dumps(config))
    for load_it in (load_checkpoint, from_hf):
        with pytest.raises(ValueError, match=r"peft adapter of 'owner/base': merge.*merge_and_unl"):
            load_it(str(copied))


def test_an_export_is_read_by_the_class_of_its_task(tmp_path):
    save(tmp_path / "hf", SEQUENCES, MOODS)
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "tf_model.h5")
    with pytest.raises(ValueError, match=r"BertForSequenceClassification.from_pretrained\("):
        from_hf(str(tmp_path / "hf"))
    (tmp_path / "hf" / "tf_model.h5").unlink()
    (tmp_path / "hf" / "onnx").mkdir()
    (tmp_path / "hf" / "onnx" / "model.onnx").touch()
    with pytest.raises(ValueError, match=r"a compiled graph only \(onnx/model.onnx\)"):
        from_hf(str(tmp_path / "hf"))
