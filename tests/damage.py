"""Changes to the files of a checkpoint."""

import json
from pathlib import Path


def edit(file: Path, **changes) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **changes}))


def edit_config(folder: Path, **changes) -> None:
    edit(folder / "config.json", **changes)


def cut_in_half(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
