"""The notebook of the tutorials runs from top to bottom, without a network."""

import json
import os
import subprocess
import sys

import pytest
from snippets import ROOT

NOTEBOOK = ROOT / "docs" / "tutorials" / "first_pipeline.ipynb"


def test_it_has_no_outputs():
    """Those of whoever saved it last would change with each run."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf8"))["cells"]
    assert {cell["cell_type"] for cell in cells} == {"markdown", "code"}
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")


@pytest.mark.long
def test_it_runs(minilm, tmp_path):
    pytest.importorskip("nbconvert", reason="needs nbconvert and ipykernel")
    pytest.importorskip("ipykernel", reason="needs nbconvert and ipykernel")
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path)}
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook", str(NOTEBOOK)]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / NOTEBOOK.name).read_text(encoding="utf8"))["cells"]
    outputs = [json.dumps(cell["outputs"]) for cell in cells if cell["cell_type"] == "code"]
    assert "train" in outputs[1] and "LOSS TEXTCAT" in outputs[2]
    assert "text/html" in outputs[3] and "<mark" in outputs[3]
    assert "entities F" in outputs[5]
    assert "missed" in outputs[6] or "wrong" in outputs[6]
    assert "model.safetensors" in outputs[8]
