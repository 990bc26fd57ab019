"""The tasks of GLUE: their files, measures, and what is written."""

import json
import random
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from commands import command
from sklearn.metrics import f1_score, matthews_corrcoef

from spacy_bert_heads.glue import run as glue
from spacy_bert_heads.glue.run import OURS, PLAIN, Setup, format_results, run_glue
from spacy_bert_heads.glue.tasks import TASKS, Item, f1, find_tasks, matthews, pearson, spearman

FILES = {
    "CoLA/train.tsv": 'gj04\t1\t\tShe "sailed.\ncj99\t0\t*\tSailed she the.\n' * 4,
    "CoLA/dev.tsv": "gj04\t1\t\tShe sailed.\nks08\t0\t*\tSailed the.\n",
    "CoLA/test.tsv": "index\tsentence\n0\tThe boat left.\n1\tLeft boat the.\n",
    "STS-B/train.tsv": "index\tgenre\tsentence1\tsentence2\tscore\n"
    "0\tnews\tShe left.\tShe sailed.\t4.2\n1\tnews\tShe left.\tIt rained.\t0.4\n",
    "STS-B/dev.tsv": "index\tgenre\tsentence1\tsentence2\tscore\n"
    "0\tnews\tIt burned.\tA fire.\t3.8\n1\tnews\tIt burned.\tIt rained.\t1\n",
    "RTE/train.tsv": "index\tsentence1\tsentence2\tlabel\n"
    "0\tShe left Skagen.\tShe left.\tentailment\n1\tShe left.\tIt rained.\tnot_entailment\n",
    "RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tShe left.\tShe left.\tentailment\n",
    "RTE/test.tsv": "index\tsentence1\tsentence2\n0\tShe left.\tIt rained.\n",
    "zh_chnsenticorp/train.tsv": "label\ttext_a\n1\t很好\n0\t不好\n",
    "zh_chnsenticorp/dev.tsv": "label\ttext_a\n1\t很好\n",
    "zh_cluener/train.json": '{"text": "叶老桂在银行", "label": {"name": {"叶老桂": [[0, 2]]}}}\n'
    * 2,
    "zh_cluener/dev.json": '{"text": "叶老桂在", "label": {"name": {"叶老桂": [[0, 2]]}}}\n',
}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf8")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """With room for the windows of `init-config`."""
    return str(
        make_checkpoint(tmp_path_factory.mktemp("glue") / "bert", max_position_embeddings=512)
    )


def test_files(folder):
    there = find_tasks(folder)
    assert list(there) == ["CoLA", "STS-B", "RTE", "ChnSentiCorp", "CLUENER"]

    def first(task: str, name: str) -> Item:
        return next(TASKS[task].read(there[task] / name))

    # A quotation mark is a character of its text, not the begin of a quoted cell.
    assert first("CoLA", "train.tsv") == ('She "sailed.', None, "1")
    assert first("CoLA", "test.tsv") == ("The boat left.", None, None)
    assert first("STS-B", "dev.tsv") == ("It burned.", "A fire.", "3.8")
    assert first("RTE", "test.tsv") == ("She left.", "It rained.", None)
    assert first("ChnSentiCorp", "dev.tsv") == ("很好", None, "1")
    assert first("CLUENER", "dev.json") == ("叶老桂在", None, '[[0, 3, "name"]]')


def test_files_that_are_not_glues(folder, tmp_path):
    (folder / "RTE/train.tsv").write_text("premise\thypothesis\tlabel\na\tb\tc\n")
    with pytest.raises(
        ValueError, match=r"train\.tsv:2: RTE has its texts in sentence1, sentence2"
    ):
        list(TASKS["RTE"].read(folder / "RTE/train.tsv"))
    with pytest.raises(ValueError, match="no task in .*CoLA, SST-2"):
        find_tasks(tmp_path)
    with pytest.raises(ValueError, match="no task 'QQP' in .*Choose from: CoLA"):
        run_glue(folder, tmp_path / "out", Setup("none"), tasks=["QQP"])


def test_rows_that_are_cut_off_are_skipped(tmp_path):
    """QQP has some in its training set; transformers' reader skips them too."""
    text = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    text += "1\t2\t3\tHow?\tWhy?\t0\n2\t3\t4\tHow is\n3\t4\t5\tHow\tWhat\n4\t5\t6\tWho\tWhat\t1\n"
    (tmp_path / "train.tsv").write_text(text)
    with pytest.warns(UserWarning, match="Skipped 2 rows of .*train.tsv .* column 'is_duplicate'"):
        items = list(TASKS["QQP"].read(tmp_path / "train.tsv"))
    assert items == [Item("How?", "Why?", "0"), Item("Who", "What", "1")]
    (tmp_path / "test.tsv").write_text("id\tquestion1\tquestion2\n0\tHow?\n")
    with pytest.raises(ValueError, match="test.tsv:2: QQP has its texts in"):  # rows are numbered
        list(TASKS["QQP"].read(tmp_path / "test.tsv"))


def test_measures_are_those_of_scikit_learn():
    draw = random.Random(0)
    for _ in range(20):
        gold, found = ([draw.choice("01") for _ in range(12)] for _ in range(2))
        assert f1(gold, found) == pytest.approx(f1_score(gold, found, pos_label="1"))
        assert matthews(gold, found) == pytest.approx(matthews_corrcoef(gold, found))
    assert matthews(["0", "1"], ["1", "1"]) == 0
    numbers = ["1", "2", "3", "4"]
    assert pearson(numbers, ["2", "4", "6", "8"]) == pytest.approx(1)
    assert spearman(numbers, ["1", "10", "100", "90"]) == pytest.approx(0.8)
    assert pearson(numbers, ["1"] * 4) == 0


def test_a_run(folder, encoder, tmp_path, monkeypatch):
    output = tmp_path / "out"
    command("bert", "glue", folder, output, "--name", encoder, "--tasks", "CoLA,STS-B,RTE",
            "--beside", "--epochs", 1)  # fmt: skip
    results = json.loads((output / "results.json").read_text())["scores"]
    assert {name: list(own) for name, own in results.items()} == {
        name: [OURS, PLAIN] for name in ("CoLA", "STS-B", "RTE")
    }
    assert list(results["STS-B"][OURS]["0"]) == ["Pearson", "Spearman"]
    written = {path.name for path in (output / "submissions").iterdir()}
    assert written == {"CoLA.tsv", "RTE.tsv"}  # those with a test set
    lines = (output / "submissions/RTE.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert lines[1] in ("0\tentailment", "0\tnot_entailment") and len(lines) == 2
    assert list((output / "runs").iterdir()) == []

    def fail(*args):
        raise AssertionError

    # What is there is not run again, and other settings are not mixed with it.
    monkeypatch.setattr(glue, "run_ours", fail)
    monkeypatch.setattr(glue, "run_beside", fail)
    setup = Setup(encoder, epochs=1)
    assert run_glue(folder, output, setup, tasks=["RTE"], beside=True) == results
    with pytest.raises(ValueError, match="has results with"):
        run_glue(folder, output, Setup(encoder, epochs=2), tasks=["RTE"])


def test_second_texts_that_are_too_long_are_cut(folder, encoder, tmp_path):
    rows = f"0\tShe left.\t{'She left Skagen. ' * 200}\tentailment\n"
    (folder / "RTE/dev.tsv").write_text(f"index\tsentence1\tsentence2\tlabel\n{rows}")
    found = run_glue(folder, tmp_path / "out", Setup(encoder, epochs=1), tasks=["RTE"])
    assert found["RTE"][OURS]["0"]["accuracy"] in (0.0, 1.0)


def test_force_deletes_no_files_of_the_user(folder, encoder, tmp_path):
    output = tmp_path / "project"
    for name in ("runs/model.bin", "data/own.txt", "results.json"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("{}")
    for _ in range(2):  # the second time the folder is marked
        run_glue(folder, output, Setup(encoder, epochs=1), tasks=["RTE"], force=True)
        assert (output / "runs/model.bin").exists() and (output / "data/own.txt").exists()
    with pytest.raises(ValueError, match="is inside of the output"):
        run_glue(folder, folder.parent, Setup(encoder), tasks=["RTE"], force=True)


def test_a_test_set_keeps_its_name(folder, encoder, tmp_path):
    """Of MNLI only one may be there."""
    lines = "sentence1\tsentence2\tgold_label\nShe left.\tIt rained.\tneutral\nShe left.\tShe "
    lines += "sailed.\tentailment\n"
    for name in ("train", "dev_matched", "test_mismatched"):
        path = folder / "MNLI" / f"{name}.tsv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(lines)
    run_glue(folder, tmp_path / "out", Setup(encoder, epochs=1), tasks=["MNLI"])
    assert [path.name for path in (tmp_path / "out/submissions").iterdir()] == ["MNLI-mm.tsv"]


def test_chinese_tasks(folder, encoder, tmp_path):
    setup = Setup(encoder, epochs=2)
    found = run_glue(folder, tmp_path / "out", setup, tasks=["ChnSentiCorp", "CLUENER"])
    assert list(found["ChnSentiCorp"][OURS]["0"]) == ["accuracy"]
    assert list(found["CLUENER"][OURS]["0"]) == ["F1"]


def test_table():
    runs = {"0": {"accuracy": 0.5, "F1": 0.7}, "1": {"accuracy": 0.7, "F1": 0.9}}
    table = format_results({"MRPC": {OURS: runs, PLAIN: {"0": {"accuracy": 0.5, "F1": 0.6}}}})
    assert table.splitlines()[2:] == [
        "| MRPC | accuracy | 2 | 60.0 ± 14.1 | 50.0 |",
        "| MRPC | F1 | 2 | 80.0 ± 14.1 | 60.0 |",
        "| mean | | | 70.0 | 55.0 |",
    ]


def test_the_real_files_are_read(data):
    counts = {}
    for root in ("glue_small", "."):
        for name, path in find_tasks(data / root).items():
            counts[name] = sum(1 for _ in TASKS[name].read(path / TASKS[name].train))
    assert counts == {
        "CoLA": 8551, "MRPC": 3668, "STS-B": 5749, "RTE": 2490, "WNLI": 635,
        "ChnSentiCorp": 9600, "CLUENER": 10748,
    }  # fmt: skip
