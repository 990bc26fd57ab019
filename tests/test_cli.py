"""The commands, as spaCy's own command line calls them."""

import subprocess
import sys

import pytest
import spacy
from checkpoints import make_checkpoint
from commands import run
from spacy.schemas import ConfigSchemaTraining
from spacy.tokens import Doc, DocBin
from spacy.util import load_model_from_config, registry
from spacy.vocab import Vocab
from thinc.api import Config
from transformers import AutoModelForMaskedLM

from spacy_bert_heads.data.reader import split_pairs
from spacy_bert_heads.init_config import fit_joint_steps, fit_steps, init_config
from spacy_bert_heads.pairs import make_answer, make_verdict
from spacy_bert_heads.pretraining.settings import (
    Objective,
    Paths,
    Settings,
    Text,
    Training,
    read_settings,
)

CONLL = "Anna\tB-VESSEL\nleft\tO\n\nHull\tFOO\n\nSkagen\tB-PLACE\n"


@pytest.fixture
def conll(tmp_path):
    file = tmp_path / "a.conll"
    file.write_text(CONLL)
    return file


def test_convert_says_what_it_kept_and_what_not(conll, tmp_path):
    result = run("convert", conll, tmp_path / "a.spacy")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        f"{tmp_path / 'a.spacy'}: 2 of 3 sentences (conll)",
        "entities: 2 of 2 documents",
        "Labels: VESSEL 1, PLACE 1",
        f"Longest document: 2 tokens, {conll}:1",
        "Rejected: 1",
        "       1  not a tag of BIO or BILOU",
        f"  {conll}:4: not a tag of BIO or BILOU: 'FOO'",
    ]
    docs = list(DocBin().from_disk(tmp_path / "a.spacy").get_docs(Vocab()))
    assert [[(e.text, e.label_) for e in doc.ents] for doc in docs] == [
        [("Anna", "VESSEL")],
        [("Skagen", "PLACE")],
    ]


@pytest.mark.parametrize(
    "args, message",
    [
        (("convert", "nowhere.conll", "a.spacy"), "nowhere.conll does not exist"),
        (
            ("init-config", "a.cfg", "--heads", "nre"),
            "Unknown head 'nre'. Choose from: choice, ner,",
        ),
        (("init-config", "a.cfg", "--train", "no.spacy"), "There is no 'no.spacy'. Create it"),
    ],
)
def test_errors_are_one_sentence_and_no_traceback(args, message):
    result = run(*args)
    assert result.exit_code == 1
    assert f"Error: {message}" in result.output
    assert "Traceback" not in result.output


def test_init_config_fits_the_steps_to_the_data(tmp_path):
    lines = "".join(f"w{i}\tO\n\n" for i in range(320))
    (tmp_path / "a.conll").write_text(lines + CONLL[:22])
    run("convert", tmp_path / "a.conll", tmp_path / "a.spacy")
    result = run("init-config", "-", "--train", tmp_path / "a.spacy")
    assert result.exit_code == 0
    settings = dict(line.split(" = ") for line in result.output.splitlines() if " = " in line)
    # 321 Docs are 41 batches of 8, and five epochs of them 205 steps.
    assert (settings["max_steps"], settings["total_steps"]) == ("205", "${training.max_steps}")
    assert (settings["warmup_steps"], settings["size"]) == ("20", "8")


def test_a_config_for_pretraining(tmp_path):
    path = tmp_path / "new" / "a.cfg"
    result = run("init-config", path, "--pretrain", "--raw", "a.jsonl", "--name", "b", "-l", "de")
    assert result.output.endswith(f"python -m spacy bert pretrain {path} training/pretrained\n")
    recipe = {"objective": Objective("full-sentences"), "training": Training(4000, None, 0, 2048)}
    assert read_settings(path) == Settings(Paths(["a.jsonl"], "b"), text=Text("de"), **recipe)
    result = run("init-config", "-", "--pretrain")
    assert result.output.startswith("[paths]\nraw = null\nencoder = null\n")
    for number, steps in ((1, 100), (400_000, 390), (10_000_000, 4000)):  # ten passes
        (tmp_path / "texts.txt").write_text("a" * number)
        run("init-config", path, "--pretrain", "--raw", tmp_path, "--name", "b", "--force")
        assert read_settings(path).training.max_steps == steps
    for args in (("--pretrain", "--heads", "ner"), ("--raw", "a.jsonl")):
        result = run("init-config", "-", *args)
        assert result.exit_code == 1 and "--pretrain" in result.output


@pytest.mark.parametrize(
    "n_examples, expected", [(10, (200, 8)), (321, (205, 8)), (1281, (205, 32)), (6400, (1000, 32))]
)
def test_steps_for_a_number_of_examples(n_examples, expected):
    assert fit_steps(n_examples) == expected


def make_joint_docs(nlp, words: int, hypotheses: int, num_docs: int):
    """Docs with entities and hypotheses, each of `words` words."""
    for _ in range(num_docs):
        doc = Doc(nlp.vocab, words=["fire"] * words)
        doc.set_ents([], default="outside")
        doc._.hypotheses = ["It burned"] * hypotheses
        doc._.nli = [make_verdict("entailment")] * hypotheses
        yield doc


@pytest.mark.parametrize(
    "words, hypotheses, num_docs, expected",
    [
        # Five epochs of 1.3 * (100 + 2 * 102) * 1000 wordpieces.
        (100, 2, 1000, (3860, 512)),
        (100, 2, 3000, (5790, 1024)),
        # Entities alone would be seen 1,600 times, so 16 epochs of 1.3 * 304 * 100 wordpieces.
        (100, 2, 100, (1235, 512)),
        # 20 epochs at most; 200 steps at least.
        (100, 20, 10, (1087, 512)),
        (10, 2, 10, (200, 512)),
    ],
)
def test_steps_of_a_joint_training(words, hypotheses, num_docs, expected):
    docs = make_joint_docs(spacy.blank("en"), words, hypotheses, num_docs)
    parts = (part for doc in docs for part in split_pairs(doc, 1))
    assert fit_joint_steps(parts, ["ner", "nli"]) == expected


@pytest.mark.parametrize(
    "heads, max_pairs, window",
    [("ner,textcat", 0, None), ("nli", 1, None), ("qa", 1, 384), ("ner,textcat,nli,qa", 1, 384)],
)
def test_init_config_for_pairs(heads, max_pairs, window, checkpoint):
    config = init_config(heads.split(","), name=checkpoint)
    assert config["corpora"]["train"]["max_pairs"] == max_pairs
    assert config["corpora"]["dev"]["max_pairs"] == 0
    encoder = config["components"]["bert_encoder"]["model"]
    expected = (window, 256) if window else (256, 192)
    assert (encoder["window"], encoder["stride"]) == expected
    batcher = config["training"]["batcher"]
    if "," in heads:
        assert (batcher["size"], batcher["by_task"]) == (512, True)
        assert config.interpolate()["training"]["batcher"]["name"] == checkpoint
        assert config.interpolate()["components"]["bert_encoder"]["model"]["name"] == checkpoint
    else:
        assert batcher["size"] == 32
    pipeline = ["bert_encoder", *(f"bert_{head}" for head in heads.split(","))]
    rates = [config["components"][name]["model"]["learning_rate_multiplier"] for name in pipeline]
    assert rates == [1.0] + [10.0] * (len(pipeline) - 1)
    # All of it is valid, and every name in it is registered.
    nlp = load_model_from_config(Config(config), validate=True)
    assert nlp.pipe_names == pipeline
    registry.resolve(nlp.config.interpolate()["training"], schema=ConfigSchemaTraining)


def test_init_config_fits_the_steps_to_the_pairs(tmp_path, checkpoint):
    doc = spacy.blank("en").make_doc("Anna left")
    doc._.questions, doc._.answers = ["Who?"] * 100, [make_answer(doc, 0, 4)] * 100
    DocBin(docs=[doc] * 20, store_user_data=True).to_disk(tmp_path / "a.spacy")
    config = init_config(["qa"], name=checkpoint, train=tmp_path / "a.spacy")
    # 2,000 pairs are 63 batches of 32, and five epochs of them 315 steps.
    assert config["training"]["max_steps"] == 315


def test_spacy_finds_the_commands():
    command = [sys.executable, "-m", "spacy", "bert", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(command in output for command in ("convert", "init-config", "evaluate"))


def test_fill_mask(tmp_path):
    name = make_checkpoint(tmp_path / "bert", auto_class=AutoModelForMaskedLM)
    result = run("fill-mask", name, "The [MASK] left [MASK].", "--top", 2)
    assert result.exit_code == 0, result.output
    rows = result.output.splitlines()
    assert len(rows) == 2 and all(len(row.split()) == 4 for row in rows)
    result = run("fill-mask", name, "No mask.")
    assert result.exit_code == 1 and "[MASK]" in result.output
