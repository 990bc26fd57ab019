"""A head of other code is known everywhere by what its class says, without a table to add it to."""

import json
import subprocess
import sys

import pytest
import spacy
from conversion import jsonl
from hf_models import MOODS, SEQUENCES, save
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Example

from spacy_bert_heads import from_hf, pairs, to_hf
from spacy_bert_heads.comparison.compare import compare
from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.reader import BertCorpus, split_pairs
from spacy_bert_heads.evaluate import evaluate, format_report
from spacy_bert_heads.heads.declared import Score, score_weights
from spacy_bert_heads.heads.find import head_classes, register_extensions
from spacy_bert_heads.heads.nli import DEFAULT_MODEL as PAIR_MODEL
from spacy_bert_heads.heads.nli import BertNLI
from spacy_bert_heads.heads.textcat import DEFAULT_MODEL, BertTextCat
from spacy_bert_heads.init_config import init_config

SCORES = {
    "toy_right": Score("toys", 1.0),
    "toy_distance": Score("distance of toys", is_fraction=False),
    "toy_more": Score(),
    "toy_per_type": Score("each toy", is_fraction=False),
}
TOYS = ["TOY bear", "TOY ball"]


# Without a `factory` of their own here: tests in the same process would find them too.
class ToyHead(BertTextCat):
    scores = SCORES
    json_keys = ("toy", "toys")
    encoder_settings = {"window": 40, "stride": 30}

    @classmethod
    def fits_hf(cls, config, names) -> int:
        return 2 * all(name.startswith("TOY") for name in names)

    @classmethod
    def read_json(cls, doc, value, settings) -> None:
        if value not in TOYS:
            raise ValueError(f"no toy: {value!r}")
        doc.cats = {toy: float(toy == value) for toy in TOYS}

    def score(self, examples, **kwargs):
        values = {"toy_right": 0.5, "toy_distance": 12.5, "toy_more": 0.25}
        return {**values, "toy_per_type": {"TOY bear": {"distance": 1.5}}}


class DoubtHead(BertNLI):
    input_name, output_name = "doubts", "certainties"
    json_keys = ()

    @classmethod
    def fits_hf(cls, config, names) -> int:
        return 0


class PlainHead(BertTextCat):
    """Says nothing else than the head that it is derived from."""


@Language.factory(
    "toy_head",
    default_config={"model": DEFAULT_MODEL},
    default_score_weights=score_weights(SCORES),
)
def make_toy_head(nlp, name, model) -> ToyHead:
    return ToyHead(nlp.vocab, model, name)


@Language.factory("bert_doubt", default_config={"model": PAIR_MODEL})
def make_doubt_head(nlp, name, model) -> DoubtHead:
    return DoubtHead(nlp.vocab, model, name)


@pytest.fixture
def installed(monkeypatch):
    names = {ToyHead: "toy_head", DoubtHead: "bert_doubt", PlainHead: "bert_plain"}
    for cls, name in names.items():
        monkeypatch.setattr(cls, "factory", name)
    yield
    for name in ("doubts", "certainties"):
        if Doc.has_extension(name):
            Doc.remove_extension(name)


OURS = ["choice", "ner", "nli", "qa", "similarity", "tagger", "textcat", "textcat_multilabel"]
INPUTS = {
    "hypotheses": "nli",
    "others": "similarities",
    "choices": "chosen",
    "questions": "answers",
}


def test_heads_are_found_by_their_factories(installed):
    found = list(head_classes())
    assert found == sorted(found)
    assert set(OURS) | {"doubt", "plain", "toy_head"} <= set(found)
    assert {"doubts": "certainties", **INPUTS} == pairs.INPUTS


def test_only_what_has_a_factory_is_a_head():
    assert not {ToyHead, DoubtHead, PlainHead} & set(head_classes().values())
    assert pairs.INPUTS == INPUTS


def test_init_config(installed, checkpoint):
    config = init_config(["toy_head", "ner"], name=checkpoint)
    assert config["nlp"]["pipeline"] == ["bert_encoder", "toy_head", "bert_ner"]
    encoder = config["components"]["bert_encoder"]["model"]
    assert (encoder["window"], encoder["stride"]) == (40, 30)
    assert config["training"]["score_weights"]["toy_right"] == 0.5
    assert config["corpora"]["train"]["max_pairs"] == 0
    assert init_config(["doubt"], name=checkpoint)["corpora"]["train"]["max_pairs"] == 1
    with pytest.raises(ValueError, match=r"Choose from: .*qa, .*toy_head"):
        init_config(["toy"])


def test_from_hf_and_back(installed, tmp_path):
    folder = save(tmp_path / "hf", SEQUENCES, TOYS)
    nlp = from_hf(folder)
    assert nlp.pipe_names == ["bert_encoder", "toy_head"]
    assert nlp.get_pipe("toy_head").labels == tuple(TOYS)
    to_hf(nlp, "toy_head", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    assert from_hf(folder, task="textcat").pipe_names == ["bert_encoder", "bert_textcat"]
    with pytest.raises(ValueError, match=r"Choose one of: .*doubt, .*toy_head"):
        from_hf(folder, task="toy")
    other = save(tmp_path / "other", SEQUENCES, [TOYS[0], "TOY car"], seed=1)
    with pytest.raises(ValueError, match="would overwrite what toy_head writes"):
        from_hf(folder, other)


def test_who_takes_a_checkpoint(installed, tmp_path, monkeypatch):
    """Not who says nothing of its own; and nobody where two say the same."""
    folder = save(tmp_path / "hf", SEQUENCES, MOODS)
    assert from_hf(folder).pipe_names == ["bert_encoder", "bert_textcat"]
    monkeypatch.setattr(ToyHead, "fits_hf", classmethod(lambda cls, config, names: 2))
    monkeypatch.setattr(DoubtHead, "fits_hf", ToyHead.fits_hf)
    with pytest.raises(ValueError, match="fits several heads. Set the task: doubt or toy_head"):
        from_hf(folder)
    monkeypatch.setattr(ToyHead, "hf_task", "")
    with pytest.raises(ValueError, match="Unknown task 'toy_head'"):
        from_hf(folder, task="toy_head")


def test_convert(installed, tmp_path):
    (tmp_path / "a.jsonl").write_text(
        jsonl({"text": "a", "toys": TOYS[1]}, {"text": "b", "toy": "TOY"}, {"text": "c"})
    )
    report = convert(tmp_path / "a.jsonl", tmp_path / "a.spacy")
    assert report.labels == {TOYS[0]: 0, TOYS[1]: 1}
    assert report.reasons == {"no toy": 1}
    first, _ = DocBin().from_disk(tmp_path / "a.spacy").get_docs(spacy.blank("xx").vocab)
    assert first.cats == {TOYS[0]: 0.0, TOYS[1]: 1.0}


def test_evaluate(installed, checkpoint, tmp_path):
    nlp = spacy.blank("xx")
    nlp.add_pipe("bert_encoder", config={"model": {"name": checkpoint, "window": 64, "stride": 48}})
    head = nlp.add_pipe("toy_head")
    for toy in TOYS:
        head.add_label(toy)
    nlp.initialize()
    nlp.to_disk(tmp_path / "nlp")
    DocBin(docs=[nlp.make_doc("a bear")]).to_disk(tmp_path / "gold.spacy")
    lines = format_report(
        evaluate(str(tmp_path / "nlp"), tmp_path / "gold.spacy"), per_type=True
    ).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["tokens", "100.00"],
        ["toys", "50.00"],
        ["distance", "of", "toys", "12.5000"],
    ]
    assert lines[-1].split() == ["TOY", "bear", "1.5000"]
    assert not any("toy_" in line for line in lines)
    # Its scores are not those of the counts that it inherits, so they are computed anew.
    nlp.to_disk(tmp_path / "other")
    names = [str(tmp_path / "nlp"), str(tmp_path / "other")]
    scores = compare(names, tmp_path / "gold.spacy", n_resamples=5).report["scores"]
    assert list(scores) == ["toy_right", "toy_distance"]
    assert scores["toy_distance"]["pipelines"][1]["interval"] == (12.5, 12.5)


def test_second_texts_of_another_head(installed, tmp_path):
    """They are registered, carried to the predicted Doc, split and counted."""
    nlp = spacy.blank("xx")
    register_extensions()
    doc = nlp.make_doc("a bear")
    doc._.doubts, doc._.certainties = ["A", "B"], [None, None]
    doc._.hypotheses = ["C"]
    parts = [(part._.doubts, part._.hypotheses) for part in split_pairs(doc, 2)]
    assert parts == [(["A", "B"], []), ([], ["C"])]
    DocBin(docs=[doc], store_user_data=True).to_disk(tmp_path / "a.spacy")
    (example,) = BertCorpus(tmp_path / "a.spacy")(nlp)
    assert example.predicted._.doubts == ["A", "B"]
    assert example.predicted._.certainties == []
    head = nlp.add_pipe("bert_doubt")
    assert head.writes == {"doc._.certainties"}
    doc._.certainties = [pairs.make_verdict("yes"), None]
    example.predicted._.certainties = [pairs.make_verdict("no"), pairs.make_verdict("yes")]
    assert head.decisions(Example(example.predicted, doc)) == [("yes", "no")]


MODULE = """
from spacy.language import Language
from spacy_bert_heads.heads.textcat import DEFAULT_MODEL, BertTextCat
from spacy_bert_heads.pairs import make_answer  # whose import must not ask for all heads

@Language.factory("bert_theirs", default_config={"model": DEFAULT_MODEL})
def make_theirs(nlp, name, model):
    return Theirs(nlp.vocab, model, name)

class Theirs(BertTextCat):
    factory = "bert_theirs"
"""
ASK = """
from spacy_bert_heads.heads.find import head_classes
print(*head_classes())
import spacy
spacy.blank("xx").add_pipe("bert_theirs")
"""


def test_heads_of_other_packages_are_found_by_their_entry_points(tmp_path):
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[spacy_factories]\nbert_theirs = theirs:make_theirs\n")
    (tmp_path / "theirs.py").write_text(MODULE)
    code = f"import sys; sys.path.append({str(tmp_path)!r})\n{ASK}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert {*OURS, "theirs"} <= set(found.stdout.split())
