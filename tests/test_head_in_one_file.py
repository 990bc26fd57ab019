"""The head of the contributing page: one file in a package of its own is all that it takes."""

import json
import subprocess
import sys

import spacy
from snippets import ROOT, blocks_of

RUN = """
import sys
import spacy
from spacy.cli import app
from spacy.util import registry
from typer.testing import CliRunner

registry.cli.get_all()
for line in sys.argv[1:]:
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, f"{line}\\n{result.output}"
nlp = spacy.load("training/model-best")
print(nlp.pipe_names, nlp.meta["performance"]["urgency_acc"])
print(max(nlp("Fire! Come at once.").cats.items(), key=lambda one: one[1])[0])
"""


def test_a_head_in_one_file(checkpoint, tmp_path):
    """Converted, configured, trained and loaded, from the page's snippet and an entry point."""
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf8")
    (snippet,) = (block.text for block in blocks_of(page) if block.kind == "python")
    assert "bert_urgency = my_heads:make_urgency" in page
    (tmp_path / "my_heads.py").write_text(snippet, encoding="utf8")
    info = tmp_path / "my_heads-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_heads\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[spacy_factories]\nbert_urgency = my_heads:make_urgency\n"
    )
    rows = [
        {"text": f"{'Fire! Come at once' if i % 2 else 'We had tea in the harbour'} {i}.",
         "urgent": bool(i % 2)}
        for i in range(24)
    ]  # fmt: skip
    (tmp_path / "urgent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    commands = [
        "bert convert urgent.jsonl train.spacy",
        f"bert init-config config.cfg --heads urgency --name {checkpoint} "
        "--train train.spacy --dev train.spacy",
        "train config.cfg --output training --training.max_steps 40 --training.eval_frequency 20 "
        "--components.bert_encoder.model.window 64 --components.bert_encoder.model.stride 48 "
        "--training.optimizer.learn_rate.initial_rate 0.003 "
        "--training.optimizer.learn_rate.warmup_steps 4",
    ]
    code = f"import sys; sys.path.append({str(tmp_path)!r})\n{RUN}"
    done = subprocess.run(
        [sys.executable, "-c", code, *commands], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *_, pipeline, urgent = done.stdout.splitlines()
    assert pipeline == "['bert_encoder', 'bert_urgency'] 1.0" and urgent == "urgent"
    with_text = spacy.util.load_config(tmp_path / "config.cfg")
    assert with_text["training"]["score_weights"] == {"urgency_acc": 1.0}
    assert len(snippet.splitlines()) < 150
