"""What a person sees of a run."""

import json
import re
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import spacy
from checkpoints import make_checkpoint
from pretraining_runs import write_config, write_raw

from spacy_bert_heads.encoder.loading import load_wordpiece_tokenizer
from spacy_bert_heads.pretraining.documents import Side, hold_out
from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.masking import Vocabulary
from spacy_bert_heads.pretraining.objectives import fill_mask, load_pretrainer
from spacy_bert_heads.pretraining.prepare import prepare
from spacy_bert_heads.pretraining.reports import (
    COLUMNS,
    Report,
    draw_curves,
    format_row,
    pick_samples,
)
from spacy_bert_heads.pretraining.settings import Settings, read_settings

REPORT = Report(
    step=1200,
    loss=3.5,
    mlm_loss=3.0,
    nsp_loss=0.5,
    held_out_mlm_loss=2.0,
    held_out_perplexity=7.389,
    held_out_mlm_accuracy=0.25,
    held_out_nsp_loss=0.6,
    held_out_nsp_accuracy=0.75,
    lr=1e-4,
    epoch=1,
    tokens=50_000,
    tokens_per_second=1234.5,
    samples=[{"text": "it [MASK].", "word": "burned", "guesses": [["burned", 0.5], ["left", 0.2]]}],
)


@pytest.fixture
def settings(tmp_path) -> Settings:
    encoder = make_checkpoint(tmp_path / "bert")
    config = write_config(tmp_path, write_raw(tmp_path / "raw.jsonl"), encoder)
    return read_settings(config, {"training.max_steps": 4})


def test_rows():
    row, text, guesses = format_row(REPORT).splitlines()
    assert row == ("   1,200   3.500   3.000   0.500 │   2.000       7.4  0.250  0.750 │     1,234")
    assert len(row) == len(COLUMNS)
    assert (text.strip(), guesses.strip()) == ("it [MASK].", "burned: burned 0.50 · left 0.20")
    first = replace(REPORT, step=0, loss=None, mlm_loss=None, nsp_loss=None, samples=[])
    assert format_row(first).startswith("       0       –       –       – │   2.000")


def test_samples(tmp_path, checkpoint):
    texts = [f"Anna left Hull and the boat burned {'a' * i} in Skagen." for i in range(40)]
    raw = tmp_path / "raw.jsonl"
    raw.write_text("".join(json.dumps({"text": f"Too short. {t}"}) + "\n" for t in texts))
    wordpieces = load_wordpiece_tokenizer(checkpoint)
    corpus = prepare([raw], tmp_path / "cache", wordpieces=wordpieces, workers=1)
    tokenizer = wordpieces.tokenizer
    mask = tokenizer.token_to_id("[MASK]")
    vocabulary = Vocabulary(wordpieces, mask, tokenizer.get_vocab_size(), np.asarray([mask]))
    chosen = hold_out(40, 0.3, seed=7)
    held_out = np.flatnonzero(chosen).tolist()
    samples = pick_samples(Side(corpus, chosen), vocabulary, n=3)
    assert len(samples) == 3
    for sample, number in zip(samples, held_out, strict=False):
        words = re.findall(r"\w+", texts[number].lower())
        whole = [word for word in words if len(tokenizer.encode(word).ids) == 3]
        assert sample.word == max(whole, key=len)
        assert sample.ids.tolist().count(mask) == 1
        masked = texts[number].lower().replace(sample.word, "[MASK]", 1)
        assert sample.text.replace(" ", "") == masked.replace(" ", "")
    assert pick_samples(Side(corpus, ~chosen), vocabulary, n=99)


def test_a_run_shows_its_guesses_and_curves(settings, tmp_path):
    rows = []
    report = pretrain(settings, tmp_path / "out", on_report=rows.append)
    assert [one.step for one in rows] == [0, 4]
    assert report.samples and all(len(one["guesses"]) == 5 for one in report.samples)
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == asdict(report)
    pretrainer = load_pretrainer(str(tmp_path / "out" / "model-last"), sentence_objective=None)
    for one in report.samples:
        (expected,) = fill_mask(pretrainer, one["text"], top=5)
        assert [text for text, _ in one["guesses"]] == [guess.text for guess in expected]
        np.testing.assert_allclose(
            [score for _, score in one["guesses"]], [guess.score for guess in expected], rtol=1e-4
        )
    picture = (tmp_path / "out" / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_without_matplotlib(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said: list[str] = []
    training = replace(settings.training, checkpoint_frequency=1)
    pretrain(replace(settings, training=training), tmp_path / "out", say=said.append)
    assert [line for line in said if "pip install" in line] == [
        "No curves are drawn. Install matplotlib: pip install matplotlib"
    ]
    assert not (tmp_path / "out" / "curves.png").exists()


def test_curves_of_a_log(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: drawn.append(self))
    log = tmp_path / "log.jsonl"
    first = replace(REPORT, step=0, loss=None, mlm_loss=None, nsp_loss=None)
    log.write_text("".join(json.dumps(asdict(one)) + "\n" for one in (first, REPORT)))
    draw_curves(log, tmp_path / "curves.png")
    lines = {
        (axes.get_title(), line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for axes in drawn[0].axes
        for line in axes.lines
    }
    assert lines[("loss in nats", "masked pieces, held out")] == ([0, 1200], [2.0, 2.0])
    assert lines[("loss in nats", "masked pieces, training")] == ([1200], [3.0])
    assert lines[("share right", "pairs, held out")] == ([0, 1200], [0.75, 0.75])
    assert (tmp_path / "curves.png").exists()


def test_spacys_loggers(settings, tmp_path):
    seen: list[dict | None] = []

    @spacy.registry.loggers("test.PretrainingLogger.v1")
    def make_logger(tag: str):
        def setup(nlp, stdout, stderr):
            assert nlp.config["pretraining"]["training"]["max_steps"] == 4
            return lambda info: seen.append({**info, "tag": tag}), lambda: seen.append(None)

        return setup

    logger = {"@loggers": "test.PretrainingLogger.v1", "tag": "a"}
    training = replace(settings.training, logger=logger)
    report = pretrain(replace(settings, training=training), tmp_path / "out")
    assert [info and info["step"] for info in seen] == [0, 4, None]
    assert seen[1]["losses"] == {"mlm": report.mlm_loss, "nsp": report.nsp_loss}
    assert seen[1]["other_scores"]["held_out_perplexity"] == report.held_out_perplexity
    assert (seen[1]["words"], seen[1]["tag"]) == (report.tokens, "a")


def test_the_console_logger_of_spacy(settings, tmp_path, capsys):
    logger = {"@loggers": "spacy.ConsoleLogger.v1", "progress_bar": False}
    training = replace(settings.training, logger=logger)
    pretrain(replace(settings, training=training), tmp_path / "out")
    assert "SCORE" in capsys.readouterr().out
