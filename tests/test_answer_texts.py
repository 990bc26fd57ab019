"""What answers begin and end with: no white space, and whole tokens unless asked otherwise."""

from functools import cache

import numpy as np
import pytest
import spacy
from checkpoints import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from letter_pairs import greedy, sequences_of
from letters import NLP as ENGLISH
from pair_examples import ask, build
from pair_stream import assert_slices
from spacy.tokens import Doc

from spacy_bert_heads.heads.answers import best_spans
from spacy_bert_heads.heads.qa_windows import find_targets, widen_to_tokens
from spacy_bert_heads.text.packing import pack_pairs
from spacy_bert_heads.text.pairs import Pairs
from spacy_bert_heads.text.wordpieces import WordpieceTokenizer, trim_offsets

NLP = spacy.blank("xx")
SPACES = ["\n", "\n\n", "\t", "   ", "\r\n ", "\u00a0", "\u3000", "\u2028"]
PARTS = st.sampled_from(["Anna", "Skagen", "a", ",", "😀", "船", "don't", "x1-y2", " ", *SPACES])
TEXTS = st.lists(PARTS, max_size=9).map("".join)


@cache
def byte_level() -> WordpieceTokenizer:
    return WordpieceTokenizer(make_tokenizer("bytes").backend_tokenizer)


def pack(*docs: Doc):
    pairs = Pairs(list(docs), [["Who?"]] * len(docs), False)
    return pack_pairs(pairs, byte_level(), window=500, stride=400)


def spans_by_hand(text: str, logits, batch, max_length: int):
    """All spans (logit, start, end) that white space neither begins nor ends."""
    offsets = byte_level().tokenizer.encode(text, add_special_tokens=False).offsets
    at = len(batch.input_ids) - 1 - len(offsets)  # before [SEP]
    spans = []
    for i, (start, stop) in enumerate(offsets):
        for j, (begin, end) in enumerate(offsets[i : i + max_length], i):
            if text[start:stop].strip() and text[begin:end].strip():
                span = text[start:end]
                start_char = start + len(span) - len(span.lstrip())
                logit = float(logits[at + i, 0] + logits[at + j, 1])
                spans.append((logit, start_char, start_char + len(span.strip())))
    return spans


def widened(doc: Doc, spans):
    for logit, start, end in spans:
        tokens = doc.char_span(start, end, alignment_mode="expand")
        text = doc.text[tokens.start_char : tokens.end_char]
        begin = tokens.start_char + len(text) - len(text.lstrip())
        yield logit, begin, begin + len(text.strip())


@settings(max_examples=150, deadline=None)
@given(
    text=TEXTS,
    seed=st.integers(0, 999),
    max_length=st.integers(1, 8),
    n_best=st.integers(1, 4),
    alignment=st.sampled_from(["token", "char"]),
)
def test_byte_level_answers_by_hand(text, seed, max_length, n_best, alignment):
    """Blank spans are no candidates, so that the runner-up is found; probabilities are those of a
    softmax over what is left."""
    doc = NLP.make_doc(text)
    batch = pack(doc)
    logits = np.random.default_rng(seed).normal(size=(len(batch.input_ids), 2)) * 4
    spans = spans_by_hand(text, logits, batch, max_length)
    total = np.logaddexp.reduce([logits[0].sum(), *(logit for logit, *_ in spans)])
    if alignment == "token":
        batch = widen_to_tokens(batch, [doc], np.asarray([1]))
        spans = list(widened(doc, spans))
    chosen = greedy(spans, n_best)
    found = best_spans(logits, batch, max_length=max_length, n_best=n_best)
    places = list(zip(found.starts[0].tolist(), found.ends[0].tolist(), strict=True))
    assert places == [(s, e) for _, s, e in chosen] + [(0, 0)] * (n_best - len(chosen))
    assert len(set(places[: len(chosen)])) == len(chosen)
    for (start, end), score, (logit, *_) in zip(places, found.scores[0], chosen, strict=False):
        assert text[start:end] == text[start:end].strip() != ""
        assert score == pytest.approx(np.exp(logit - total))
    if not text.strip():
        assert found.no_answer.tolist() == [1.0]


@settings(max_examples=100, deadline=None)
@given(text=TEXTS.filter(str.strip), data=st.data())
def test_what_is_learned_is_no_white_space(text, data):
    """Targets and predictions agree: perfect logits give the answer back, stripped."""
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    answer = text[start:end]
    batch = pack(NLP.make_doc(text))
    ((first, last),) = find_targets(batch, np.asarray([[start, end]])).tolist()
    if not answer.strip():
        assert (first, last) == (-1, -1)
        return
    logits = np.full((len(batch.input_ids), 2), -20.0)
    logits[first, 0] = logits[last, 1] = 20.0
    found = best_spans(logits, batch, max_length=99, n_best=1)
    start_char, end_char = int(found.starts[0, 0]), int(found.ends[0, 0])
    assert text[start_char:end_char].strip() == text[start_char:end_char]
    assert answer.strip() in text[start_char:end_char]  # whole wordpieces


@given(parts=st.lists(TEXTS, max_size=5), data=st.data())
def test_white_space_is_trimmed_as_python_does(parts, data):
    text = "".join(parts) + "".join(map(chr, data.draw(st.lists(st.integers(0, 0x3002)))))
    ends = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    starts = [data.draw(st.integers(0, end)) for end in ends]
    found = trim_offsets(text, *(np.asarray(side, dtype=np.int64) for side in (starts, ends)))
    for start, end, *(new_start, new_end) in zip(starts, ends, *found, strict=True):
        assert text[new_start:new_end] == text[start:end].strip()
        assert start <= new_start <= new_end <= end


def test_offsets_of_several_docs_are_widened():
    docs = [
        Doc(ENGLISH.vocab, words=["ab", "cd"]),
        Doc(ENGLISH.vocab, words=[]),
        Doc(ENGLISH.vocab, words=["\n", "abc d", " e "], spaces=[False, True, False]),
    ]
    batch = pack(*docs)
    wide = widen_to_tokens(batch, docs, np.asarray([1, 1, 1])).offsets
    borders = [{(0, 2), (3, 5)}, set(), {(1, 6), (8, 9)}]
    found = np.split(np.stack([wide.starts, wide.ends], axis=1), batch.cu_seqlens[1:-1])
    for some, expected in zip(found, borders, strict=True):
        assert {(start, end) for start, end in some.tolist() if end > start} == expected


def test_half_a_word_becomes_the_word():
    """By hand: the best span is "ab", the next "bc" in the same word, then "ef"."""
    doc = Doc(ENGLISH.vocab, words=["abc", "ef"])
    batch = sequences_of(("abc ef", ["x"]), window=20)  # [CLS] x [SEP] a ##b ##c e ##f [SEP]
    logits = np.full((9, 2), -9.0)
    logits[[3, 4, 6], 0] = 5.0, 4.5, 3.0
    logits[[4, 5, 7], 1] = 5.0, 4.0, 3.0
    shares = {"ab": 10.0, "abc": 9.0, "abc ef": 8.0, "b": 9.5, "bc": 8.5, "bc ef": 7.5, "ef": 6.0}
    total = np.logaddexp.reduce(list(shares.values()))
    by_char = best_spans(logits, batch, max_length=5, n_best=2)
    assert (by_char.starts.tolist(), by_char.ends.tolist()) == ([[0, 4]], [[2, 6]])
    wide = widen_to_tokens(batch, [doc], np.asarray([1]))
    by_token = best_spans(logits, wide, max_length=5, n_best=2)
    assert (by_token.starts.tolist(), by_token.ends.tolist()) == ([[0, 4]], [[3, 6]])
    expected = [np.exp(shares["ab"] - total), np.exp(shares["ef"] - total)]
    assert by_token.scores[0] == pytest.approx(expected, rel=1e-3)
    assert by_token.scores.tolist() == by_char.scores.tolist()
    assert by_token.no_answer.tolist() == by_char.no_answer.tolist()


# --- in a pipeline


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("alignment", ["token", "char"])
def test_answers_of_a_pipeline(folders, family, alignment):
    settings = {"alternatives": 4, "no_answer_threshold": 1.0, "alignment": alignment}
    nlp = build(folders(family), "qa", **settings)
    inside = 0
    for text in ("Anna\n\nleft \t Skagen", "\n Barack met Merkel; nobody swims \n\n", "Hull"):
        doc = ask(nlp, text, questions=["Who left?", "Why?"])
        assert_slices(doc)
        for answer in doc._.answers:
            assert answer["text"]
            for one in (answer, *answer["alternatives"]):
                inside += one["text"] != doc[one["start"] : one["end"]].text
    assert (inside == 0) == (alignment == "token")


def test_the_default_is_whole_tokens(folders):
    assert build(folders("bert"), "qa").get_pipe("bert_qa").alignment == "token"
    with pytest.raises(ValueError, match="alignment of bert_qa is 'word'; .*'token' or 'char'"):
        build(folders("bert"), "qa", alignment="word")


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("text", ["", " ", "\n\n \t", "\u3000\u00a0\r\n"])
def test_a_doc_without_text_has_no_answer(folders, family, text):
    nlp = build(folders(family), "qa", no_answer_threshold=1.0)
    doc = ask(nlp, text, questions=["Who?", "Who?"])
    none = {"text": "", "start_char": 0, "end_char": 0, "start": 0, "end": 0, "score": 1.0,
            "no_answer_score": 1.0, "alternatives": []}  # fmt: skip
    assert doc._.answers == [none, none]
    assert len(doc.spans["answers"]) == 0


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_same_question_twice_has_the_same_answer_twice(folders, family):
    nlp = build(folders(family), "qa", no_answer_threshold=1.0, alternatives=1)
    doc = ask(nlp, "Anna left Skagen", questions=["Who?", "Why?", "Who?"])
    first, other, again = doc._.answers
    assert first["text"] and first["start_char"] == again["start_char"]
    assert first["score"] == pytest.approx(again["score"], abs=1e-6)
    assert [span.label_ for span in doc.spans["answers"]] == ["Q1", "Q2", "Q3"]
    alone = ask(nlp, "Anna left Skagen", questions=["Why?"])._.answers[0]
    assert (other["text"], other["start_char"]) == (alone["text"], alone["start_char"])
