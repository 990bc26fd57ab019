"""The log of a training in the terminal."""

import io
import json

import pytest
from spacy.language import Language

from spacy_bert_heads.init_config import init_config
from spacy_bert_heads.training.logger import describe_warm_up, make_console_logger, name_losses


@pytest.fixture
def training(make_nlp) -> Language:
    """A pipeline of two heads that is about to be trained."""
    nlp = make_nlp("ner", "textcat", initialize=False)
    schedule = {"initial_rate": 1e-4, "warmup_steps": 20}
    nlp.config["training"]["optimizer"] = {"learn_rate": schedule}
    return nlp


def test_the_table(training, tmp_path):
    stdout = io.StringIO()
    log, finish = make_console_logger(tmp_path / "log.jsonl")(training, stdout, stdout)
    losses = {"bert_encoder": 0.25, "bert_ner": 2.5, "bert_textcat": 0.7}
    scores = {"ents_f": 0.5, "cats_score": 0.125}
    log(None)
    log({"epoch": 1, "step": 40, "losses": losses, "other_scores": scores, "score": 0.3125})
    finish()
    lines = stdout.getvalue().splitlines()
    start = lines.index("The learning rate rises from 0 to 0.0001 in 20 steps (warm-up).") + 1
    headings, rule, row = (line.split("  ") for line in lines[start:])
    columns = [one.strip() for one in headings if one]
    assert columns[:6] == ["E", "#", "GRAD ENCODER", "LOSS NER", "LOSS TEXTCAT", "ENTS_F"]
    assert columns[-1] == "SCORE" and len(set(columns)) == len(columns)
    assert [len(one) for one in rule] == [3, 6, *(max(len(one), 6) for one in columns[2:])]
    cells = dict(zip(columns, "  ".join(row).split(), strict=True))
    assert [cells[one] for one in columns[:6]] == ["1", "40", "0.25", "2.50", "0.70", "50.00"]
    assert (cells["CATS_SCORE"], cells["ENTS_P"], cells["SCORE"]) == ("12.50", "0.00", "0.31")
    (logged,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert logged["step"] == 40 and logged["losses"] == losses


def test_headings_differ(make_nlp):
    nlp = make_nlp(initialize=False)
    for name in ("ner", "bert_ner", "other"):
        nlp.add_pipe("bert_ner", name=name)
    named = name_losses(nlp, nlp.pipe_names)
    assert named == ["GRAD ENCODER", "LOSS NER", "LOSS BERT_NER", "LOSS OTHER"]


def test_other_schedules_are_not_described():
    assert describe_warm_up({"learn_rate": 0.001}) == ""
    assert describe_warm_up({"learn_rate": {"initial_rate": 0.1, "warmup_steps": 0}}) == ""


def test_configs_have_it(checkpoint, make_nlp, tmp_path):
    """Not those that train further, which keep the logger that was chosen once."""
    logger = init_config(["ner"], name=checkpoint)["training"]["logger"]
    assert logger == {"@loggers": "spacy_bert_heads.ConsoleLogger.v1", "output_file": None}
    nlp = make_nlp("ner")
    nlp.config["training"]["logger"] = {"@loggers": "spacy.ConsoleLogger.v3", "output_file": "a"}
    nlp.to_disk(tmp_path / "nlp")
    further = init_config(source=tmp_path / "nlp")["training"]["logger"]
    assert (further["@loggers"], further["output_file"]) == ("spacy.ConsoleLogger.v3", "a")
