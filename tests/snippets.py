"""The commands and snippets of a Markdown page, and a folder in which those of the README run as a
reader pastes them.

    python tests/snippets.py README.md PYTHON    runs a page with another environment's Python

The hub is a local cache with small random checkpoints under the names that the page gives.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import NamedTuple
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
FENCED = re.compile(r"(?ms)^```(\w+)\n(.*?)^```$")
INDENTED = re.compile(r"(?m)(?:^ {4}\S.*\n)+")
PROGRAM = re.compile(r"(?:python|pip|mkdir|make|torchrun|curl|docker|\.venv/bin/\w+) ")
# What a test can't do to its own environment, and what is CI's first step.
ELSEWHERE = ("pip ", "make ")
COMMIT = "a" * 40


class Block(NamedTuple):
    """Lines of a shell, or a snippet of Python."""

    kind: str
    text: str


def blocks_of(markdown: str) -> list[Block]:
    """What a page tells the reader to type, in order: fenced Python and bash, and commands that are
    indented. Other indented lines are output."""
    found = []
    for match in FENCED.finditer(markdown):
        if match[1] in ("python", "bash"):
            found.append((match.start(), Block(match[1], match[2])))
    outside = FENCED.sub(lambda match: "\n" * match[0].count("\n"), markdown)
    starts = [0, *(i + 1 for i, char in enumerate(markdown) if char == "\n")]
    for match in INDENTED.finditer(outside):
        text = "".join(line[4:] for line in match[0].splitlines(keepends=True))
        if PROGRAM.match(text):
            line = outside.count("\n", 0, match.start())
            found.append((starts[line], Block("bash", text)))
    return [block for _, block in sorted(found)]


def commands_of(markdown: str) -> list[str]:
    """The lines of its shell, comments cut off, lines that a backslash continues joined."""
    text = "".join(block.text for block in blocks_of(markdown) if block.kind == "bash")
    lines = text.replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def make_hub(folder: Path) -> None:
    """A cache of the Hugging Face hub with the two checkpoints that the README names."""
    import transformers
    from checkpoints import make_checkpoint

    tags = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
    made = {
        "dslim/bert-base-NER": {
            "auto_class": transformers.AutoModelForTokenClassification,
            "id2label": dict(enumerate(tags)),
            "label2id": {tag: i for i, tag in enumerate(tags)},
        },
        "bert-base-uncased": {"auto_class": transformers.AutoModelForMaskedLM},
    }
    for name, settings in made.items():
        repository = folder / "hub" / f"models--{name.replace('/', '--')}"
        make_checkpoint(repository / "snapshots" / COMMIT, max_position_embeddings=512, **settings)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)


def make_inputs(folder: Path) -> None:
    """The reader's own files: `reviews.csv`, and texts."""
    lines = ["text,label"]
    for i in range(60):
        good = i % 2 == 0
        what = "a fire in the engine room" if good else "the crew and a pump off Skagen"
        lines.append(f"Report {i} is about {what} on day {i}.,{'fire' if good else 'other'}")
    (folder / "reviews.csv").write_text("\n".join(lines) + "\n", encoding="utf8")
    (folder / "texts").mkdir()
    shutil.copy(ROOT / "assets" / "raw.jsonl", folder / "texts")


def run_page(page: Path, folder: Path, python: str = sys.executable) -> list[str]:
    """Run all that a page says in an empty folder, each block unchanged, by an environment's
    Python. Gives what each block printed."""
    make_hub(folder / "hf")
    make_inputs(folder)
    environment = dict(os.environ)
    environment |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(python).parent}{os.pathsep}{environment['PATH']}"
    printed = []
    for kind, text in blocks_of(page.read_text(encoding="utf8")):
        lines = [text] if kind == "python" else text.splitlines()
        for line in lines:
            if line.startswith(ELSEWHERE):
                continue
            command = ["python", "-c", line] if kind == "python" else ["bash", "-ec", line]
            if " bert serve " in line:
                printed.append(call_server(command, folder, environment))
                continue
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise AssertionError(f"{line}\n{done.stdout}\n{done.stderr}")
            printed.append(done.stdout)
    return printed


def call_server(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Start the server of a page, ask it once, and stop it. At its port there must be no other."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            raise AssertionError("Something else listens at port 8000.")
    server = subprocess.Popen(["exec " + command[-1]], shell=True, cwd=folder, env=environment)
    try:
        for _ in range(600):
            if server.poll() is not None:
                raise AssertionError(f"{command[-1]} ended with {server.returncode}")
            try:
                with urlopen("http://127.0.0.1:8000/health", timeout=5) as answer:
                    return json.dumps(answer.status)
            except OSError:
                sleep(0.2)
        raise AssertionError(f"{command[-1]} does not answer")
    finally:
        server.terminate()
        server.wait(timeout=60)


if __name__ == "__main__":
    import tempfile

    sys.path.insert(0, str(ROOT / "tests"))
    with tempfile.TemporaryDirectory() as folder:
        printed = run_page(Path(sys.argv[1]).resolve(), Path(folder), sys.argv[2])
        print(f"{sys.argv[1]}: {len(printed)} commands and snippets by {sys.argv[2]}")
