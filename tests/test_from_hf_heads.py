"""Which heads a checkpoint of Hugging Face becomes, with which classes, beside which others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
import transformers
from checkpoints import TEXTS, make_checkpoint
from hf_models import ANSWERS, ENDS, MOODS, PLACES, SEQUENCES, TOKENS, VERDICTS, load, run, save
from pair_examples import predict_pairs
from safetensors.torch import load_file, save_file

from spacy_bert_heads import from_hf
from spacy_bert_heads.heads.decoding import decode
from spacy_bert_heads.heads.outputs import TokenLogits
from spacy_bert_heads.heads.tags import read_tags
from spacy_bert_heads.text.pairs import Pairs

# --- names of classes


@pytest.mark.parametrize(
    "names, scheme, labels, classes",
    [
        (["B-PER", "O", "I-PER"], "IOB", ["PER"], [1, 0, 2]),
        (["O", "I-LOC", "I-PER"], "IO", ["LOC", "PER"], [0, 1, 2]),
        (["PER", "LOC", "O"], "IO", ["PER", "LOC"], [2, 0, 1]),
        (["O", "S-X", "E-X", "B-X", "I-X"], "BILOU", ["X"], [0, 3, 4, 2, 1]),
        (["O", "S-X", "E-X", "B-X", "M-X"], "BILOU", ["X"], [0, 3, 4, 2, 1]),
        (["O", "S-X", "B-X", "I-X"], "IOBES", ["X"], [0, 2, 3, -1, 1]),
        (["O", "B-X", "I-X", "E-X"], "IOBES", ["X"], [0, 1, 2, 3, -1]),
        (
            ["O", "B-X", "I-X", "L-X", "U-X", "U-Y"],
            "IOBES",
            ["X", "Y"],
            [0, 1, 2, 3, 4, -1, -1, -1, 5],
        ),
        (["B", "I", "O"], "IOB", ["ENTITY"], [2, 0, 1]),
        (["O", "E-MAIL", "NAME"], "IO", ["E-MAIL", "NAME"], [0, 1, 2]),
        (["O", "B_E-MAIL", "I_E-MAIL", "NAME"], "IOB", ["E-MAIL", "NAME"], [0, 1, 2, -1, 3]),
        (["O", "B-PER", "I-PER", "B-DATE"], "IOB", ["PER", "DATE"], [0, 1, 2, 3, -1]),
    ],
)
def test_tags_are_read_by_name(names, scheme, labels, classes):
    assert read_tags(names) == (scheme, labels, classes)


def test_one_tag_by_two_names():
    with pytest.raises(ValueError, match="'I-PER' and 'PER' are the same tag"):
        read_tags(["O", "PER", "I-PER", "B-PER"])


@pytest.mark.parametrize(
    "tags, path, strict, expected",
    [
        # An entity may begin with I; another label begins another one, and so does another Doc.
        (["O", "B-X", "I-X", "B-Y", "I-Y"], [2, 2, 0, 4, 2, 2], False, "0-2X 3-4Y 4-5X 0-1X"),
        (["O", "I-X", "I-Y"], [1, 1, 2, 0, 1, 0], False, "0-2X 2-3Y 4-5X"),
        (["O", "B-X", "I-X"], [1, 2, 2, 1, 0, 1], True, "0-3X 3-4X 0-1X"),
        # Without a tag for the end, without one for a single token, and after an end.
        (["O", "B-X", "I-X", "L-X", "U-X"], [1, 2, 2, 0, 4, 4], False, "0-3X 4-5X 0-1X"),
        (["O", "B-X", "I-X", "L-X", "U-X"], [1, 0, 1, 2, 3, 2], False, "0-1X 2-5X 0-1X"),
        (["O", "B-X", "I-X", "L-X", "U-X"], [1, 3, 2, 4, 3, 0], False, "0-2X 2-3X 3-4X 4-5X"),
    ],
)
def test_entities_by_hand(tags, path, strict, expected):
    logits = np.full((6, len(tags)), -30.0)
    logits[np.arange(6), path] = 0.0
    output = TokenLogits(torch.from_numpy(logits), np.ones(6, dtype=bool), np.asarray([5, 1]))
    spans = decode(output, tags, strict=strict)
    found = zip(spans.start, spans.end, spans.label, strict=True)
    assert " ".join(f"{a}-{b}{'XY'[label]}" for a, b, label in found) == expected
    assert spans.score == pytest.approx(1.0)


def test_a_tag_that_the_checkpoint_lacks_never_wins(tmp_path):
    folder = save(tmp_path / "hf", TOKENS, ["O", "B-X", "I-X", "B-Y"])
    nlp = from_hf(folder)
    head = nlp.get_pipe("bert_ner")
    logits = head.predict([nlp.make_doc(TEXTS[0])]).logits
    begin, inside = (logits[:, head.tags.index(tag)] for tag in ("B-Y", "I-Y"))
    torch.testing.assert_close(inside, begin - 10, atol=1e-4, rtol=0)


def test_verdicts_go_by_name(tmp_path):
    """Checkpoints disagree about the order of the classes."""
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        folder = tmp_path / "".join(map(str, order))
        save(folder, SEQUENCES, [VERDICTS[i] for i in order])
        weights = load_file(folder / "model.safetensors")
        for name in ("classifier.weight", "classifier.bias"):
            weights[name] = weights[name][order].contiguous()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        nlp = from_hf(str(folder))
        doc = nlp.make_doc(TEXTS[0])
        doc._.hypotheses = ["The boat sank."]
        found.append(nlp(doc)._.nli[0])
    assert list(found[1]["scores"]) == ["CONTRADICTION", "Neutral", "entailment"]
    assert found[0]["scores"] == pytest.approx(found[1]["scores"], abs=1e-6)


def test_labels_and_tasks_can_be_given(tmp_path):
    folder = save(tmp_path / "hf", SEQUENCES, ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert from_hf(folder).pipe_names == ["bert_encoder", "bert_textcat"]
    nlp = from_hf(folder, labels=["contradiction", "neutral", "entailment"])
    assert nlp.get_pipe("bert_nli").labels == ("contradiction", "neutral", "entailment")
    nlp = from_hf(folder, task="textcat_multilabel")
    assert nlp.pipe_names == ["bert_encoder", "bert_textcat_multilabel"]
    with pytest.raises(ValueError, match="has 3 classes, but 2 labels"):
        from_hf(folder, labels=["yes", "no"])
    with pytest.raises(ValueError, match="belong to one checkpoint"):
        from_hf(folder, folder, task="nli")
    with pytest.raises(ValueError, match="Unknown task 'ner_'"):
        from_hf(folder, task="ner_")
    with pytest.raises(ValueError, match="for text-classification: it can't become a bert_ner"):
        from_hf(folder, task="ner")
    with pytest.raises(ValueError, match='No class is "O"'):
        from_hf(save(tmp_path / "tags", TOKENS, ["NN", "VB"]), task="ner")


# --- several heads


def test_pipelines_are_joined_by_sourcing(tmp_path):
    """A head reads the encoder that it comes with, under whatever name."""
    pipelines = [
        from_hf(save(tmp_path / "ner", TOKENS, PLACES, seed=1)),
        from_hf(save(tmp_path / "moods", SEQUENCES, MOODS, seed=2)),
    ]
    expected = pipelines[1](TEXTS[0]).cats
    for i, nlp in enumerate(pipelines):
        nlp.to_disk(tmp_path / str(i))
    one, other = (spacy.load(tmp_path / str(i)) for i in range(2))
    one.add_pipe("bert_encoder", source=other, name="second")
    one.add_pipe("bert_textcat", source=other)
    assert one(TEXTS[0]).cats == pytest.approx(expected)


def test_several_checkpoints_have_an_encoder_each_or_share_one(tmp_path):
    ner = save(tmp_path / "ner", TOKENS, PLACES)
    moods = save(tmp_path / "moods", SEQUENCES, MOODS, seed=1)
    nlp = from_hf(ner, moods)
    assert nlp.pipe_names == ["bert_encoder", "bert_ner", "bert_encoder_2", "bert_textcat"]
    single = from_hf(moods)(TEXTS[1])
    assert nlp(TEXTS[1]).cats == pytest.approx(single.cats, abs=1e-6)

    # The encoder of one with the head of another.
    shared = tmp_path / "shared"
    shutil.copytree(moods, shared)
    model, other = SEQUENCES.from_pretrained(moods), TOKENS.from_pretrained(ner)
    model.base_model.load_state_dict(other.base_model.state_dict(), strict=False)
    model.save_pretrained(shared)
    nlp = from_hf(ner, str(shared))
    assert nlp.pipe_names == ["bert_encoder", "bert_ner", "bert_textcat"]
    assert nlp(TEXTS[1]).cats == pytest.approx(from_hf(str(shared))(TEXTS[1]).cats, abs=1e-6)


@pytest.mark.parametrize(
    "auto_class, labels, other, works",
    [
        (SEQUENCES, MOODS, MOODS, False),
        (SEQUENCES, MOODS, ["fire", "storm"], True),
        (SEQUENCES, VERDICTS, VERDICTS, False),
        (ANSWERS, ENDS, ENDS, False),
        (TOKENS, ["NN", "VB"], ["NN", "VB"], False),
        (TOKENS, PLACES, ["O", "B-VESSEL", "I-VESSEL"], True),
    ],
)
def test_no_head_overwrites_another(auto_class, labels, other, works, tmp_path):
    folders = [
        save(tmp_path / str(i), auto_class, names, seed=i)
        for i, names in enumerate((labels, other))
    ]
    if works:
        nlp = from_hf(*folders)
        assert len(nlp.pipe_names) == 4
        nlp(TEXTS[0])
    else:
        with pytest.raises(ValueError, match="would overwrite what bert_"):
            from_hf(*folders)


@pytest.mark.parametrize(
    "names, message",
    [({"0": 0, "1": 1}, None), ({1: "a", 2: "b"}, "numbers its classes 1, 2, not from 0")],
)
def test_odd_names_of_classes(names, message, tmp_path):
    folder = Path(save(tmp_path / "hf", SEQUENCES, ["a", "b"]))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": names}))
    if message is None:
        assert from_hf(str(folder)).get_pipe("bert_textcat").labels == ("0", "1")
    else:
        with pytest.raises(ValueError, match=message):
            from_hf(str(folder))


def test_types_are_given_where_the_tokenizer_gives_them(tmp_path):
    folder = Path(save(tmp_path / "hf", SEQUENCES, VERDICTS))
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "model_input_names": ["input_ids", "attention_mask"]}))
    nlp = from_hf(str(folder))
    model, tokenizer = load(str(folder), SEQUENCES)
    expected = run(model, tokenizer, TEXTS[0], "The boat sank.").logits
    pairs = Pairs([nlp.make_doc(TEXTS[0])], [["The boat sank."]], doc_first=True)
    np.testing.assert_allclose(predict_pairs(nlp.get_pipe("bert_nli"), pairs), expected, atol=1e-5)


def test_a_single_type_is_never_exceeded(tmp_path):
    folder = save(tmp_path / "hf", SEQUENCES, VERDICTS, family="xlm-roberta", type_vocab_size=1)
    nlp = from_hf(folder)
    doc = nlp.make_doc(TEXTS[0])
    doc._.hypotheses = ["The boat sank."]
    assert sum(nlp(doc)._.nli[0]["scores"].values()) == pytest.approx(1.0)


# --- files, and what can't be taken


def test_a_pipeline_is_whole_without_the_checkpoint(tmp_path):
    folder = save(tmp_path / "hf", TOKENS, PLACES, family="electra")
    nlp = from_hf(folder)
    expected = [(e.text, e.label_) for e in nlp(TEXTS[2]).ents]
    nlp.to_disk(tmp_path / "pipeline")
    shutil.rmtree(folder)
    again = spacy.load(tmp_path / "pipeline")
    assert [(e.text, e.label_) for e in again(TEXTS[2]).ents] == expected
    window = again.get_pipe("bert_encoder").model.attrs["window"]
    assert window == 128  # the checkpoint's positions


def test_the_tokenizers_longest_sequence_is_kept(tmp_path):
    folder = Path(save(tmp_path / "hf", TOKENS, PLACES))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["model_max_length"] = 40
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    attrs = from_hf(str(folder)).get_pipe("bert_encoder").model.attrs
    assert (attrs["window"], attrs["stride"]) == (40, 30)


@pytest.mark.parametrize(
    "auto_class, labels, message",
    [
        (transformers.AutoModel, ENDS, "without a head for tokens"),
        (transformers.AutoModelForMaskedLM, ENDS, "without a head for tokens"),
        (TOKENS, ["O", "O", "B-X"], "Two classes of .* have one name"),
    ],
)
def test_what_can_not_be_taken(auto_class, labels, message, tmp_path):
    folder = save(tmp_path / "hf", auto_class, labels)
    with pytest.raises(ValueError, match=message):
        from_hf(folder)


def test_a_head_that_was_never_trained(tmp_path):
    folder = make_checkpoint(tmp_path / "hf")
    with pytest.raises(ValueError, match="no trained BertForSequenceClassification"):
        from_hf(folder, task="textcat")
