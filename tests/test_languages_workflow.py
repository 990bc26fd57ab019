"""The workflow `languages` of project.yml, from its commands to its tables: XQuAD's files in the
place of the downloads, a tiny encoder of bytes in the place of the multilingual one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import make_checkpoint

ROOT = Path(__file__).parent.parent
LANGS = ("en", "de", "zh")
NUM_PARAGRAPHS = 4  # of each language; a Doc each


def cut(source: Path, target: Path) -> None:
    """Copy the first paragraphs, the same ones in each language."""
    squad = json.loads(source.read_bytes())
    paragraphs = [one for article in squad["data"] for one in article["paragraphs"]]
    for one in paragraphs:
        del one["qas"][2:]
    squad["data"] = [{"title": "", "paragraphs": paragraphs[:NUM_PARAGRAPHS]}]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(squad), encoding="utf8")


@pytest.mark.long
def test_it_runs_end_to_end(data, tmp_path):
    for name in ("project.yml", "scripts"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tmp_path / name)
    for lang in LANGS:
        cut(data / "qa_xquad" / f"xquad.{lang}.json", tmp_path / f"assets/public/xquad/{lang}.json")
    for part in ("train", "dev"):
        cut(data / "qa_xquad" / "xquad.en.json", tmp_path / f"assets/public/squad/{part}.json")
    encoder = make_checkpoint(tmp_path / "encoder", family="roberta", max_position_embeddings=514)
    words = [sys.executable, "-m", "spacy", "project", "run", "languages", str(tmp_path)]
    words += ["--vars.multilingual_encoder", encoder, "--vars.public_steps", "3"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "training/languages/model-best").is_dir()
    for lang in LANGS:
        scores = json.loads((tmp_path / f"metrics/languages/{lang}.json").read_bytes())
        assert 0 <= scores["qa_exact"] <= scores["qa_f1"] <= 1
    # Two encoders, each in two pairs of languages.
    assert done.stdout.count(f"{NUM_PARAGRAPHS} texts; by chance the MRR is 0.521") == 4
    assert done.stdout.count("MRR, centred") == 4
