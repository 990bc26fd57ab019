"""Read raw text from tables: CSV, Parquet, and folders that `save_to_disk` of Hugging Face's
`datasets` wrote. The last two need an optional package."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.records import Rejected
from ..data.tables import read_csv

PACKAGES = {"parquet": "pyarrow", "dataset": "datasets", "zst": "zstandard"}


class NoColumn(ValueError):
    """Report that a table has no column with the given name."""


def check_package(name: str, kind: str | None) -> None:
    """Raise ImportError if the package that reads a kind of file is not installed."""
    package = PACKAGES.get(kind or "")
    if package and find_spec(package) is None:
        raise ImportError(f"{name} needs {package}. Install it: pip install {package}")


def find_dataset(path: Path) -> Path | None:
    """Return the folder of a saved `Dataset`, or of the "train" split of a saved `DatasetDict`;
    None if `path` is neither. Raises FileNotFoundError if there is no split "train"."""
    if (path / "dataset_dict.json").is_file():
        if not (path / "train").is_dir():
            splits = ", ".join(sorted(str(one) for one in path.iterdir() if one.is_dir()))
            raise FileNotFoundError(
                f"{path} has no split 'train'. Pass the folder of one of: {splits}."
            )
        path = path / "train"
    return path if (path / "state.json").is_file() and any(path.glob("*.arrow")) else None


def read_table(path: Path, kind: str, key: str) -> Iterator[Any]:
    """Yield the values of a column, row by row; only a part of the rows is in memory. A row that
    can't be read has None.

    Raises NoColumn if the column is missing.
    """
    if kind == "csv":
        for row in read_csv(path):
            if isinstance(row, Rejected):
                yield None
                continue
            _check_column(row.cells, key)
            yield row.cells[key]
    elif kind == "parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file_:
            _check_column(file_.schema_arrow.names, key)
            for batch in file_.iter_batches(columns=[key]):
                yield from batch.column(0).to_pylist()
    else:
        from datasets import load_from_disk

        dataset = load_from_disk(str(path))
        _check_column(dataset.column_names, key)
        for row in dataset.select_columns(key):
            yield row[key]


def _check_column(names: Collection[str], key: str) -> None:
    if key not in names:
        raise NoColumn(
            f"no '{key}': the columns are {', '.join(names)}; set text.key to one of them"
        )
