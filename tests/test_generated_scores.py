"""Scores of generated texts, by language."""

import pytest
from spacy.language import BaseDefaults
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import create_vocab

from spacy_bert_heads.heads.seq2seq import BertSeq2Seq, score_seq2seq

BertSeq2Seq.set_extensions()
ROUGE = [f"seq2seq_rouge{kind}" for kind in ("1", "2", "L")]


def score(lang: str, generated: str, target: str) -> dict[str, float]:
    vocab = create_vocab(lang, BaseDefaults)  # not every language's tokenizer is installed
    predicted, gold = Doc(vocab, words=["x"]), Doc(vocab, words=["x"])
    predicted._.generated, gold._.targets = generated, [target]
    return score_seq2seq([Example(predicted, gold)])


@pytest.mark.parametrize(
    "lang, text",
    [
        ("ru", "Корабль сел на мель у Скагена"),
        ("xx", "Корабль сел на мель у Скагена"),
        ("ar", "السفينة غرقت قرب الميناء"),
        ("el", "Το πλοίο βυθίστηκε κοντά στο λιμάνι"),
        ("zh", "船在港口外搁浅了并且沉没"),
        ("ja", "船は港の外で座礁して沈んだ"),
        ("th", "เรือเกยตื้นนอกท่าเรือ"),
    ],
)
def test_a_perfect_text_has_a_score_of_1_in_any_script(lang, text):
    assert score(lang, text, text) == dict.fromkeys(["seq2seq_bleu", *ROUGE], pytest.approx(1))


def test_letters_of_any_script_count_as_digits_do():
    """One of four words is shared, the number."""
    found = score("ru", "пожар на 3 складе", "Корабль, шторм, мель 3")
    assert [found[key] for key in ROUGE] == [0.25, 0.0, 0.25]


@pytest.mark.parametrize(
    "lang, generated, target",
    [
        ("zh", "船在港口外搁浅了而且沉没", "船在港口外搁浅了并且沉没"),
        ("ja", "船は港の外で座礁して沈む", "船は港の外で座礁ゑて沈む"),
        ("th", "กขคงจฉชซญดตถ", "กขคงจฉชซฌดตถ"),
    ],
)
def test_languages_without_spaces_are_split_into_characters(lang, generated, target):
    """The ninth of twelve characters is another one, which is in 2 of 11 pairs, 3 of 10 triples and
    4 of 9 quadruples."""
    found = score(lang, generated, target)
    assert [found[key] for key in ROUGE] == pytest.approx([11 / 12, 9 / 11, 11 / 12])
    product = 11 / 12 * 9 / 11 * 7 / 10 * 5 / 9
    assert found["seq2seq_bleu"] == pytest.approx(product**0.25)


def test_punctuation_and_case_are_no_part_of_words():
    found = score("ru", "мель, шторм!", "Мель – шторм")
    assert [found[key] for key in ROUGE] == [1.0, 1.0, 1.0]
