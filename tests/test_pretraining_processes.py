"""Several processes as one run."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from pretraining_runs import log, make_settings, weights

from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.settings import Settings
from spacy_bert_heads.runs.processes import Processes
from spacy_bert_heads.runs.states import list_states

PROGRAM = """
import os, signal, sys, torch
from pathlib import Path
from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.settings import read_settings

torch.set_num_threads(1)
settings = read_settings(Path(sys.argv[1]), {"training.keep": 10})
rank = os.environ["RANK"]

def kill(step):
    if step == 8 and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)

pretrain(settings, Path("killed"), on_step=kill)
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    folder = tmp_path_factory.mktemp("run")
    # No dropout, which differs from process to process.
    return make_settings(folder, make_checkpoint(folder / "bert"))


@pytest.fixture(scope="module")
def runs(settings, tmp_path_factory) -> Path:
    """A run of one process, one of two, one of two after one, and one of one after two, of which
    one was killed. Forked processes start at once; torchrun takes longer than all its steps."""
    runs = tmp_path_factory.mktemp("runs")
    settings.training.keep = 10
    pretrain(settings, runs / "one")
    fork_two(settings, runs / "two", resume=False)
    keep_states(runs / "one", runs / "two-after-one", 6)
    fork_two(settings, runs / "two-after-one", resume=True)
    (runs / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    config = Path(settings.paths.raw[0]).with_name("pretrain.cfg")
    done = subprocess.run(
        [*command, "program.py", str(config)],
        cwd=runs,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert f"exitcode  : -{signal.SIGKILL.value}" in done.stderr, done.stderr
    assert done.stdout.count("The run reads 0.28 of the corpus.") == 1  # one process speaks
    pretrain(settings, runs / "killed", resume=True)
    return runs


def fork_two(settings: Settings, output: Path, *, resume: bool) -> None:
    """Run two processes as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    fork = get_context("fork")
    two = [fork.Process(target=run_rank, args=(settings, output, resume, r, port)) for r in (0, 1)]
    for process in two:
        process.start()
    for process in two:
        process.join(100)
        assert process.exitcode == 0


def run_rank(settings: Settings, output: Path, resume: bool, rank: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)  # otherwise torch hangs after a fork
    pretrain(settings, output, resume=resume)


def keep_states(run: Path, copy: Path, step: int) -> None:
    """Copy a run as it was after a step."""
    shutil.copytree(run, copy)
    for state in list_states(copy / "states"):
        if int(state.name.removeprefix("step-")) > step:
            shutil.rmtree(state)


@pytest.mark.parametrize("name", ["two", "two-after-one", "killed"])
def test_the_steps_are_the_same_for_any_number_of_processes(runs, name):
    """ "killed" went on with one process."""
    one, other = log(runs / "one"), log(runs / name)
    assert [line["step"] for line in other] == [0, 4, 8, 12]
    for mine, theirs in zip(one, other, strict=True):
        for key in ("loss", "mlm_loss", "nsp_loss", "held_out_mlm_loss", "held_out_nsp_loss"):
            assert mine[key] == pytest.approx(theirs[key], abs=1e-4), (mine["step"], key)
        assert (mine["tokens"], mine["lr"]) == (theirs["tokens"], theirs["lr"])
    left, right = weights(runs / "one"), weights(runs / name)
    for key in left:
        torch.testing.assert_close(left[key], right[key], atol=2e-3, rtol=0, msg=key)


def test_gradients_are_those_of_one_process(runs):
    """Beta1 of 0.9: after n steps the first moment still has 0.9 ** k of the gradient k steps ago.
    The weights alone don't show what a gradient is multiplied by, which Adam divides out."""
    one, two = (
        torch.load(list_states(runs / name / "states")[-1] / "state.pt", weights_only=True)
        for name in ("one", "two")
    )
    assert one["step"] == two["step"] == 3
    for number, moments in one["optimizer"]["state"].items():
        expected, found = moments["exp_avg"], two["optimizer"]["state"][number]["exp_avg"]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)


def test_a_gpu_that_is_not_there():
    number = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"no GPU {number}: .* leave out --gpu-id"):
        Processes(number)
