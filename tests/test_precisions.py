"""All precisions on the same data, and the choice between them."""

import json

import pytest
import spacy
from conftest import make_examples, needs_int8, needs_onednn
from spacy.tokens import DocBin
from test_evaluate import run

from spacy_bert_heads.encoder import inference
from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.evaluate import evaluate, find_encoders
from spacy_bert_heads.files import DIGESTS, find_damage
from spacy_bert_heads.precisions import (
    Measured,
    choose,
    format_precisions,
    measure_precisions,
    store_precision,
)


@pytest.fixture
def gold(tmp_path):
    nlp = spacy.blank("en")
    docs = [eg.reference for eg in make_examples(nlp)]
    DocBin(docs=docs).to_disk(tmp_path / "gold.spacy")
    return tmp_path / "gold.spacy"


def measured(**by_precision) -> dict[str, Measured]:
    """ents_f, cats_score and rounds of words per second of each."""
    return {
        name: Measured({"ents_f": ents, "ents_p": 0.1, "cats_score": cats}, speeds)
        for name, (ents, cats, speeds) in by_precision.items()
    }


@pytest.mark.parametrize(
    "margin, expected", [(0.0, "fp32"), (0.29, "fp32"), (0.3, "bf16"), (1.0, "int8")]
)
def test_the_fastest_within_the_margin(margin, expected):
    found = measured(
        fp32=(0.873, 0.9, [100.0, 90.0, 110.0]),
        bf16=(0.870, 0.95, [200.0, 20.0, 210.0]),
        int8=(0.880, 0.89, [300.0, 310.0, 290.0]),
    )
    assert choose(found, margin) == expected


def test_a_slower_precision_is_not_chosen():
    found = measured(fp32=(0.5, 0.5, [100.0]), bf16=(0.6, 0.6, [99.0]))
    assert choose(found, 100.0) == "fp32"


def test_table():
    found = measured(fp32=(0.5, 0.75, [1000.0, 900.0, 2000.0]), bf16=(0.25, 0.5, [3000.0]))
    lines = [line.split() for line in format_precisions(found).splitlines()]
    assert lines[0] == ["entities", "F", "categories", "words/s", "range", "x", "fp32"]
    assert lines[2] == ["fp32", "50.00", "75.00", "1,000", "900", "to", "2,000", "1.00"]
    assert lines[3] == ["bf16", "25.00", "50.00", "3,000", "3,000", "to", "3,000", "3.00"]


@needs_onednn
@needs_int8
def test_each_is_scored_as_it_is_alone(joint, gold, monkeypatch):
    monkeypatch.setattr(inference, "_has_bf16", lambda: True)
    monkeypatch.setattr(inference, "_has_amx", lambda: False)
    found = measure_precisions(str(joint), gold, rounds=2)
    assert list(found) == ["fp32", "bf16", "int8"]
    for precision, one in found.items():
        alone = evaluate(str(joint), gold, precision=precision)
        for key in ("ents_f", "cats_score", "token_acc"):
            assert one.scores[key] == pytest.approx(alone[key])
        assert len(one.speeds) == 2 and min(one.speeds) > 0


@pytest.mark.parametrize(
    "has_bf16, has_amx, expected",
    [
        (False, False, ["fp32", "int8"]),
        (True, False, ["fp32", "bf16", "int8"]),
        (True, True, ["fp32", "bf16"]),  # which takes bf16 for int8
    ],
)
@needs_int8
def test_what_a_processor_computes_in(has_bf16, has_amx, expected, monkeypatch):
    monkeypatch.setattr(inference, "_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(inference, "_has_amx", lambda: has_amx)
    assert inference.sensible_precisions(inference.torch.device("cpu")) == expected
    gpu = inference.sensible_precisions(inference.torch.device("cuda"))
    assert gpu == ["fp32", "bf16", "fp16"]


def test_a_stored_precision_is_that_of_every_encoder(make_nlp, tmp_path):
    nlp = make_nlp("ner", "textcat")
    nlp.replace_listeners("bert_encoder", "bert_textcat", ["model.tok2vec"])
    nlp.to_disk(tmp_path / "nlp")
    before = (tmp_path / "nlp" / "config.cfg").read_text()
    weights = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.name == DIGESTS}
    store_precision(tmp_path / "nlp", "bf16")
    after = (tmp_path / "nlp" / "config.cfg").read_text()
    assert after == before.replace('precision = "auto"', 'precision = "bf16"')
    assert after.count('precision = "bf16"') == 2
    loaded = spacy.load(tmp_path / "nlp")
    assert [shim_of(one).precision for one in find_encoders(loaded)] == ["bf16", "bf16"]
    assert weights and all(path.read_bytes() == content for path, content in weights.items())
    assert all(find_damage(path.parent) is None for path in weights)
    assert not list((tmp_path / "nlp").glob(".*"))  # no half-written file


def test_the_command(joint, gold, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_has_bf16", lambda: False)
    monkeypatch.setattr(inference, "has_int8", lambda: False)
    nlp = spacy.load(joint)
    nlp.to_disk(tmp_path / "nlp")
    words = [tmp_path / "nlp", gold, "--precision", "all", "--output", tmp_path / "all.json"]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "config.cfg" not in result.output
    assert 'precision = "auto"' in (tmp_path / "nlp" / "config.cfg").read_text()
    report = json.loads((tmp_path / "all.json").read_text())
    assert report.keys() == {"fp32"} and len(report["fp32"]["speeds"]) == 3
    result = run(*words, "--store", "--margin", "0.1")
    assert 'precision = "fp32", the fastest within 0.1 points of fp32' in result.output
    assert 'precision = "fp32"' in (tmp_path / "nlp" / "config.cfg").read_text()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--store"], "--store needs --precision all. Add it, or leave --store out."),
        (
            ["--precision", "all", "--per-type"],
            "--per-type and --pages can't be combined",
        ),
        (["--precision", "all", "--store"], "'nowhere' is not a folder with a config.cfg"),
        (["--precision", "all"], "There is no pipeline 'nowhere'"),
    ],
)
def test_errors_come_before_the_work(options, message, gold):
    result = run("nowhere", gold, *options)
    assert result.exit_code == 1
    assert message in result.output


def test_a_pipeline_without_encoder(gold, tmp_path):
    spacy.blank("en").to_disk(tmp_path / "blank")
    result = run(tmp_path / "blank", gold, "--precision", "all")
    assert "no BERT encoder to predict in fp32" in result.output
    with pytest.raises(ValueError, match=r"has no spacy_bert_heads.BertEncoder.v1, so there is no"):
        store_precision(tmp_path / "blank", "bf16")
