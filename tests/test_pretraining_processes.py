"""Several processes as one run, started by torchrun."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from pretraining_runs import write_config, write_raw
from safetensors.torch import load_file

from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.processes import Processes
from spacy_bert_heads.pretraining.settings import read_settings

# As the command does it, but for a process that is killed.
PROGRAM = """
import os, signal, sys, torch
from pathlib import Path
from spacy_bert_heads.pretraining.loop import pretrain
from spacy_bert_heads.pretraining.settings import read_settings

torch.set_num_threads(1)
config, output, killed_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

clip = torch.nn.utils.clip_grad_norm_

def note(parameters, largest):
    norm = clip(parameters, largest)
    if os.environ["RANK"] == "0":
        with open(sys.argv[4], "a") as norms:
            print(norm.item(), file=norms)
    return norm

torch.nn.utils.clip_grad_norm_ = note

def kill(step):
    if step == killed_at and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

pretrain(read_settings(config, {"training.batch_pieces": 128}), output, resume=True, on_step=kill)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    # No dropout, which differs from process to process.
    return write_config(folder, write_raw(folder / "raw.jsonl"), make_checkpoint(folder / "bert"))


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


def test_two_processes_are_one_with_twice_the_batch(config, tmp_path, monkeypatch):
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(PROGRAM)
    norms = tmp_path / "norms"
    killed = torchrun(str(program), str(config), str(out), "8", str(norms))
    assert killed.returncode != 0
    assert f"exitcode  : -{signal.SIGKILL.value}" in killed.stderr
    done = torchrun("-m", "spacy", "bert", "pretrain", str(config), str(out), "--resume",
                    "--training.batch_pieces", "128")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Going on after step 6 of 12") == 1  # one process speaks

    alone: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def note(parameters, largest):
        alone.append(clip(parameters, largest).item())

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", note)
    pretrain(read_settings(config, {}), tmp_path / "one")
    # Before clipping and Adam, which hide what the gradient is multiplied by.
    together = list(map(float, norms.read_text().split()))
    assert len(together) >= 7 and together == pytest.approx(alone[: len(together)], rel=1e-3)
    two, one = (
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (out, tmp_path / "one")
    )
    assert [line["step"] for line in two] == [0, 4, 8, 12]
    for mine, theirs in zip(two, one, strict=True):
        for key in ("loss", "mlm_loss", "nsp_loss", "held_out_mlm_loss", "held_out_nsp_loss"):
            assert mine[key] == pytest.approx(theirs[key], abs=1e-4), (mine["step"], key)
        assert (mine["tokens"], mine["lr"]) == (theirs["tokens"], theirs["lr"])
    left, right = (
        load_file(folder / "model-last" / "model.safetensors") for folder in (out, tmp_path / "one")
    )
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=2e-3, rtol=0, msg=name)


def test_a_gpu_that_is_not_there():
    number = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"no GPU {number}: .* leave out --gpu-id"):
        Processes(number)
