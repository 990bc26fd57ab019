"""One word in several texts: its similarities by Hugging Face's hidden states."""

import re

import numpy as np
import pytest
import spacy
import torch
from checkpoints import make_checkpoint
from inspected import SENTENCES
from transformers import AutoModel, AutoTokenizer

from spacy_bert_heads.inspection.source import open_source
from spacy_bert_heads.inspection.word import WordView, compare_word, in_context


def hidden_states(folder: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    """All layers' states of one text by Hugging Face, (depth + 1, n_pieces, width), and the pieces'
    offsets (n_pieces, 2), both without special tokens."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    inputs = tokenizer(
        text, return_tensors="pt", return_offsets_mapping=True, return_special_tokens_mask=True
    )
    offsets = inputs.pop("offset_mapping")[0].numpy()
    own = np.flatnonzero(inputs.pop("special_tokens_mask")[0].numpy() == 0)
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        output = model.eval()(**inputs, output_hidden_states=True)
    states = torch.stack([*output.hidden_states[:-1], output.last_hidden_state])[:, 0].numpy()
    return states[:, own], offsets[own]


def vector(folder: str, text: str, start: int, end: int) -> np.ndarray:
    states, offsets = hidden_states(folder, text)
    # What starts in the word, a byte-level space of no width too; or covers where it starts.
    first, last = offsets.T
    inside = (start <= first) & (first < end) | (first < start) & (start < last)
    return states[:, inside].mean(1)  # (depth + 1, width)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "modernbert"])
@pytest.mark.parametrize(
    "word, texts",
    [
        ("coaster", SENTENCES),
        # Of several pieces; of two tokens, the first two of which are one piece; at both ends.
        ("sandbank", ["It ran on a sandbank off Hull.", "A sandbank", "Sandbank: no."]),
        ("cannot swim", ["Anna cannot swim.", "He cannot swim, but Anna can.", "cannot swim"]),
    ],
)
def test_cosines_are_those_of_hugging_faces_states(family, word, texts, tmp_path):
    folder = make_checkpoint(tmp_path / family, family=family)
    view = compare_word(open_source(folder), word, texts)
    found = [(text, m.span()) for text in texts for m in re.finditer(word, text, re.I)]
    assert [span.text for span in view.occurrences] == [t[a:b] for t, (a, b) in found]
    vectors = [vector(folder, text, *place) for text, place in found]
    expected = np.asarray([[cosine(a, b) for b in vectors] for a in vectors]).transpose(2, 0, 1)
    assert view.cosines.shape == (3, 3, 3)
    np.testing.assert_allclose(view.cosines, expected, atol=1e-5)
    # No two occurrences are the same above the embeddings, and the layers differ.
    assert (view.cosines[1:, 0, 1] < 0.9999).all() and np.ptp(view.cosines[:, 0, 1]) > 1e-3


def test_a_word_at_the_end_of_a_long_text(checkpoint):
    filler = "the boat lost control off Skagen and Anna swam . "
    text = f"{filler * 30}The coaster sank."
    view = compare_word(open_source(checkpoint), "coaster", [text, SENTENCES[0]])
    tokenizer, model = (
        AutoTokenizer.from_pretrained(checkpoint),
        AutoModel.from_pretrained(checkpoint),
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    # Windows of 128, two of them special, begin at every 96th piece.
    start = 96 * -(-(len(ids) - 126) // 96)
    window = [tokenizer.cls_token_id, *ids[start : start + 126], tokenizer.sep_token_id]
    place = window.index(tokenizer.convert_tokens_to_ids("coaster"))
    assert 20 < len(window) < 128
    with torch.no_grad():
        output = model.eval()(torch.tensor([window]), output_hidden_states=True)
    states = torch.stack(output.hidden_states)[:, 0, place].numpy()
    at = SENTENCES[0].index("coaster")
    expected = cosine(states, vector(checkpoint, SENTENCES[0], at, at + 7))
    np.testing.assert_allclose(view.cosines[:, 0, 1], expected, atol=1e-5)


def test_self_similarity_is_the_mean_of_different_places():
    cosines = np.asarray([[[1, 0.2, 0.4], [0.2, 1, 0.9], [0.4, 0.9, 1]]])
    spans = [spacy.blank("en")("a b c")[i : i + 1] for i in range(3)]
    view = WordView("x", "a", spans, cosines)
    np.testing.assert_allclose(view.self_similarity, [0.5])


@pytest.mark.parametrize(
    "word, texts, message",
    [
        ("boat", [*SENTENCES, "A boat"], r"'boat' is not in the text 'The coaster .*' \(and 1 oth"),
        ("coast", SENTENCES, "'coast' is not in the text 'The coaster lost"),
        ("Skagen", SENTENCES[:1], "'Skagen' occurs 1 times in 1 texts. Pass texts with 2 to 20"),
        ("a", ["a " * 21], "occurs 21 times"),
        (" ", SENTENCES, "The word is empty"),
        ("\u200b", ["a \u200b b \u200b c"], "has no wordpieces"),
    ],
)
def test_words_that_can_not_be_compared(checkpoint, word, texts, message):
    with pytest.raises(ValueError, match=message):
        compare_word(open_source(checkpoint), word, texts)


def test_a_pipelines_encoder_is_its_checkpoint(checkpoint, make_nlp, tmp_path):
    nlp = make_nlp("textcat")
    nlp.to_disk(tmp_path / "one")
    source = open_source(str(tmp_path / "one"))
    assert (source.window, source.stride, source.depth) == (64, 48, 2)
    views = [compare_word(one, "coaster", SENTENCES) for one in (source, open_source(checkpoint))]
    np.testing.assert_allclose(views[0].cosines, views[1].cosines, atol=1e-6)

    settings = {"name": checkpoint, "window": 32, "stride": 16}
    nlp.add_pipe("bert_encoder", name="second", config={"model": settings})
    nlp.get_pipe("second").initialize(lambda: [])
    nlp.to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="has these encoders: bert_encoder, second. Choose one"):
        open_source(str(tmp_path / "two"))
    assert open_source(str(tmp_path / "two"), encoder="second").window == 32
    spacy.blank("en").to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match="has no bert_encoder"):
        open_source(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="is a checkpoint, not a pipeline"):
        open_source(checkpoint, encoder="bert_encoder")


def test_a_long_text_is_cut_around_its_word():
    doc = spacy.blank("en")("one two three\nfour bank five six seven")
    assert in_context(doc[5:6], limit=50) == ("one two three four ", "bank", " five six seven")
    assert in_context(doc[5:6], limit=12) == ("…three four ", "bank", " five six…")
    doc = spacy.blank("zh")("我们坐在河岸上看船")
    (place,) = [token for token in doc if token.text == "岸"]
    assert in_context(doc[place.i : place.i + 1], limit=2) == ("…在河", "岸", "上看…")


# A real encoder


def test_senses_separate_by_layer(minilm):
    river = ["We sat on the bank of the river.", "The canoe drifted to the muddy bank."]
    money = ["She put her savings into a bank.", "The bank raised its interest rates."]
    view = compare_word(open_source(minilm), "bank", [*river, *money])
    within = view.cosines[:, [0, 2], [1, 3]].mean(1)
    across = view.cosines[:, :2, 2:].mean((1, 2))
    assert abs(within[0] - across[0]) < 0.03  # embeddings know the position and nothing else
    assert within[-1] - across[-1] > 0.08
