"""Classification by a pattern and words, beside Hugging Face's heads for masked words."""

import pickle

import numpy as np
import pytest
import spacy
import torch
import transformers
from checkpoints import FAMILIES, TEXTS, make_checkpoint
from commands import command, run
from hf_models import load
from hf_models import run as run_hf
from spacy.tokens import DocBin
from spacy.training import Example
from thinc.api import Adam, Config

from spacy_bert_heads import to_hf
from spacy_bert_heads.encoder.model import checkpoint_of
from spacy_bert_heads.heads.cloze import pack_cloze
from spacy_bert_heads.heads.free_text import as_setting
from spacy_bert_heads.inspection.explain import explain

MASKED = transformers.AutoModelForMaskedLM
PATTERN = "{text} It was {mask}."
WORDS = {"fire": "used", "voyage": "met"}
DATA = {
    "fire": ["Hull burned", "it burned in Hull", "the pump burned", "a boat burned"],
    "voyage": ["Anna left Skagen", "Grete left on Tuesday", "the boat left", "she left Hull"],
}


def build(name: str, initialize: bool = True, window: int = 64, **settings):
    nlp = spacy.blank("xx")
    encoder = {"name": name, "window": window, "stride": 3 * window // 4}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    model = {
        "@architectures": "spacy_bert_heads.ClozeHead.v1",
        "pattern": PATTERN,
        "words": WORDS,
        "tok2vec": {"@architectures": "spacy_bert_heads.BertListener.v1"},
        **settings,
    }
    nlp.add_pipe("bert_textcat", config={"model": model})
    if initialize:
        nlp.initialize()
    return nlp


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("masked") / "bert", auto_class=MASKED)


@pytest.fixture(scope="module")
def zero_shot(masked):
    return build(masked)


def logits_beside_hf(folder: str, filled: str, words=WORDS) -> torch.Tensor:
    """Hugging Face's logits of the words at the mask of a filled pattern (n_words,)."""
    model, tokenizer = load(folder, MASKED)
    text = filled.replace("{mask}", tokenizer.mask_token)
    (at,) = np.flatnonzero(np.asarray(tokenizer(text)["input_ids"]) == tokenizer.mask_token_id)
    # As they are in a sentence, where byte-level tokenizers make the space a part of them.
    ids = [tokenizer(f"It was {word}.")["input_ids"][-3] for word in words.values()]
    assert tokenizer.unk_token_id not in ids
    return run_hf(model, tokenizer, text).logits[0, at, ids]


@pytest.mark.parametrize("pattern", [PATTERN, "In {mask}: {text}", "It {mask} , {text} don 3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_hugging_face(family, pattern, tmp_path):
    folder = make_checkpoint(tmp_path / family, family=family, auto_class=MASKED)
    nlp = build(folder, pattern=pattern, window=120)
    head = nlp.get_pipe("bert_textcat")
    assert head.labels == ("fire", "voyage")
    texts = TEXTS[:4]
    found = head.predict([nlp.make_doc(text) for text in texts])
    expected = []
    for text in texts:
        # Behind a wordpiece of the pattern a Doc of bytes stands without a space.
        before = " {text}" if FAMILIES[family] == "bytes" else "{text}"
        filled = pattern if pattern.startswith("{text}") else pattern.replace(before, "{text}")
        expected.append(logits_beside_hf(folder, filled.replace("{text}", text)))
    torch.testing.assert_close(found, torch.stack(expected), atol=2e-5, rtol=1e-4)
    assert float(torch.stack(expected).std()) > 1e-3
    doc = nlp(texts[0])
    assert list(doc.cats.values()) == pytest.approx(expected[0].softmax(0).tolist(), abs=1e-5)


def test_windows_each_have_the_pattern(zero_shot, masked):
    """The logits of a long Doc are the mean of those of its windows, as texts of their own."""
    head = zero_shot.get_pipe("bert_textcat")
    doc = zero_shot.make_doc(" ".join(["Hull burned and a boat left ."] * 20))
    batch = pack_cloze(head.model, [doc]).batch
    tokenizer = checkpoint_of(zero_shot.get_pipe("bert_encoder").model).tokenizer
    pieces = tokenizer([" It was [MASK]."]).ids.tolist()
    windows = np.split(batch.input_ids, batch.cu_seqlens[1:-1])
    assert len(windows) > 2 and batch.max_seqlen == 64
    for window in windows:
        assert window[-len(pieces) - 1 : -1].tolist() == pieces
    model, _ = load(masked, MASKED)
    vocab = tokenizer.tokenizer.get_vocab()
    ids = [vocab[word] for word in WORDS.values()]
    logits = []
    with torch.no_grad():
        for window in windows:
            row = torch.from_numpy(window)[None]
            logits.append(model(row).logits[0, window.tolist().index(vocab["[MASK]"]), ids])
    found = head.predict([doc, zero_shot.make_doc("")])
    torch.testing.assert_close(found[0], torch.stack(logits).mean(0), atol=1e-5, rtol=1e-4)
    assert (
        pack_cloze(head.model, [doc] * 2, is_train=True).batch.num_windows.tolist()
        == [min(len(windows), 16)] * 2
    )


def test_a_mask_in_the_text_is_text(zero_shot, masked):
    text = "the [MASK] burned"
    model, tokenizer = load(masked, MASKED)
    inputs = tokenizer(f"{text} It was [MASK].", return_tensors="pt")
    at = np.flatnonzero(inputs["input_ids"][0] == tokenizer.mask_token_id)
    ids = tokenizer.convert_tokens_to_ids(list(WORDS.values()))
    with torch.no_grad():
        expected = model(**inputs).logits[0, at[1], ids]
    found = zero_shot.get_pipe("bert_textcat").predict([zero_shot.make_doc(text)])
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-4)


# --- training, files


def make_examples(nlp) -> list[Example]:
    return [
        Example.from_dict(nlp.make_doc(text), {"cats": {one: float(one == label) for one in DATA}})
        for label, texts in DATA.items()
        for text in texts
    ]


def test_learns_and_loads(masked, tmp_path):
    nlp = build(masked, max_windows=2)
    before = nlp("Hull burned").cats
    optimizer = Adam(3e-4, use_averages=False)
    for _ in range(60):
        losses = nlp.update(make_examples(nlp), sgd=optimizer)
    assert losses["bert_textcat"] < 0.1
    assert nlp.evaluate(make_examples(nlp))["cats_acc"] == 1.0
    assert nlp("Hull burned").cats != before
    nlp.to_disk(tmp_path / "pipeline")
    texts = [text for texts in DATA.values() for text in texts]
    expected = [doc.cats for doc in nlp.pipe(texts)]
    checkpoint_is_gone = {"components": {"bert_encoder": {"model": {"name": "nowhere"}}}}
    for other in (
        spacy.load(tmp_path / "pipeline", config=checkpoint_is_gone),
        pickle.loads(pickle.dumps(nlp)),
        spacy.blank("xx").from_config(nlp.config).from_bytes(nlp.to_bytes()),
    ):
        for doc, cats in zip(other.pipe(texts), expected, strict=True):
            assert doc.cats == pytest.approx(cats, abs=1e-5)
    for doc, cats in zip(nlp.pipe(texts, n_process=2, batch_size=2), expected, strict=True):
        assert doc.cats == pytest.approx(cats, abs=1e-5)
    own = spacy.load(tmp_path / "pipeline")
    own.replace_listeners("bert_encoder", "bert_textcat", ["model.tok2vec"])
    assert own(texts[0]).cats == pytest.approx(expected[0], abs=1e-5)


def test_another_pattern_for_the_same_weights(zero_shot, masked, tmp_path):
    zero_shot.to_disk(tmp_path)
    model = {"pattern": "In {mask}: {text}"}
    nlp = spacy.load(tmp_path, config={"components": {"bert_textcat": {"model": model}}})
    expected = logits_beside_hf(masked, "In {mask}: Hull burned").softmax(0)
    assert list(nlp("Hull burned").cats.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_by_the_commands(masked, tmp_path):
    nlp = build(masked, initialize=False)
    DocBin(docs=[eg.reference for eg in make_examples(nlp)]).to_disk(tmp_path / "data.spacy")
    config = Config(nlp.config)
    config["paths"] |= dict.fromkeys(("train", "dev"), str(tmp_path / "data.spacy"))
    config["training"] |= {"max_steps": 60, "eval_frequency": 30}
    config["training"]["optimizer"]["learn_rate"] = 3e-4
    words = as_setting({"voyage": "met", "fire": "used"})
    config["components"]["bert_textcat"]["model"]["words"] = words
    config.to_disk(tmp_path / "config.cfg")
    command("train", tmp_path / "config.cfg", "--output", tmp_path / "out")
    trained = spacy.load(tmp_path / "out" / "model-best")
    assert trained.get_pipe("bert_textcat").labels == ("voyage", "fire")
    assert trained.evaluate(make_examples(trained))["cats_acc"] == 1.0
    result = run("evaluate", tmp_path / "out" / "model-best", tmp_path / "data.spacy")
    assert result.exit_code == 0 and "100.0" in result.output, result.output


def test_explained(zero_shot):
    doc = zero_shot("Hull burned in the engine room")
    (found,) = explain(zero_shot, doc, steps=20)
    assert "".join(found.words) == doc.text
    assert abs(found.error) < 0.01
    probabilities = doc.cats.values()
    assert abs(found.score) == pytest.approx(
        np.log(max(probabilities) / min(probabilities)), abs=1e-4
    )


# --- what can't be


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "It was {mask}."}, r"must have \{text\} once, for the Doc, and \{mask\} once"),
        ({"pattern": "{text} {mask} {mask}"}, r"\{mask\} once"),
        ({"words": {"fire": ""}}, "must have a word for each label"),
        ({"words": '["used"]'}, "must have a word for each label"),
        ({"words": {"fire": " used", "voyage": "met"}}, "without blanks around it"),
        ({"words": "used"}, "words of the ClozeHead is the string 'used', which is not JSON"),
        ({"max_windows": 0}, "max_windows is 0"),
    ],
)
def test_wrong_settings(masked, settings, message):
    with pytest.raises(ValueError, match=message):
        build(masked, initialize=False, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": {"fire": "terrible", "voyage": "met"}}, r"it is 8: t ##e ##r ##r ##i ##b ##l"),
        ({"words": {"fire": "two words", "voyage": "met"}}, "'two words', must be one wordpiece"),
        ({"words": {"fire": "ж", "voyage": "met"}}, r"it is 1: \[UNK\]"),
        ({"words": {"fire": "Met", "voyage": "met"}}, "'fire' and 'voyage' are the same wordpiece"),
        ({"words": {"fire": "[SEP]", "voyage": "met"}}, r"it is 1: \[SEP\]"),
        ({"words": {"fire": "met"}}, "has only 'fire'"),
        ({"pattern": "{text} [MASK] was {mask}."}, r"has \[MASK\]. Write \{mask\} for it"),
        (
            {"tok2vec": {"@architectures": "spacy_bert_heads.BertListener.v1", "layers": [1]}},
            "last",
        ),
    ],
)
def test_what_the_checkpoint_can_not(masked, settings, message):
    nlp = build(masked, initialize=False, **settings)
    with pytest.raises(ValueError, match=message):
        nlp.initialize()


def test_a_word_is_one_wordpiece_with_its_space(tmp_path):
    folder = make_checkpoint(tmp_path, family="xlm-roberta", auto_class=MASKED)
    words = {"fire": "used", "voyage": "rol"}  # which is one inside of a word alone
    with pytest.raises(ValueError, match="'rol', must be one wordpiece .* it is 2: ▁ rol"):
        build(folder, words=words)


def test_a_full_stop_behind_the_text_has_no_space(tmp_path):
    folder = make_checkpoint(tmp_path, family="xlm-roberta", auto_class=MASKED)
    nlp = build(folder, pattern="{text}. It was {mask}.")
    found = nlp.get_pipe("bert_textcat").predict([nlp.make_doc("Hull burned")])
    expected = logits_beside_hf(folder, "Hull burned. It was {mask}.")
    torch.testing.assert_close(found[0], expected, atol=2e-5, rtol=1e-4)


def test_a_trained_encoder_with_the_checkpoints_head(masked):
    nlp = build(masked)
    nlp.update(make_examples(nlp), sgd=Adam(1e-4, use_averages=False))
    with pytest.warns(UserWarning, match="was trained further since it was read from"):
        nlp.get_pipe("bert_textcat").initialize(lambda: make_examples(nlp), nlp=nlp)


def test_categories_that_do_not_exclude_each_other(masked):
    nlp = build(masked, initialize=False)
    model = nlp.config["components"]["bert_textcat"]["model"]
    nlp.remove_pipe("bert_textcat")
    nlp.add_pipe("bert_textcat_multilabel", config={"model": model})
    with pytest.raises(ValueError, match="a ClozeHead only compares its words. Use bert_textcat"):
        nlp.initialize()


def test_a_pattern_that_fills_the_window(masked):
    nlp = build(masked, window=16, pattern="{text} " + "Hull burned , " * 5 + "{mask}")
    with pytest.raises(ValueError, match="may fill half of a window, 8"):
        nlp("Hull")


def test_a_checkpoint_without_a_head_for_masked_words(checkpoint):
    with pytest.raises(ValueError, match="has no head for masked words.*bert pretrain"):
        build(checkpoint)


def test_a_family_without_known_names(tmp_path):
    folder = make_checkpoint(tmp_path, family="rembert", auto_class=MASKED)
    with pytest.raises(ValueError, match="'rembert'"):
        build(folder, words={"fire": "used", "voyage": "the"})


def test_other_labels(masked):
    nlp = build(masked)
    head = nlp.get_pipe("bert_textcat")
    with pytest.raises(ValueError, match="needs a word"):
        head.add_label("storm")
    assert head.labels == ("fire", "voyage") and set(nlp("Hull burned").cats) == set(WORDS)
    head = build(masked, initialize=False).get_pipe("bert_textcat")
    with pytest.raises(ValueError, match="has the words of fire, voyage, but .*: fire, storm"):
        head.initialize(lambda: make_examples(nlp), labels=["fire", "storm"])


def test_hugging_face_has_no_class_for_it(zero_shot, tmp_path):
    with pytest.raises(ValueError, match="no head of this shape"):
        to_hf(zero_shot, "bert_textcat", tmp_path / "out")
