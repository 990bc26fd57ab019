"""Every answer up to `max_answer_length` is found, wherever windows begin and end."""

from dataclasses import replace

import numpy as np
import pytest
import spacy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from letter_pairs import SHAPES, pairs_of
from letters import letters
from pair_examples import build, train, weights_of

from spacy_bert_heads.heads.answers import best_spans
from spacy_bert_heads.heads.qa_windows import find_targets, longest_everywhere
from spacy_bert_heads.text.packing import pack_pairs

LONG = "who left Skagen in the boat on Tuesday and burned " * 20


def pack(num_words: int, question: str, *, window: int, stride: int, longest_span: int):
    """A Doc of one-letter words, of which each is a wordpiece, with a question."""
    pairs = pairs_of((" ".join("abcdefghij"[i % 10] for i in range(num_words)), [question]))
    pairs = replace(pairs, longest_span=longest_span)
    return pack_pairs(pairs, letters(), window=window, stride=stride)


def found_by_perfect_logits(batch, answer: tuple[int, int], max_length: int):
    """The best span, where every window says what it was taught to say; None if no window knows."""
    targets = find_targets(batch, np.asarray([answer]))
    if targets[0, 0] < 0:
        return None
    logits = np.full((len(batch.input_ids), 2), -10.0)
    for side in (0, 1):
        logits[batch.cu_seqlens[:-1] + targets[:, side], side] = 10.0
    found = best_spans(logits, batch, max_length=max_length, n_best=1)
    assert found.no_answer[0] < 1e-6 and found.scores[0, 0] > 0.99
    return int(found.starts[0, 0]), int(found.ends[0, 0])


@settings(max_examples=60, deadline=None)
@given(
    num_words=st.integers(1, 40),
    shape=SHAPES,
    question=st.text("xyz", min_size=1, max_size=9),
    max_length=st.integers(1, 12),
)
def test_every_answer_is_found_or_there_is_no_room(num_words, shape, question, max_length):
    window, stride = shape
    assume(len(question) <= min(window // 2, window - 4))
    batch = pack(num_words, question, window=window, stride=stride, longest_span=max_length)
    room = int(longest_everywhere(batch)[0])
    answers = [
        (2 * first, 2 * (first + length) - 1)  # words are a character and a space
        for length in range(1, min(max_length, room) + 1)
        for first in range(num_words - length + 1)
    ]
    for answer in answers:
        assert found_by_perfect_logits(batch, answer, max_length) == answer
    if len(batch.seqlens) == 1:
        assert room == num_words
        return
    # No larger value works: some span is in no window.
    longer = [(2 * first, 2 * (first + room) + 1) for first in range(num_words - room)]
    assert None in [found_by_perfect_logits(batch, answer, room + 1) for answer in longer]
    # Windows overlap by as much as is wanted, up to three quarters of what is the Doc's.
    capacity = window - 3 - len(question)
    assert room >= min(max_length, capacity - -(-capacity // 4) + 1)


@pytest.mark.parametrize("longest_span, num_windows", [(0, 3), (5, 3), (6, 3), (7, 4), (99, 5)])
def test_windows_overlap_by_more_only_where_it_is_needed(longest_span, num_windows):
    # 20 words in windows of 10 that overlap by 5
    batch = pack(20, "xyz", window=16, stride=8, longest_span=longest_span)
    assert batch.num_windows.tolist() == [num_windows]


# --- what there is no room for


def ask_all(nlp, *rows: tuple[str, str]):
    docs = [nlp.make_doc(text) for text, _ in rows]
    for doc, (_, question) in zip(docs, rows, strict=True):
        doc._.questions = [question]
    return [doc._.answers[0] for doc in nlp.pipe(docs)]


def test_a_question_that_leaves_no_room_loses_its_long_doc_alone(folders):
    nlp = build(folders("bert"), "qa", no_answer_threshold=1.0)
    question = "the " * 32  # half of a window of 64
    with pytest.warns(UserWarning, match="answers of at most 22 wordpieces.* is 30: 'the the"):
        long, short, other = ask_all(nlp, (LONG, question), ("Anna left", question), (LONG, "Who?"))
    assert long is None
    assert short["text"] and other["text"]
    nlp.get_pipe("bert_qa").max_answer_length = 22
    assert all(answer["text"] for answer in ask_all(nlp, (LONG, question), (LONG, "Who?")))


def test_training_goes_on_beside_a_question_that_leaves_no_room(folders, recwarn):
    question = "the " * 32
    data = [(LONG, {"questions": {question: "Skagen", "Who?": "boat"}})]
    nlp = build(folders("bert"), "qa", data=data)
    before = weights_of(nlp)
    train(nlp, data, steps=1)
    assert not (weights_of(nlp) == before).all()
    assert not [one for one in recwarn if "does not learn" in str(one.message)]


@pytest.mark.parametrize("length", [46, 47])
def test_a_length_without_room_beside_any_question_is_rejected(folders, tmp_path, length):
    config = {"components.bert_qa.max_answer_length": length}
    build(folders("bert"), "qa").to_disk(tmp_path)
    if length == 46:
        assert build(folders("bert"), "qa", max_answer_length=length)
        assert spacy.load(tmp_path, config=config)
        return
    match = "max_answer_length of bert_qa is 47, .* 64 .*at most 46 .*Set max_answer_length to 22"
    with pytest.raises(ValueError, match=match):
        build(folders("bert"), "qa", max_answer_length=length)
    with pytest.raises(ValueError, match=match):
        spacy.load(tmp_path, config=config)
    nlp = build(folders("bert"), "qa")
    nlp.replace_listeners("bert_encoder", "bert_qa", ["model.tok2vec"])
    nlp.to_disk(tmp_path)
    with pytest.raises(ValueError, match=match):
        spacy.load(tmp_path, config=config)
