"""Faults of annotated data are found before training, each as often as it is there."""

import pytest
from faulty_data import NLP, STRIDE, WINDOW, check, findings_of, make_doc, make_splits, word
from hypothesis import given, settings
from hypothesis import strategies as st
from joint import build
from joint import train as teach
from spacy.tokens import Doc, Span
from spacy.training import Example

from spacy_bert_heads.checks.findings import Reading, Split
from spacy_bert_heads.checks.pairs import check_answers
from spacy_bert_heads.encoder.loading import load_wordpiece_tokenizer
from spacy_bert_heads.pairs import make_answer, make_verdict

PAIR_LIMIT = WINDOW // 2
LONGEST = 30  # the default of max_answer_length


def test_clean_data_has_no_findings(checkpoint, tmp_path):
    train, dev = make_splits()
    report = check(tmp_path, checkpoint, "ner,textcat,textcat_multilabel,nli,qa", train, dev)
    assert findings_of(report) == {}
    titles = [section.title for section in report.sections]
    heads = ["ner", "textcat", "textcat_multilabel", "nli", "qa"]
    assert titles == ["Texts", "bert_encoder", *(f"bert_{head}" for head in heads)]
    facts = {section.title: section.facts for section in report.sections}
    assert facts["Texts"]["train"] == {"docs": 20, "tokens": 120, "empty": 0}
    assert facts["bert_ner"]["train"] == {
        "docs": 20,
        "annotated": 20,
        "labels": {"VESSEL": 10, "PLACE": 10},
    }
    assert facts["bert_textcat"]["dev"]["labels"] == {"voyage": 2, "fire": 2}
    assert facts["bert_nli"]["train"]["labels"] == {"entailment": 10, "neutral": 10}
    # init-config splits Docs by max_pairs, and nothing is counted twice for that.
    assert facts["bert_qa"]["train"] == {"docs": 20, "annotated": 20, "pairs": 40}
    assert all(section.passed for section in report.sections)


# --- one fault each


def entity_spaces(train, dev):
    for docs, number in ((train, 3), (dev, 1)):
        for i in range(number):
            docs.append(NLP.make_doc(f"Anna  left  {word(i + len(docs))}"))
            docs[-1].ents = [Span(docs[-1], *((0, 2), (1, 3), (1, 2))[i], label="PLACE")]
    return {("entity_spaces", "error", "train"): 3, ("entity_spaces", "error", "dev"): 1}


def entity_tokens(train, dev):
    for i in range(2):
        doc = Doc(
            NLP.vocab, words=["Skag", "en", "left", word(i)], spaces=[False, True, True, True]
        )
        # The second is part of one token and all of another.
        doc.ents = [Span(doc, 0, 1, label="PLACE"), Span(doc, 1, 3, label="VESSEL")]
        train.append(doc)
    return {("entity_tokens", "warning", "train"): 4}


def few_examples(train, dev):
    for i in range(9):
        train.append(NLP.make_doc(f"Hull {word(i)}"))
        train[-1].ents = [Span(train[-1], 0, 1, label="TOWN")]
    dev.append(NLP.make_doc("Hull again"))
    dev[-1].ents = [Span(dev[-1], 0, 1, label="TOWN")]
    return {("few_examples", "warning", "train"): 1}


def labels_differ(train, dev):
    for doc in train:
        doc.ents = [*doc.ents, Span(doc, 2, 3, label="HARBOUR"), Span(doc, 4, 5, label="DATE")]
    dev[0].ents = [*dev[0].ents, Span(dev[0], 4, 5, label="DAY")]
    return {
        ("label_only_in_dev", "warning", "dev"): 1,
        ("label_only_in_train", "warning", "train"): 2,
    }


@pytest.mark.parametrize("fault", [entity_spaces, entity_tokens, few_examples, labels_differ])
def test_entities(checkpoint, tmp_path, fault):
    train, dev = make_splits()
    expected = fault(train, dev)
    assert findings_of(check(tmp_path, checkpoint, "ner", train, dev)) == expected


def test_values_of_categories(checkpoint, tmp_path):
    train, dev = make_splits()
    train[0].cats = {"voyage": 0.25, "fire": 1.0}
    train[1].cats = {"voyage": 2.0, "fire": float("nan")}
    train[2].cats = {"voyage": True, "fire": 0}  # which are 1 and 0
    train += [make_doc(i, ".") for i in range(4)]  # enough of each label
    dev[0].cats = {"voyage": -1.0, "fire": 0.5}
    assert findings_of(check(tmp_path, checkpoint, "textcat_multilabel", train, dev)) == {
        ("category_value", "error", "train"): 2,
        ("category_value", "warning", "train"): 1,
        ("category_value", "error", "dev"): 1,
        ("category_value", "warning", "dev"): 1,
    }


@pytest.mark.parametrize("kind", ["textcat", "textcat_multilabel"])
def test_a_category_that_never_holds_is_not_there(checkpoint, tmp_path, kind):
    """Every Doc has a value for each category: calm never holds in dev, storm never in train."""
    train, dev = make_splits()
    train += [make_doc(i, ".") for i in range(10)]
    for docs, extra, first in ((train, "calm", 20), (dev, "storm", 2)):
        for i, doc in enumerate(docs):
            own = doc.cats if i < first else dict.fromkeys(doc.cats, 0.0)
            doc.cats = {**own, "calm": 0.0, "storm": 0.0}
            if i >= first:
                doc.cats = {**doc.cats, extra: 1.0}
    report = check(tmp_path, checkpoint, kind, train, dev)
    found = {f.check: f.examples for section in report.sections for f in section.findings}
    assert found == {"label_only_in_dev": ["storm (2)"], "label_only_in_train": ["calm (10)"]}


@pytest.mark.parametrize("kind, number", [("textcat", 2), ("textcat_multilabel", 1)])
def test_texts_with_different_categories(checkpoint, tmp_path, kind, number):
    train, dev = make_splits()
    rows = [{"fire": 1.0}, {"fire": 0.0}, {"fire": 1.0}, {"voyage": 1.0}, {"fire": 1.0}]
    for text, cats in zip("aabbc", rows, strict=True):
        train.append(NLP.make_doc(f"Hull {word(ord(text))}"))
        train[-1].cats = {"calm": 1.0, "fire": 0.0} if cats == {"fire": 0.0} else cats
    train += [NLP.make_doc(f"calm {word(i)}") for i in range(10)]
    for doc in train[-10:]:
        doc.cats = {"calm": 1.0}
    dev.append(NLP.make_doc("calm now"))
    dev[-1].cats = {"calm": 1.0}
    found = findings_of(check(tmp_path, checkpoint, kind, train, dev))
    assert found == {("contradiction", "warning", "train"): number}


def test_labels_that_look_alike(checkpoint, tmp_path):
    train, dev = make_splits()
    names = {"fire": "Fire", "voyage": "voyage\u00a0"}
    for i, doc in enumerate((*train, *dev)):
        if i % 4 < 2:
            doc.cats = {names[label]: value for label, value in doc.cats.items()}
    report = check(tmp_path, checkpoint, "textcat", train, dev)
    found = {f.check: f.examples for section in report.sections for f in section.findings}
    assert sorted(found["similar_labels"]) == [
        "'voyage\\xa0' (5)", "Fire (5)", "fire (5)", "voyage (5)",
    ]  # fmt: skip


def test_several_categories_and_none(checkpoint, tmp_path):
    train, dev = make_splits()
    for i, cats in enumerate([(1.0, 1.0), (1.0, 1.0), (0.0, 0.0)]):
        train.append(make_doc(100 + i))
        train[-1].cats = dict(zip(("voyage", "fire"), cats, strict=True))
    dev[0].cats = {"voyage": 0.0, "fire": 0.0}
    expected = {
        ("several_categories", "error", "train"): 2,
        ("no_category", "warning", "train"): 1,
        ("no_category", "warning", "dev"): 1,
    }
    assert findings_of(check(tmp_path, checkpoint, "textcat", train, dev)) == expected
    assert findings_of(check(tmp_path, checkpoint, "textcat_multilabel", train, dev)) == {}


def test_two_text_classifiers_have_categories_of_their_own(checkpoint, tmp_path):
    train, dev = make_splits()
    for i, doc in enumerate((*train, *dev)):
        doc.cats = {**doc.cats, "calm": float(i % 2), "rough": float(not i % 2)}
    labels = {"topic": ["voyage", "fire"], "mood": ["calm", "rough"]}
    given = {"initialize.components": {name: {"labels": own} for name, own in labels.items()}}
    report = check(tmp_path, checkpoint, "textcat=topic,textcat=mood", train, dev, given)
    assert findings_of(report) == {}
    facts = {section.title: section.facts for section in report.sections}
    assert [sorted(facts[name]["train"]["labels"]) for name in labels] == [
        sorted(own) for own in labels.values()
    ]


def test_unknown_settings_of_the_training(checkpoint, tmp_path):
    given = {"training.max_step": 2}
    with pytest.raises(ValueError, match="no setting 'max_step'. Did you mean max_steps?"):
        check(tmp_path, checkpoint, "textcat", *make_splits(), given)


def test_gold_entries(checkpoint, tmp_path):
    train, dev = make_splits()
    train[0]._.nli = []  # not annotated
    train[1]._.hypotheses = ["It left", "It burned"]
    train += [make_doc(i, ".") for i in range(4)]
    train[2]._.nli = [{"scores": {}}]
    dev[0]._.answers = [make_answer(dev[0])]
    assert findings_of(check(tmp_path, checkpoint, "nli,qa", train, dev)) == {
        ("gold_entries", "error", "train"): 2,
        ("gold_entries", "error", "dev"): 1,
    }


def test_second_texts_that_are_too_long(checkpoint, tmp_path):
    train, dev = make_splits()
    fits, too_long = "a " * PAIR_LIMIT, "a " * (PAIR_LIMIT + 1)
    for i in range(3):
        train[i]._.hypotheses = [fits, too_long, too_long + "b"]
        train[i]._.nli = [make_verdict("neutral"), make_verdict("entailment"), None]
    train += [make_doc(i, ".") for i in range(10)]
    found = check(tmp_path, checkpoint, "nli", train, dev)
    assert findings_of(found) == {("second_text_too_long", "warning", "train"): 3}
    config = {"components.bert_nli.hypotheses": [fits, too_long]}
    found = check(tmp_path, checkpoint, "nli", *make_splits(), config)
    assert findings_of(found) == {("second_text_too_long", "warning", "config"): 1}
    config = {"components.bert_nli.categories": {"fire": too_long}}
    found = check(tmp_path, checkpoint, "nli", *make_splits(), config)
    assert findings_of(found) == {("second_text_too_long", "error", "config"): 1}


def test_answers(checkpoint, tmp_path):
    train, dev = make_splits()
    doc = NLP.make_doc(" ".join("abcdefgh"[i % 8] for i in range(100)))
    doc._.questions = ["a"] * 6
    # A word and a space are 2 characters. The question leaves 60 of the window to the Doc; the
    # second window begins 14 before the end of the first, at 46.
    places = [(0, LONGEST), (0, LONGEST + 1), (0, 99), (44, 64), (46, 64), (44, 60)]
    doc._.answers = [make_answer(doc, 2 * start, 2 * end - 1) for start, end in places]
    train.append(doc)
    train[0]._.answers = [{**train[0]._.answers[0], "text": "anna"}, train[0]._.answers[1]]
    dev[0]._.answers = ["Anna", None]
    assert findings_of(check(tmp_path, checkpoint, "qa", train, dev)) == {
        ("answer_not_found", "error", "train"): 1,
        ("answer_not_found", "error", "dev"): 1,
        ("answer_too_long", "warning", "train"): 2,
        ("answer_in_no_window", "warning", "train"): 1,
    }


@pytest.fixture(scope="module")
def answers(checkpoint):
    """A head that answers, and how its encoder reads."""
    nlp = build(checkpoint, ["qa"])
    return nlp.get_pipe("bert_qa"), Reading(load_wordpiece_tokenizer(checkpoint), WINDOW, STRIDE)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), num_words=st.integers(1, 200), longest=st.integers(1, 70))
def test_answers_are_measured_as_counted_by_hand(answers, data, num_words, longest):
    """Words of one wordpiece each: windows and lengths are those of words."""
    head, reading = answers
    head.max_answer_length = longest
    doc = NLP.make_doc(" ".join("a" * num_words))
    questions, entries, expected = [], [], {"answer_too_long": 0, "answer_in_no_window": 0}
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, num_words - 1))
        end = data.draw(st.integers(start + 1, num_words))
        size = data.draw(st.integers(1, PAIR_LIMIT))
        questions.append(" ".join("b" * size))
        entries.append(make_answer(doc, 2 * start, 2 * end - 1))
        room = WINDOW - 3 - size
        step = room - min(WINDOW - 2 - STRIDE, room // 2)
        begins = [0]
        while begins[-1] + room < num_words:
            begins.append(begins[-1] + step)
        if end - start > longest:
            expected["answer_too_long"] += 1
        elif not any(begin <= start and end <= begin + room for begin in begins):
            expected["answer_in_no_window"] += 1
    doc._.questions, doc._.answers = questions, entries
    split = Split("train", [Example(NLP.make_doc(doc.text), doc)])
    found = {finding.check: finding.count for finding in check_answers(head, split, reading)}
    assert found == {check: count for check, count in expected.items() if count}


# --- texts


def test_unknown_wordpieces_and_windows(checkpoint, tmp_path):
    train, dev = make_splits()
    dev.append(NLP.make_doc("a " * 94 + "Ж a Ж a Ѣ a"))
    report = check(tmp_path, checkpoint, "ner", train, dev)
    assert findings_of(report) == {("unknown_wordpieces", "warning", "dev"): 3}
    facts = report.sections[1].facts
    assert (facts["train"]["unknown"], facts["train"]["several_windows"]) == (0, 0)
    seen = facts["dev"]
    assert seen["unknown_texts"] == {"Ж": 2, "Ѣ": 1}
    # 62 of a window are for the Doc: 100 wordpieces take two.
    assert (seen["longest"], seen["windows_of_longest"], seen["several_windows"]) == (100, 2, 1)
    tokenizer = load_wordpiece_tokenizer(checkpoint)
    assert seen["wordpieces"] == tokenizer([doc.text for doc in dev]).lengths.sum()


@pytest.mark.parametrize("family, unknown", [("xlm-roberta", 3), ("roberta", 0)])
def test_unknown_wordpieces_of_other_tokenizers(folders, tmp_path, family, unknown):
    train, dev = make_splits()
    dev.append(NLP.make_doc("Ж a Ж a Ѣ a"))
    report = check(tmp_path, folders(family), "ner", train, dev)
    assert report.sections[1].facts["dev"]["unknown"] == unknown


def test_texts_in_both_and_empty_ones(checkpoint, tmp_path):
    train, dev = make_splits()
    empty = [NLP.make_doc(text) for text in ("", "", "\n")]
    report = check(tmp_path, checkpoint, "ner", [*train, *empty, dev[0], dev[1], dev[0]], dev)
    assert findings_of(report) == {
        ("overlap", "warning", "train"): 3,
        ("empty", "warning", "train"): 3,
    }
    (overlap,) = [f for f in report.sections[0].findings if f.check == "overlap"]
    assert "3 Docs (12.5%)" in overlap.message  # of 24, for the reader passes over empty ones


def test_nothing_annotated(checkpoint, tmp_path):
    train, dev = make_splits()
    bare = [NLP.make_doc(doc.text) for doc in train]
    assert findings_of(check(tmp_path, checkpoint, "ner", bare, dev)) == {
        ("not_annotated", "error", "train"): 20
    }
    bare = [NLP.make_doc(doc.text) for doc in dev]
    assert findings_of(check(tmp_path, checkpoint, "ner", train, bare)) == {
        ("not_annotated", "warning", "dev"): 4
    }
    assert findings_of(check(tmp_path, checkpoint, "ner", train, [])) == {
        ("no_docs", "error", "dev"): 0
    }


# --- heads that are trained already


def test_sourced_and_frozen_heads(checkpoint, tmp_path):
    """Of a head that was trained before, labels that it doesn't have; of a frozen one nothing."""
    teach(build(checkpoint, ["ner", "textcat"]), steps=1).to_disk(tmp_path / "trained")
    train, dev = make_splits()
    for doc in train:
        doc.ents = [*doc.ents, Span(doc, 4, 5, label="DAY")]
    dev[0].ents = [*dev[0].ents, Span(dev[0], 4, 5, label="DAY")]
    train[0].cats = {"voyage": 2.0}
    settings = {
        f"components.{name}": {"source": str(tmp_path / "trained")}
        for name in ("bert_encoder", "bert_ner", "bert_textcat")
    }
    settings["training.frozen_components"] = ["bert_textcat"]
    report = check(tmp_path, checkpoint, "ner,textcat", train, dev, settings)
    assert findings_of(report) == {("unknown_label", "warning", "train"): 1}
    (finding,) = [f for section in report.sections for f in section.findings]
    assert finding.examples == ["DAY (20)"] and "bert_ner" in finding.message
    assert report.sections[-1].facts["frozen"] and not report.sections[-1].passed


def test_a_head_with_an_encoder_of_its_own(checkpoint, tmp_path):
    """After nlp.replace_listeners the head's own window counts."""
    nlp = teach(build(checkpoint, ["qa"]), steps=1)
    nlp.replace_listeners("bert_encoder", "bert_qa", ["model.tok2vec"])
    nlp.to_disk(tmp_path / "trained")
    train, dev = make_splits()
    train[0]._.questions = ["a " * (PAIR_LIMIT + 1), "Why?"]
    settings = {"components.bert_qa": {"source": str(tmp_path / "trained")}}
    report = check(tmp_path, checkpoint, "qa", train, dev, settings)
    assert findings_of(report) == {("second_text_too_long", "warning", "train"): 1}


def test_examples_are_those_of_training(checkpoint, tmp_path):
    """What is found stands in the finding, shortened, and each text once."""
    train, dev = make_splits()
    for doc in train[:5]:
        doc._.questions = ["why " * 40, "Why?"]
    report = check(tmp_path, checkpoint, "qa", train, dev)
    (finding,) = [f for section in report.sections for f in section.findings]
    assert finding.count == 5 and "1 question " in finding.message and "5 pairs" in finding.message
    assert finding.examples == [f"{'why ' * 40:.59}…"]
    assert "larger window" in finding.fix


def test_an_encoder_of_another_name_is_an_error(checkpoint, tmp_path):
    settings = {"components.bert_ner.model.tok2vec.upstream": "nobody"}
    with pytest.raises(ValueError, match="no 'nobody' comes before it"):
        check(tmp_path, checkpoint, "ner", *make_splits(), settings)
    settings = {"components.bert_encoder.model.stride": 63}
    with pytest.raises(ValueError, match="Set stride to 62 or less"):
        check(tmp_path, checkpoint, "ner", *make_splits(), settings)
