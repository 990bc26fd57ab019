"""Multiple choice: probabilities over options, training, Hugging Face, the commands."""

import json

import numpy as np
import pytest
import spacy
import torch
import torch.nn.functional as F
import transformers
from checkpoints import FAMILIES, TEXTS
from commands import command
from hf_models import load, save
from pair_examples import LANG, ask, predict_pairs
from spacy.cli.train import train as train_command
from spacy.tokens import DocBin
from spacy.training import Example
from thinc.api import Adam

from spacy_bert_heads import from_hf, to_hf
from spacy_bert_heads.annotate.records import Columns
from spacy_bert_heads.data.batching import count_pieces
from spacy_bert_heads.data.reader import BertCorpus, split_pairs
from spacy_bert_heads.encoder.model import checkpoint_of
from spacy_bert_heads.heads.choice import BertChoice, score_choices
from spacy_bert_heads.heads.free_text import as_setting
from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.pairs import make_choice, make_verdict
from spacy_bert_heads.text.pairs import Pairs

CHOICES = transformers.AutoModelForMultipleChoice
DATA = [
    (
        "The boat burned in Hull",
        [
            ({"question": "Why?", "options": ["A fire", "Nobody", "Anna left"]}, 2),
            ({"question": "", "options": ["It burned", "Skagen"]}, 0),
        ],
    ),
    (
        "Anna left Skagen",
        [
            ({"question": "Who?", "options": ["Anna", "The boat"]}, 0),
            ({"question": "When?", "options": ["Hull", "Tuesday"]}, None),
        ],
    ),
    ("Hull", []),
]


def make_examples(nlp, data=DATA) -> list[Example]:
    examples = []
    for text, rows in data:
        example = Example(nlp.make_doc(text), nlp.make_doc(text))
        for doc in (example.predicted, example.reference):
            doc._.choices = [dict(choice) for choice, _ in rows]
        entries = [answer if answer is None else make_choice(answer) for _, answer in rows]
        example.reference._.chosen = entries
        examples.append(example)
    return examples


def build(checkpoint: str, data=DATA):
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    nlp.add_pipe("bert_choice")
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


@pytest.fixture(scope="module")
def nlp(checkpoint):
    return build(checkpoint)


# --- beside Hugging Face


def options_beside_hf(folder: str, question: str, options: list[str]) -> torch.Tensor:
    """Hugging Face's logits of the options (n_options,)."""
    model, tokenizer = load(folder, CHOICES)
    second = [f"{question} {option}" if question else option for option in options]
    inputs = tokenizer([TEXTS[0]] * len(second), second, return_tensors="pt", padding=True)
    if not getattr(model.config, "type_vocab_size", 0):
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**{name: tensor[None] for name, tensor in inputs.items()}).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_in_and_out_with_equal_logits(family, tmp_path):
    if family == "modernbert" and not hasattr(transformers, "ModernBertForMultipleChoice"):
        pytest.skip("this version of transformers has no ModernBertForMultipleChoice")
    folder = save(tmp_path / "hf", CHOICES, ["LABEL_0", "LABEL_1"], family=family)
    nlp = from_hf(folder)
    assert nlp.pipe_names == ["bert_encoder", "bert_choice"]
    choices = [
        {"question": "What happened?", "options": ["A fire.", "The boat sank.", "Nothing."]},
        {"question": "", "options": ["Anna swam.", "Berlin burned."]},
    ]
    doc = ask(nlp, TEXTS[0], choices=choices)
    for choice, chosen in zip(choices, doc._.chosen, strict=True):
        expected = options_beside_hf(folder, **choice)
        assert float(expected.std()) > 1e-4
        pairs = Pairs([nlp.make_doc(TEXTS[0])], [BertChoice.texts_of(choice)], doc_first=True)
        found = predict_pairs(nlp.get_pipe("bert_choice"), pairs)
        torch.testing.assert_close(found[:, 0], expected, atol=1e-5, rtol=1e-5)
        assert chosen["scores"] == pytest.approx(expected.softmax(0).tolist(), abs=1e-5)
        assert chosen["answer"] == int(expected.argmax())

    to_hf(nlp, "bert_choice", tmp_path / "out")
    one, other = (load(str(tmp_path / name), CHOICES)[0] for name in ("hf", "out"))
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert from_hf(str(tmp_path / "out")).pipe_names == nlp.pipe_names


def test_what_was_trained_here_is_hugging_faces(nlp, tmp_path):
    to_hf(nlp, "bert_choice", tmp_path / "out")
    choice = DATA[0][1][0][0]
    expected = options_beside_hf(str(tmp_path / "out"), **choice)
    doc = ask(nlp, TEXTS[0], choices=[choice])
    assert doc._.chosen[0]["scores"] == pytest.approx(expected.softmax(0).tolist(), abs=1e-5)
    assert "pipeline_tag: multiple-choice" in (tmp_path / "out" / "README.md").read_text()


# --- learning


def test_the_loss_is_the_cross_entropy_over_options(nlp):
    logits = torch.tensor([[0.5], [1.0], [-1.0], [2.0], [0.0], [0.3], [0.1]])
    parts = [(logits[:3, 0], 2), (logits[3:5, 0], 0), (logits[5:, 0], 0)]
    losses = [F.cross_entropy(part[None], torch.tensor([answer])) for part, answer in parts]
    loss, gradient = nlp.get_pipe("bert_choice").get_loss(make_examples(nlp), logits)
    assert loss == pytest.approx(float(torch.stack(losses).mean()))
    rows = [part.softmax(0) - F.one_hot(torch.tensor(a), len(part)) for part, a in parts]
    torch.testing.assert_close(gradient[:, 0], torch.cat(rows) / 3)


def test_overfit_and_reload(checkpoint, tmp_path):
    nlp = build(checkpoint)
    optimizer = Adam(3e-3, use_averages=False)
    with pytest.warns(UserWarning, match="A learning rate"):
        for _ in range(60):
            nlp.update(make_examples(nlp), sgd=optimizer)
    nlp.to_disk(tmp_path)
    for pipeline in (nlp, spacy.load(tmp_path)):
        scores = pipeline.evaluate(make_examples(pipeline))
        assert scores["choice_acc"] == 1.0
        assert scores["choice_chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    docs = [ask(p, DATA[0][0], choices=[c for c, _ in DATA[0][1]]) for p in (nlp, pipeline)]
    assert [doc._.choices for doc in docs] == [[c for c, _ in DATA[0][1]]] * 2
    for found, expected in zip(*(doc._.chosen for doc in docs), strict=True):
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-6)
        assert sum(found["scores"]) == pytest.approx(1)


def test_a_choice_with_an_option_that_is_too_long(nlp):
    long_one = {"question": "", "options": ["short", "x " * 40]}
    doc = nlp.make_doc("A text")
    doc._.choices = [long_one, {"options": ["a", "b"]}]
    with pytest.warns(UserWarning, match="bert_choice leaves a pair out"):
        doc = nlp(doc)
    assert doc._.chosen[0] is None
    assert len(doc._.chosen[1]["scores"]) == 2
    rows = [(long_one, 0), ({"question": "", "options": ["a", "b"]}, 1)]
    examples = make_examples(nlp, [("A text", rows)])
    with pytest.warns(UserWarning, match="does not learn from a pair"):
        nlp.get_pipe("bert_choice").update(examples)
    assert len(list(nlp.get_pipe("bert_choice").training_pairs(examples[0]))) == 1
    examples[0].predicted._.chosen = [None, make_choice(1)]
    assert score_choices(examples) == {"choice_acc": 0.5, "choice_chance": 0.5}
    assert score_choices([]) == {"choice_acc": None, "choice_chance": None}


@pytest.mark.parametrize(
    "choices, message",
    [
        ("a", "must be a list of dicts, not 'a'"),
        ([["a", "b"]], r"doc._.choices\[0\] must be a dict with \"options\""),
        ([{"options": ["a"]}], r"doc._.choices\[0\] needs at least two options, not \['a'\]"),
        ([{"options": ["a", ""]}], r"doc._.choices\[0\]\['options'\]\[1\] is empty"),
        ([{"options": ["a", "b"], "question": 3}], "the question of doc._.choices.0. must be"),
    ],
)
def test_wrong_choices(nlp, choices, message):
    doc = nlp.make_doc("A text")
    doc._.choices = choices
    with pytest.raises(ValueError, match=message):
        nlp(doc)


@pytest.mark.parametrize("answer", [3, -1, "0", None, True])
def test_wrong_answers(nlp, answer):
    (example, *_) = make_examples(nlp)
    example.reference._.chosen = [{"answer": answer}, None]
    with pytest.raises(ValueError, match="number of an option, .* 0, but is .*make_choice"):
        nlp.get_pipe("bert_choice").update([example])


@pytest.mark.parametrize("more", [{}, {"question": None}, {"question": "", "id": 7}])
def test_a_choice_without_a_question_is_scored(nlp, more):
    reference = nlp.make_doc("A text")
    reference._.choices = [{"options": ["yes", "no"], **more}]
    reference._.chosen = [make_choice(np.argmax([0.2, 0.8]))]
    examples = [Example(nlp.make_doc("A text"), reference)]
    nlp.get_pipe("bert_choice").check_gold(examples[0])
    examples[0].predicted._.choices = [{"options": ["yes", "no"], **more}]
    assert nlp.evaluate(examples)["choice_acc"] in (0.0, 1.0)


# --- data and commands


def test_the_reader_splits_choices_and_keeps_answers_from_the_prediction(nlp, tmp_path):
    (example, *_) = make_examples(nlp)
    doc = example.reference
    doc._.hypotheses, doc._.nli = ["It burned"], [make_verdict("entailment")]
    parts = [(part._.choices, part._.chosen, part._.hypotheses) for part in split_pairs(doc, 1)]
    (first, one), (second, other) = DATA[0][1]
    assert parts == [
        ([first], [make_choice(one)], []),
        ([second], [make_choice(other)], []),
        ([], [], ["It burned"]),
    ]
    DocBin(docs=[doc], store_user_data=True).to_disk(tmp_path / "a.spacy")
    (read,) = BertCorpus(tmp_path / "a.spacy")(nlp)
    assert read.predicted._.choices == [first, second]
    assert read.predicted._.chosen == []
    tokenizer = checkpoint_of(nlp.get_pipe("bert_encoder").model).tokenizer
    texts = [*BertChoice.texts_of(first), *BertChoice.texts_of(second), "It burned"]
    lengths = tokenizer([doc.text, *texts]).lengths
    expected = int(sum(lengths[0] + length + 3 for length in lengths[1:]))
    assert count_pieces([read.reference], tokenizer).tolist() == [expected]


@pytest.mark.parametrize("heads", [["choice"], ["choice", "nli"]])
def test_commands(checkpoint, tmp_path, heads):
    """From JSONL to a score, alone and beside another head that reads pairs."""
    rows = []
    for text, choices in DATA[:2]:
        given = [{**choice, "answer": answer} for choice, answer in choices]
        hypotheses = [{"text": "It burned", "label": "yes" if "burned" in text else "no"}]
        rows.append({"text": text, "choices": given, "hypotheses": hypotheses})
    source, data = tmp_path / "a.jsonl", tmp_path / "a.spacy"
    source.write_text("\n".join(map(json.dumps, rows)))
    said = command("bert", "convert", source, data, "--lang", LANG)
    assert "choices" in said
    config = init_config(heads, name=checkpoint, lang=LANG, train=data, dev=data)
    assert config["corpora"]["train"]["max_pairs"] == 1
    config.to_disk(tmp_path / "config.cfg")
    assert "choice" in command("bert", "debug-data", tmp_path / "config.cfg")
    overrides = {
        "components.bert_encoder.model.window": 64,
        "components.bert_encoder.model.stride": 48,
        "training.optimizer.learn_rate.initial_rate": 3e-3,
        "training.max_steps": 60,
        "training.eval_frequency": 30,
    }
    with pytest.warns(UserWarning, match="A learning rate"):
        train_command(tmp_path / "config.cfg", tmp_path / "out", overrides=overrides)
    pages = tmp_path / "pages"
    said = command("bert", "evaluate", tmp_path / "out" / "model-last", source, "--pages", pages)
    page = "".join(file.read_text() for file in pages.glob("*.html"))
    assert "Multiple choice" in page and 'Anna left <span class="right">gold</span>' in page
    assert "choices, accuracy             100.00" in said
    assert "choices, accuracy of chance    44.44" in said


# --- abstaining


def test_below_its_threshold_nothing_is_chosen(nlp):
    head = nlp.get_pipe("bert_choice")
    choices = [choice for choice, _ in DATA[0][1]]
    sure, unsure = make_choice(1, [0.1, 0.7, 0.2]), make_choice(0, [0.6, 0.4])
    doc = nlp.make_doc("Hull")
    doc._.choices = choices
    with head.trying():
        head.cfg["thresholds"] = {"option": 0.65}
        head.set_annotations([doc], [(choices, [sure, unsure])])
        assert doc._.chosen == [sure, None]
        assert doc._.abstained == [
            {
                "component": "bert_choice",
                "label": "option",
                "score": 0.6,
                "answer": 0,
                "asked": {"question": "", "options": ["It burned", "Skagen"]},
            }
        ]
        row = Columns.of(nlp).read(doc)
        assert [one["answer"] for one in row["chosen"]] == [1, None] and row["review"]
    head.set_annotations([doc], [(choices, [sure, unsure])])
    assert doc._.chosen == [sure, unsure] and doc._.abstained == []


def test_one_threshold_for_all_choices(checkpoint, tmp_path):
    """The table counts choices, whichever option is chosen."""
    nlp = build(checkpoint)
    nlp.to_disk(tmp_path / "model")
    docs = [example.reference for example in make_examples(nlp)]
    asked = [ask(nlp, text, choices=[choice for choice, _ in rows]) for text, rows in DATA]
    chosen = [one for doc in asked for one in doc._.chosen][:3]
    gold = [1 - (one["answer"] > 0) for one in chosen]  # all of them wrong
    gold[0] = chosen[0]["answer"]
    docs[0]._.chosen = [make_choice(answer) for answer in gold[:2]]
    docs[1]._.chosen = [make_choice(gold[2]), None]
    DocBin(docs=docs, store_user_data=True).to_disk(tmp_path / "dev.spacy")
    model, data, out = (tmp_path / name for name in ("model", "dev.spacy", "out"))
    said = command("bert", "tune-thresholds", model, data, "--recall", 1, "-o", out)
    scores = sorted((max(one["scores"]) for one in chosen), reverse=True)
    place = scores.index(max(chosen[0]["scores"]))
    (threshold,) = spacy.load(out).get_pipe("bert_choice").cfg["thresholds"].items()
    between = scores[place : place + 2]
    expected = 0.0 if len(between) == 1 else sum(between) / 2
    assert threshold == ("option", pytest.approx(expected, abs=1e-6))
    assert f"{place + 1} of 3" in said
    config = {"components.bert_choice.thresholds": as_setting({"option": 1.0})}
    careful = spacy.load(out, config=config)
    doc = ask(careful, DATA[0][0], choices=[choice for choice, _ in DATA[0][1]])
    assert doc._.chosen == [None, None] and len(doc._.abstained) == 2


def test_comparison_counts_choices(nlp):
    examples = make_examples(nlp)
    examples[0].predicted._.chosen = [make_choice(2), make_choice(1)]
    examples[1].predicted._.chosen = [None, make_choice(0)]
    head = nlp.get_pipe("bert_choice")
    decisions = [head.decisions(example) for example in examples]
    assert decisions == [[("2", "2"), ("0", "1")], [("0", "")], []]
    counts = {kind: np.asarray([1.0, 2.0, 0.0]) for kind in ("tp", "fn")}
    assert head.scores_of(counts)["choice_acc"] == 0.5
