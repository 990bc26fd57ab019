"""Runs of several processes, of which some are killed. KILLS and DOCS set how many and of how many
documents (3 of 600); results are those of one process."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from annotation import annotations, parts, read, run, write_jsonl, write_weak_pipeline
from joint import assert_same

from spacy_bert_heads.annotate.plan import STATE

pytestmark = pytest.mark.long
psutil = pytest.importorskip("psutil")

KILLS = int(os.environ.get("KILLS", 3))
DOCS = int(os.environ.get("DOCS", 600))
PER_PART = max(DOCS // 60, 10)
ENGINES = {"local": ["--workers", "2"], "ray": ["--engine", "ray", "--workers", "2"]}
WORDS = [
    "Anna",
    "Grete",
    "left",
    "Skagen",
    "on",
    "Tuesday",
    "the",
    "boat",
    "burned",
    "in",
    "Hull",
    "it",
    "rained",
    "a",
    "pump",
]
WORKER = re.compile("spawn_main|MapWorker")
PATIENCE = 600  # seconds without a new part


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    chosen = random.Random(0)
    texts = [" ".join(chosen.choices(WORDS, k=chosen.randint(3, 30))) for _ in range(DOCS)]
    folder = tmp_path_factory.mktemp("corpus")
    return write_jsonl(folder / "in.jsonl", [{"id": i, "text": t} for i, t in enumerate(texts)])


@pytest.fixture(scope="module")
def expected(joint, corpus, tmp_path_factory):
    """What one process writes."""
    output = tmp_path_factory.mktemp("one") / "out"
    run(joint, corpus, output, docs_per_part=PER_PART)
    return read(output)


@pytest.fixture(params=ENGINES)
def engine(request):
    if request.param == "ray":
        pytest.importorskip("ray")
    return ENGINES[request.param]


def start(model, corpus, output, *options):
    arguments = [sys.executable, "-m", "spacy", "bert", "annotate", model, corpus, output]
    arguments += ["--docs-per-part", PER_PART, *options]
    return subprocess.Popen([str(one) for one in arguments], start_new_session=True)


def holders(output):
    """The processes that work on parts."""
    found = []
    for path in (output / STATE / "claims").glob("[0-9]*"):
        try:
            holder = path.read_text().partition('"holder": "')[2].partition('"')[0]
            found.append(int(holder.rpartition("~")[2]))
        except (OSError, ValueError):
            continue
    return found


def wait_for(found, process, output):
    """Wait until something is found, as long as there are new parts."""
    num_parts, since = -1, time.monotonic()
    while not (value := found()):
        assert process.poll() is None, "the run has ended"
        if len(parts(output)) != num_parts:
            num_parts, since = len(parts(output)), time.monotonic()
        assert time.monotonic() - since < PATIENCE, "the run stands still"
        time.sleep(0.01)
    return value


def assert_exactly_once(output, expected):
    found = read(output)
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    # A document that was at work when a process died is annotated alone: other last digits.
    assert_same(annotations(found), annotations(expected))
    assert not list((output / STATE / "claims").iterdir())


def test_workers_that_are_killed(joint, corpus, expected, tmp_path, engine):
    output, chosen = tmp_path / "out", random.Random(1)
    # At 20 ms a document the last kill comes before the end on any machine.
    pipeline, code = write_weak_pipeline(joint, tmp_path, "slow")
    process = start(pipeline, corpus, output, "--code", code, *engine)
    killed = 0
    while killed < KILLS:
        # At random moments, each time after some more parts.
        wanted = len(expected) // PER_PART * (killed + chosen.random()) / (KILLS + 1)
        wait_for(lambda wanted=wanted: len(parts(output)) >= wanted, process, output)
        time.sleep(chosen.random() * 0.02 * PER_PART)
        pid = chosen.choice(wait_for(lambda: holders(output), process, output))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it is dead already, and was not relieved yet
        killed += 1
        print(f"killed {pid} with {len(parts(output))} parts there", flush=True)
    assert process.wait(timeout=3600) == 0
    assert_exactly_once(output, expected)


def test_a_driver_that_is_killed_and_started_again(joint, corpus, expected, tmp_path, engine):
    output = tmp_path / "out"
    pipeline, code = write_weak_pipeline(joint, tmp_path, "slow")
    process = start(pipeline, corpus, output, "--code", code, *engine)
    wait_for(lambda: len(parts(output)) >= 3, process, output)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [one for one in children if WORKER.search(" ".join(one.cmdline()))]
    assert workers
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert alive == []
    there = {path: path.stat().st_mtime_ns for path in parts(output)}
    assert len(there) < DOCS // PER_PART
    process = start(pipeline, corpus, output, "--code", code, *engine)
    assert process.wait(timeout=3600) == 0
    assert_exactly_once(output, expected)
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_two_runs_share_a_folder(joint, corpus, expected, tmp_path):
    processes = [start(joint, corpus, tmp_path / "out") for _ in range(2)]
    assert [process.wait(timeout=3600) for process in processes] == [0, 0]
    assert_exactly_once(tmp_path / "out", expected)


def test_a_document_that_kills_every_process(joint, tmp_path, engine):
    pipeline, code = write_weak_pipeline(joint, tmp_path)
    rows = [{"id": i, "text": "KILL" if i == 5 else f"Hull burned {i}"} for i in range(30)]
    corpus = write_jsonl(tmp_path / "in.jsonl", rows)
    process = start(pipeline, corpus, tmp_path / "out", "--code", code, *engine)
    assert process.wait(timeout=3600) == 0
    found = read(tmp_path / "out")
    assert [row["id"] for row in found] == list(range(30))
    failed = {row["id"]: row["error"] for row in found if row["error"]}
    assert failed.keys() == {5} and failed[5].startswith("killed the process:")


def test_an_error_of_a_worker_ends_the_run(joint, corpus, tmp_path, engine):
    code = tmp_path / "code.py"
    code.write_text("raise ValueError('the code is wrong')")
    arguments = [sys.executable, "-m", "spacy", "bert", "annotate", joint, corpus, tmp_path / "out"]
    arguments += ["--code", code, *engine]
    process = subprocess.run([str(one) for one in arguments], capture_output=True, text=True)
    assert process.returncode == 1
    message = f"Error: '{code}' can't be imported: ValueError('the code is wrong')"
    assert process.stderr.splitlines()[-1] == message
    assert parts(tmp_path / "out") == []
