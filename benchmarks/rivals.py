"""Another package in an environment of its own, measured beside ours by `speed.py`.

    python benchmarks/rivals.py spacy-transformers DATA ENCODER OUT.json --quick

The environment is made once, in `.rivals/NAME` beside this package; all other options go to
`speed.py`.
"""

import subprocess
import sys
import venv
from pathlib import Path
from typing import Annotated

import torch
import typer

# What pip installs, and the tasks to measure.
SPACY = "ner,textcat,train"
RIVALS = {
    "spacy-transformers": (["spacy-transformers==1.4.0"], SPACY),
    "spacy-curated-transformers": (["spacy-curated-transformers==0.3.1", "transformers<5"], SPACY),
    "edsnlp": (["edsnlp[ml]==0.23.0"], "ner"),
    "gliner": (["gliner==0.2.29"], "ner"),
    "setfit": (["setfit==1.2.0", "transformers<5"], "textcat"),
}
HERE = Path(__file__).parent


def main(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(RIVALS)}")],
    data: Annotated[str, typer.Argument(help="The folder of the data sets")],
    encoder: Annotated[str, typer.Argument(help="The checkpoint, a folder")],
    out: Annotated[str, typer.Argument(help="A JSON file for the results")],
) -> None:
    """Make the environment, if there is none, and measure."""
    if name not in RIVALS:
        raise SystemExit(f"There is no rival '{name}'. Choose one of: {', '.join(RIVALS)}.")
    (packages, tasks), folder = RIVALS[name], HERE.parent / ".rivals" / name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        # The same torch as ours, or its products would be compared too.
        for step in ([f"torch=={torch.__version__}"], packages):
            subprocess.run([python, "-m", "pip", "install", "-q", *step], check=True)
        (folder / "installed").touch()
    command = [sys.executable, str(HERE / "speed.py"), data, encoder, out, "--tasks", tasks]
    command += ["--contenders", f"ours,{name}", "--python", f"{name}={python}", *context.args]
    raise SystemExit(subprocess.run(command).returncode)


if __name__ == "__main__":
    app = typer.Typer()
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(main)
    app()
