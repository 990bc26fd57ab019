"""Training texts that a checkpoint can't read are told of when a pipeline is initialized."""

import json
import warnings

import pytest
import spacy
from checkpoints import TEXTS, make_tokenizer
from spacy.tokens import Doc
from spacy.training import Example
from tokenizers import Tokenizer

from spacy_bert_heads.encoder import component
from spacy_bert_heads.text.unknown import find_unknown
from spacy_bert_heads.text.wordpieces import WordpieceTokenizer

# The tiny vocabulary has the letters of TEXTS, which are Latin ones and a few Chinese ones.
LATIN = "the crew used a pump in the engine room and the boat burned in hull then"
GREEK = "το πλοίο έφυγε από το λιμάνι"


def warnings_of(name: str, texts: list[str]) -> list[str]:
    nlp = spacy.blank("xx")
    nlp.add_pipe("bert_encoder", config={"model": {"name": name, "window": 64, "stride": 48}})
    nlp.add_pipe("bert_textcat")

    def get_examples():
        for i, text in enumerate(texts):
            cats = {"a": float(i % 2), "b": float(1 - i % 2)}
            yield Example.from_dict(nlp.make_doc(text), {"cats": cats})

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nlp.initialize(get_examples)
    return [str(w.message) for w in caught if "unknown to" in str(w.message)]


def test_texts_of_another_script(checkpoint):
    (message,) = warnings_of(checkpoint, [LATIN, GREEK, GREEK, GREEK])
    # 3 times 6 Greek words beside 27 Latin wordpieces.
    assert message.startswith("40% of the wordpieces in the training texts are unknown to")
    assert f"'{checkpoint}', such as 'το', 'πλοίο', 'έφυγε'" in message
    assert message.endswith("the language and the script of the texts, or a multilingual one.")


@pytest.mark.parametrize("texts", [[LATIN], [LATIN, "το πλοίο έφυγε"], ["", " "], [GREEK]])
def test_up_to_a_fifth_is_usual_and_few_words_say_nothing(checkpoint, texts):
    assert warnings_of(checkpoint, texts) == []  # 3 of 30; 6 words


def test_an_uncased_vocabulary_with_a_tokenizer_that_keeps_case(copied):
    file = copied / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"]["lowercase"] = False
    file.write_text(json.dumps(content))
    (message,) = warnings_of(str(copied), [LATIN.upper(), LATIN.title()])
    assert "In lower case it would be 0%: its vocabulary is uncased" in message
    assert "do_lower_case to true" in message
    # What the message says, done.
    content["normalizer"]["lowercase"] = True
    file.write_text(json.dumps(content))
    settings = copied / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_lower_case": True}))
    assert warnings_of(str(copied), [LATIN.upper(), LATIN.title()]) == []


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram"])
def test_unknown_words_are_those_of_hugging_face(kind):
    hf = make_tokenizer(kind)
    tokenizer = WordpieceTokenizer(Tokenizer.from_str(hf.backend_tokenizer.to_str()))
    texts = [*TEXTS, GREEK, "Ωmega and Anna"]
    ids = [i for text in texts for i in hf(text, add_special_tokens=False).input_ids]
    found = find_unknown(texts, tokenizer)
    assert found.share == pytest.approx(ids.count(hf.unk_token_id) / len(ids))
    assert bool(found.words) == (kind != "bytes")


def test_few_examples_are_looked_at(checkpoint, monkeypatch):
    monkeypatch.setattr(component, "SAMPLE", 2)
    assert warnings_of(checkpoint, [LATIN, LATIN, *[GREEK] * 20]) == []


def test_without_examples(checkpoint):
    """spaCy makes up a Doc then."""
    nlp = spacy.blank("xx")
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        nlp.initialize()
    assert isinstance(nlp("Anna left"), Doc)
