"""Claims: one process works on a part, and a dead one is relieved; and how far all of them are."""

import json
import os
import socket
import time

import pytest
from annotation import ROWS, write_jsonl

from spacy_bert_heads.annotate import claims
from spacy_bert_heads.annotate import run as module
from spacy_bert_heads.annotate.claims import STALE, Claim, documents_at_work
from spacy_bert_heads.annotate.plan import Job, open_run
from spacy_bert_heads.annotate.worker import Annotator, Deaths

GONE = 2**22 + 1  # no process has that number


@pytest.fixture
def path(tmp_path):
    return tmp_path / "00007"


def write(path, holder, at=None, died=()):
    path.write_text(json.dumps({"holder": holder, "at": at, "died": died}))


def test_one_holds_a_claim(path):
    with Claim.take(path) as claim:
        assert Claim.take(path) is None
        claim.note((512, 1000))
        assert documents_at_work(path) == 512
        assert Claim.take(path) is None
    assert not path.exists()
    with Claim.take(path) as claim:
        assert claim.died == []


def test_an_error_gives_a_claim_back(path):
    with pytest.raises(RuntimeError), Claim.take(path):
        raise RuntimeError
    assert not path.exists()


def test_a_dead_process_of_this_machine_is_relieved_at_once(path):
    write(path, f"{socket.gethostname()}~{GONE}", at=[3, 5], died=[[0, 9]])
    with Claim.take(path) as claim:
        assert claim.died == [(0, 9), (3, 5)]
        assert json.loads(path.read_text())["died"] == [[0, 9], [3, 5]]
    assert list(path.parent.iterdir()) == []


def test_a_process_of_another_machine_is_relieved_when_it_is_silent(path):
    write(path, f"elsewhere~{GONE}", at=[3, 5])
    assert Claim.take(path) is None
    now = path.stat().st_mtime
    os.utime(path, (now, now - STALE - 10))
    with Claim.take(path) as claim:
        assert claim.died == [(3, 5)]


def test_a_holder_gives_signs_of_life(path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with Claim.take(path):
        os.utime(path, (1, 1))
        for _ in range(1000):
            if path.stat().st_mtime != 1:
                break
            time.sleep(0.01)
        assert path.stat().st_mtime != 1


def test_who_was_relieved_does_not_take_the_claim_of_the_other(path):
    with Claim.take(path):
        path.unlink()
        write(path, f"elsewhere~{GONE}")
    assert path.exists()


def test_an_unreadable_claim_is_held_until_it_is_old(path):
    path.write_text("")
    assert Claim.take(path) is None
    os.utime(path, (1, 1))
    with Claim.take(path) as claim:
        assert claim.died == []


def test_deaths():
    deaths = Deaths([(0, 4), (2, 3), (2, 3), (3, 4)])
    assert [deaths.alone(i) for i in range(-1, 6)] == [False, True, True, True, True, False, False]
    assert [deaths.gave_up(i) for i in range(5)] == [False, False, True, False, False]


def test_progress(joint, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.01)
    monkeypatch.setattr(module, "LINE", 0.01)
    corpus = write_jsonl(tmp_path / "in.jsonl", ROWS)
    opened = open_run(Job(str(joint), str(corpus), tmp_path / "out", docs_per_part=3))
    lines = []
    with module.shown_progress(opened, lines.append):
        Annotator(opened).work()
        while not lines or not lines[-1].startswith("7 of 7 documents, "):
            time.sleep(0.01)
    assert module.format_progress(100, 400, 1000, 60) == (
        "400 of 1,000 documents, 5.0 a second, 0:02:00 left"
    )
    assert module.format_progress(0, 0, 10, 1) == "0 of 10 documents, 0.0 a second"
