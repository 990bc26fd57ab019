"""What can be done with a pipeline in memory: sourcing, merging, renaming, removing, loading parts
of it; components of others behind ours; languages."""

import copy
import gc
import json
import multiprocessing
import unicodedata

import checkpoints
import numpy as np
import pytest
import spacy
import torch
from checkpoints import make_checkpoint
from conftest import TRAIN_DATA
from joint import (
    HEADS,
    LANG,
    SAILED,
    STREAM,
    annotate,
    annotations,
    assert_same,
    build,
    make_docs,
    make_examples,
    train,
)
from spacy import displacy
from spacy.matcher import Matcher, PhraseMatcher
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.util import load_model_from_config
from spacy.vocab import Vocab
from thinc.api import Adam, Config

from spacy_bert_heads.encoder.loading import Bert
from spacy_bert_heads.encoder.model import shim_of

NO_ENCODER = (
    "bert_ner reads the hidden states of an encoder, but no 'bert_encoder' stands before it"
)


@pytest.fixture
def nlp(joint):
    """A pipeline that the test may change."""
    return spacy.load(joint)


@pytest.fixture(scope="module")
def expected(joint):
    return annotate(spacy.load(joint))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The folder of another pipeline, with another encoder."""
    folder = tmp_path_factory.mktemp("other")
    name = make_checkpoint(folder / "bert", family="distilbert", seed=1)
    train(build(name, ["textcat", "qa"])).to_disk(folder / "pipeline")
    return folder / "pipeline"


def weights_of(nlp, name: str) -> dict[str, torch.Tensor]:
    module = shim_of(nlp.get_pipe(name).model).module
    return {key: value.detach().clone() for key, value in module.named_parameters()}


def changed(before: dict, after: dict) -> bool:
    return any(not torch.equal(before[key], after[key]) for key in before)


def n_encoders() -> int:
    gc.collect()
    return sum(type(item) is Bert for item in gc.get_objects())


# --- taking the encoder out


def test_without_its_encoder_a_head_says_what_to_add(nlp, joint, expected):
    nlp.remove_pipe("bert_encoder")
    for use in (
        lambda: nlp(SAILED),
        lambda: nlp.update(make_examples(nlp), sgd=False),
        lambda: nlp.initialize(lambda: make_examples(nlp)),
    ):
        with pytest.raises(ValueError, match=NO_ENCODER):
            use()
    nlp = spacy.load(joint)
    nlp.remove_pipe("bert_encoder")
    nlp.add_pipe("bert_encoder", source=spacy.load(joint), first=True)
    assert_same(annotate(nlp), expected)


def test_without_its_encoder_every_head_stops(nlp):
    nlp.remove_pipe("bert_encoder")
    for doc in make_docs(nlp)[:1]:
        for head in HEADS:
            with (
                nlp.select_pipes(enable=[f"bert_{head}"]),
                pytest.raises(ValueError, match=f"bert_{head} reads"),
            ):
                nlp(doc)


def test_replacing_the_encoder(nlp, checkpoint, expected):
    """Its heads, which were trained on the other, say so, until it has the other's weights."""
    settings = {"name": checkpoint, "window": 64, "stride": 48}
    weights = nlp.get_pipe("bert_encoder").to_bytes()
    encoder = nlp.replace_pipe("bert_encoder", "bert_encoder", config={"model": settings})
    assert nlp.pipe_names[0] == "bert_encoder"
    encoder.initialize(lambda: [])
    with pytest.raises(ValueError, match="bert_ner was trained on another encoder than 'bert_enc"):
        annotate(nlp)
    encoder.from_bytes(weights)
    assert_same(annotate(nlp), expected)


def test_a_pipeline_of_copies_keeps_to_its_own_encoder(nlp, expected):
    """Also a head that was disabled when spaCy linked the pipeline."""
    nlp.disable_pipe("bert_textcat")
    nlp._link_components()
    twin = copy.deepcopy(nlp)
    encoder = twin.get_pipe("bert_encoder")
    for name in twin.component_names[1:]:
        assert twin.get_pipe(name).model.get_ref("tok2vec").upstream is encoder
    twin.enable_pipe("bert_textcat")
    assert_same(annotate(twin), expected)
    del encoder
    twin.remove_pipe("bert_encoder")
    with pytest.raises(ValueError, match=NO_ENCODER):
        twin(SAILED)


# --- sourcing, merging, renaming


def test_a_head_sourced_alone(joint, expected, tmp_path):
    """It reads its own pipeline's encoder while there is one."""
    source = spacy.load(joint)
    nlp = spacy.blank(LANG)
    nlp.add_pipe("bert_ner", source=source)
    found = annotate(nlp)
    assert_same([one["ents"] for one in found], [one["ents"] for one in expected])
    nlp.to_disk(tmp_path)
    with pytest.raises(ValueError, match=NO_ENCODER):
        spacy.load(tmp_path)(SAILED)
    del source
    with pytest.raises(ValueError, match=NO_ENCODER):
        nlp(SAILED)


def from_sources(*components: tuple[str, dict]):
    config = {
        "nlp": {"lang": LANG, "pipeline": [name for name, _ in components]},
        "components": dict(components),
    }
    return load_model_from_config(Config(config), auto_fill=True)


def test_a_head_sourced_alone_by_the_config(joint, expected):
    nlp = from_sources(("bert_ner", {"source": str(joint)}))
    with pytest.raises(ValueError, match=NO_ENCODER):
        nlp(SAILED)
    own = {"source": str(joint), "replace_listeners": ["model.tok2vec"]}
    nlp = from_sources(("bert_ner", own))
    assert_same([one["ents"] for one in annotate(nlp)], [one["ents"] for one in expected])


def test_merging_two_pipelines(joint, other, expected, tmp_path):
    """Each head stands behind its own encoder, and answers as it did."""
    nlp = from_sources(
        ("bert_encoder", {"source": str(joint)}),
        ("bert_ner", {"source": str(joint)}),
        ("bert_nli", {"source": str(joint)}),
        ("second", {"source": str(other), "component": "bert_encoder"}),
        ("bert_textcat", {"source": str(other)}),
        ("answers", {"source": str(other), "component": "bert_qa"}),
    )
    nlp.to_disk(tmp_path)
    others = annotate(spacy.load(other))
    for pipeline in (nlp, spacy.load(tmp_path)):
        first, second = (pipeline.get_pipe(name) for name in ("bert_encoder", "second"))
        assert first.listening_components == ["bert_ner", "bert_nli"]
        assert second.listening_components == ["bert_textcat", "answers"]
        for found, one, two in zip(annotate(pipeline), expected, others, strict=True):
            assert_same([found[key] for key in ("ents", "nli")], [one["ents"], one["nli"]])
            assert_same([found[key] for key in ("cats", "answers")], [two["cats"], two["answers"]])
    # And each encoder learns from its own.
    before = {name: weights_of(nlp, name) for name in ("bert_encoder", "second")}
    optimizer = Adam(1e-4, use_averages=False)
    example = Example.from_dict(nlp.make_doc("Hull"), {"entities": [(0, 4, "PLACE")]})
    nlp.update([example], sgd=optimizer)
    nlp("Hull")
    assert changed(before["bert_encoder"], weights_of(nlp, "bert_encoder"))
    assert not changed(before["second"], weights_of(nlp, "second"))


def test_renaming(nlp, expected, tmp_path):
    nlp.rename_pipe("bert_encoder", "bert")
    for head in HEADS:
        nlp.rename_pipe(f"bert_{head}", head)
    nlp.to_disk(tmp_path)
    for pipeline in (nlp, spacy.load(tmp_path)):
        assert pipeline.pipe_names == ["bert", *HEADS]
        assert pipeline.get_pipe("bert").listening_components == list(HEADS)
        assert_same(annotate(pipeline), expected)
        losses = pipeline.update(make_examples(pipeline), sgd=False, losses={})
        assert list(losses) == ["bert", *HEADS] and all(losses.values())


def test_renaming_an_encoder_that_a_head_names(checkpoint):
    nlp = build(checkpoint, [])
    tok2vec = {"@architectures": "spacy_bert_heads.BertListener.v1", "upstream": "bert_encoder"}
    nlp.add_pipe("bert_ner", config={"model": {"tok2vec": tok2vec}})
    nlp.initialize(lambda: make_examples(nlp))
    ents = nlp(SAILED).ents
    nlp.rename_pipe("bert_encoder", "bert")
    with pytest.raises(ValueError, match=rf'{NO_ENCODER}(.|\n)*upstream = "\*"'):
        nlp(SAILED)
    nlp.rename_pipe("bert", "bert_encoder")
    assert [(e.start, e.end) for e in nlp(SAILED).ents] == [(e.start, e.end) for e in ents]


# --- loading a part, and switching


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_was_disabled_on_load(joint, expected, head):
    """It works when it is enabled, and the encoder learns from it."""
    name = f"bert_{head}"
    key = {"ner": "ents", "textcat": "cats", "nli": "nli", "qa": "answers"}[head]
    nlp = spacy.load(joint, disable=[name])
    for found, whole in zip(annotate(nlp), expected, strict=True):
        assert not found[key]
        assert_same(
            [found[k] for k in ("ents", "cats", "nli", "answers") if k != key],
            [whole[k] for k in ("ents", "cats", "nli", "answers") if k != key],
        )
    nlp.enable_pipe(name)
    assert_same(annotate(nlp), expected)

    with_all, steps = spacy.load(joint), []
    for pipeline in (nlp, with_all):
        pipeline.update(make_examples(pipeline), sgd=False)
        module = shim_of(pipeline.get_pipe("bert_encoder").model).module
        pipeline(SAILED)  # closes the step, if a head that never asks keeps it open
        steps.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert steps[0].keys() == steps[1].keys()
    for one, two in zip(steps[0].values(), steps[1].values(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"disable": ["bert_encoder"]},
        {"enable": ["bert_ner"]},  # and so not the encoder
        {"enable": ["bert_encoder", "bert_ner"]},
        {"exclude": ["bert_textcat", "bert_nli", "bert_qa"]},
    ],
)
def test_loading_a_part(joint, expected, options):
    nlp = spacy.load(joint, **options)
    found = annotate(nlp)
    keys = ["ents"] if "disable" not in options else ["ents", "cats", "nli", "answers", "spans"]
    for one, whole in zip(found, expected, strict=True):
        assert_same([one[key] for key in keys], [whole[key] for key in keys])
        assert len(keys) > 1 or not any(one[key] for key in ("cats", "nli", "answers"))


def test_loading_without_the_encoder(joint):
    nlp = spacy.load(joint, exclude=["bert_encoder"])
    with pytest.raises(ValueError, match=f"{NO_ENCODER}(.|\n)*without excluding it"):
        nlp(SAILED)


def test_heads_may_be_disabled_while_others_are_initialized(joint, expected, checkpoint):
    """As `spacy train` does with sourced components."""
    nlp = spacy.load(joint)
    nlp.add_pipe("bert_tagger")
    with nlp.select_pipes(enable=["bert_tagger"]):
        nlp.initialize(lambda: make_examples(nlp))
    assert_same(annotate(nlp), expected)
    before = weights_of(nlp, "bert_encoder")
    nlp.update(make_examples(nlp), sgd=Adam(1e-4, use_averages=False))
    assert nlp.get_pipe("bert_encoder")._step is None  # all five have answered
    assert changed(before, weights_of(nlp, "bert_encoder"))


# --- rehearsal and copies


def test_rehearsal(checkpoint):
    """spaCy's tagger rehearses on our encoder; our heads have nothing to rehearse. Nothing of it
    copies an encoder."""
    nlp = build(checkpoint, ["ner", "textcat"])
    tok2vec = {"@architectures": "spacy_bert_heads.Tok2VecListener.v1"}
    nlp.add_pipe(
        "tagger", config={"model": {"@architectures": "spacy.Tagger.v2", "tok2vec": tok2vec}}
    )
    nlp.initialize(lambda: make_examples(nlp))
    before = n_encoders()
    optimizer = nlp.resume_training(sgd=Adam(1e-3, use_averages=False))
    assert n_encoders() == before
    tagger = nlp.get_pipe("tagger")
    assert tagger._rehearsal_model.get_ref("tok2vec").layers[0].upstream is nlp.get_pipe(
        "bert_encoder"
    )

    losses = nlp.rehearse(make_examples(nlp), sgd=optimizer)
    assert losses == {"tagger": pytest.approx(0.0, abs=1e-6)}  # nothing is forgotten yet
    with nlp.select_pipes(enable=["bert_encoder", "tagger"]):
        nlp.update(make_examples(nlp), sgd=optimizer)
    frozen = {name: weights_of(nlp, name) for name in ("bert_encoder", "bert_ner", "bert_textcat")}
    assert nlp.rehearse(make_examples(nlp), sgd=optimizer)["tagger"] > 0
    assert n_encoders() == before
    for name, weights in frozen.items():
        assert not changed(weights, weights_of(nlp, name))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: model.copy()])
def test_a_copy_of_a_heads_model_reads_the_same_encoder(nlp, make):
    before = n_encoders()
    model = nlp.get_pipe("bert_ner").model
    copied = make(model)
    assert n_encoders() == before
    docs = make_docs(nlp)
    np.testing.assert_array_equal(copied.predict(docs).logits, model.predict(docs).logits)
    nlp.remove_pipe("bert_encoder")
    with pytest.raises(ValueError, match=NO_ENCODER):
        copied.predict(docs)


# --- what a Doc carries


def through_docbin(doc: Doc) -> Doc:
    content = DocBin(store_user_data=True, docs=[doc]).to_bytes()
    return next(DocBin().from_bytes(content).get_docs(Vocab()))


def through_json(doc: Doc) -> Doc:
    text = json.dumps(doc.to_json(underscore=["nli", "answers", "ent_scores"]))
    return Doc(Vocab()).from_json(json.loads(text), validate=True)


@pytest.mark.parametrize("way", [through_docbin, through_json, Doc.copy])
def test_results_on_other_docs(nlp, expected, way):
    for doc, whole in zip(nlp.pipe(make_docs(nlp)), expected, strict=True):
        again = way(doc)
        if way is through_json:  # which has no attributes of span groups
            for key in again.spans:
                again.spans[key].attrs["scores"] = doc.spans[key].attrs["scores"]
        assert_same(annotations(again), {**whole, "spans": annotations(again)["spans"]})
        assert again.text == doc.text


def test_a_copied_doc_is_read_anew(nlp, expected):
    doc = nlp(make_docs(nlp)[0])
    again = doc.copy()
    again.set_ents([], default="missing")
    again.cats, again.spans["ents"] = {}, []
    assert_same(annotations(nlp(again)), expected[0])
    assert_same(annotations(doc), expected[0])


def test_displacy(nlp):
    doc = nlp(SAILED)
    ents = displacy.parse_ents(doc)["ents"]
    assert [(e["start"], e["end"], e["label"]) for e in ents] == TRAIN_DATA[0][1]["entities"]
    spans = displacy.parse_spans(doc, {"spans_key": "ents"})["spans"]
    assert [(s["start_token"], s["end_token"], s["label"]) for s in spans] == [
        (0, 2, "VESSEL"), (3, 4, "PLACE"), (5, 6, "DATE")
    ]  # fmt: skip
    assert displacy.render(doc, style="ent", jupyter=False).count("<mark") == 3


# --- components of others, before and behind


def test_matchers_on_our_entities(nlp):
    matcher = Matcher(nlp.vocab)
    matcher.add("LEFT", [[{"ENT_TYPE": "VESSEL", "OP": "+"}, {"LOWER": "left"},
                          {"ENT_TYPE": "PLACE"}]])  # fmt: skip
    doc = nlp(SAILED)
    assert "Anna Grete left Skagen" in [span.text for span in matcher(doc, as_spans=True)]
    phrases = PhraseMatcher(nlp.vocab, attr="ENT_TYPE")
    phrases.add("DATE", [doc[5:6].as_doc()])
    assert [(start, end) for _, start, end in phrases(doc)] == [(5, 6)]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_entity_ruler(nlp, before, overwrite):
    place = {"before": "bert_ner"} if before else {"last": True}
    ruler = nlp.add_pipe("entity_ruler", config={"overwrite_ents": overwrite}, **place)
    ruler.add_patterns([{"label": "TIME", "pattern": "on Tuesday"}])
    ruler.add_patterns([{"label": "VERB", "pattern": "left"}])
    wins = "on Tuesday" if before or overwrite else "Tuesday"
    for doc in [nlp(SAILED), *nlp.pipe([SAILED] * 2)]:
        found = ["Anna Grete", "left", "Skagen", wins]
        assert [ent.text for ent in doc.ents] == found
        assert [ent.label_ for ent in doc.ents][::3] == [
            "VESSEL",
            "DATE" if wins == "Tuesday" else "TIME",
        ]
        kept = ["Anna Grete", "Skagen", *([] if before else ["Tuesday"])]
        assert [span.text for span in doc.spans["ents"]] == kept


def test_span_ruler(nlp):
    config = {"spans_key": "ents", "annotate_ents": True, "overwrite": False}
    ruler = nlp.add_pipe("span_ruler", config=config)
    ruler.add_patterns([{"label": "VERB", "pattern": "left"}])
    doc = nlp(SAILED)
    texts = ["Anna Grete", "left", "Skagen", "Tuesday"]
    assert [ent.text for ent in doc.ents] == texts
    assert sorted(span.text for span in doc.spans["ents"]) == sorted(texts)
    assert sorted(ent.text for ent in nlp(doc).ents) == sorted(texts)  # and again


def test_merged_entities_between_two_heads(nlp):
    """The tokens change under way."""
    nlp.add_pipe("merge_entities", after="bert_ner")
    doc = nlp(make_docs(nlp)[0])
    assert [token.text for token in doc] == ["Anna Grete", "left", "Skagen", "on", "Tuesday"]
    assert [(e.text, e.label_) for e in doc.ents][0] == ("Anna Grete", "VESSEL")
    assert doc._.answers[0]["text"] == "Anna Grete" and doc._.answers[0]["end"] == 1
    assert doc.cats["voyage"] > 0.9


# --- streams


def test_error_handler(nlp, expected):
    """Every component of ours hands it the one Doc that fails."""
    failed = []
    nlp.set_error_handler(lambda name, pipe, docs, error: failed.append((name, docs[0].text)))
    bad = nlp.make_doc("It is bad")
    bad._.hypotheses = [3]
    docs = make_docs(nlp)
    found = list(nlp.pipe([*docs[:2], bad, *docs[2:]], batch_size=4))
    assert_same([annotations(doc) for doc in found], expected)
    assert failed == [("bert_nli", "It is bad")]


def test_batch_sizes_of_components(nlp, expected):
    sizes = {f"bert_{head}": {"batch_size": i + 1} for i, head in enumerate(HEADS)}
    assert_same(annotate(nlp, batch_size=5, component_cfg=sizes), expected)


def test_memory_zone(nlp, expected):
    """Docs of one zone are not taken for those of another, whose memory they have."""
    n_strings = len(nlp.vocab.strings)
    for i in range(3):
        with nlp.memory_zone():
            found = list(nlp.pipe(f"{text} zone{i}" for text, _, _ in STREAM))
            assert [len(doc.ents) > 0 for doc in found][:2] == [True, True]
            assert_same(annotate(nlp), expected)
            del found
        assert len(nlp.vocab.strings) == n_strings
    assert_same(annotate(nlp), expected)


def test_spawned_workers(nlp, expected, monkeypatch):
    """As on Windows and macOS: everything is pickled for them."""
    monkeypatch.setattr(spacy.language, "mp", multiprocessing.get_context("spawn"))
    stream = [
        (text, {"questions": questions, "hypotheses": hypotheses, "id": i})
        for i, (text, questions, hypotheses) in enumerate(STREAM)
    ]
    found = list(nlp.pipe(stream, as_tuples=True, n_process=2, batch_size=2))
    assert [context["id"] for _, context in found] == list(range(len(STREAM)))
    assert_same([annotations(doc) for doc, _ in found], expected)


# --- languages

# Entities in brackets.
TEXTS = {
    "de": ["[Jürgen Müßig|PER] fährt am Sonntag nach [Köln|LOC]!",
           "Der Kapitän läuft aus [Großenkneten|LOC] aus, sagt [Zoë Öztürk|PER]."],
    "zh": ["[王小明|PER]昨天在[上海|LOC]看船。", "船在[宁波港|LOC]外搁浅了,[李四|PER]说。"],
    "ar": ["سافر [أحمد بن علي|PER] إلى [القاهرة|LOC] أمس", "وصلت [لَيْلى|PER] من [بيروت|LOC] ليلا"],
    "hi": ["[राम कुमार|PER] [दिल्ली|LOC] में रहते हैं", "कल [मुंबई|LOC] से [सीता देवी|PER] आईं"],
    "ja": ["[佐藤さん|PER]は[東京タワー|LOC]へ行った。", "[さくら|PER]と[がっこう|LOC]で会う"],
}  # fmt: skip


def read_marks(marked: str) -> tuple[str, dict]:
    text, entities = "", []
    for part in marked.replace("]", "[").split("["):
        name, _, label = part.partition("|")
        if label:
            entities.append((len(text), len(text) + len(name), label))
        text += name
    return text, {"entities": entities}


@pytest.fixture(scope="module")
def polyglot(tmp_path_factory):
    """Checkpoints whose vocabularies know the scripts above: of characters, and of pieces."""
    folder = tmp_path_factory.mktemp("polyglot")
    texts = []
    for lang, lines in TEXTS.items():
        for text, _ in map(read_marks, lines):
            if lang == "ja":  # no word is a piece, and characters may lose their accents
                text = " ".join([*text, *unicodedata.normalize("NFD", text)])
            texts.append(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "TEXTS", [*checkpoints.TEXTS, *texts])
        return {
            family: make_checkpoint(folder / family, family=family)
            for family in ("bert", "roberta")
        }


def by_characters(nlp):
    """A tokenizer that knows no words."""
    return lambda text: Doc(nlp.vocab, words=list(text), spaces=[False] * len(text))


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("lang", TEXTS)
def test_entities_to_the_character(polyglot, lang, family):
    nlp = spacy.blank("xx" if lang == "ja" else lang)  # Japanese needs another package
    if lang == "ja":
        nlp.tokenizer = by_characters(nlp)
    encoder = {"name": polyglot[family], "window": 64, "stride": 48}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    nlp.add_pipe("bert_ner")
    data = [read_marks(text) for text in TEXTS[lang]]
    examples = [Example.from_dict(nlp.make_doc(text), gold) for text, gold in data]
    torch.manual_seed(0)
    nlp.initialize(lambda: examples)
    optimizer = Adam(3e-3, use_averages=False)
    with pytest.warns(UserWarning, match="A learning rate"):
        for _ in range(30):
            nlp.update(examples, sgd=optimizer)
    for (text, gold), doc in zip(data, nlp.pipe([text for text, _ in data]), strict=True):
        assert doc.text == text
        assert [(e.start_char, e.end_char, e.label_) for e in doc.ents] == gold["entities"]
