"""Saved heads, and what a changed config does to them."""

from __future__ import annotations

from collections.abc import Iterable
from math import isclose
from pathlib import Path
from typing import Any, Self

from spacy.pipeline import TrainablePipe

from ..encoder.model import prepare, shim_of
from ..files import AGAIN, check_digests, in_component, write_digests
from .calibrated import CalibratedHead


class SavedHead(CalibratedHead, TrainablePipe):
    """The part of a head that is saved and loaded."""

    def to_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> None:
        """Save the head and digests of its files."""
        super().to_disk(path, exclude=tuple(exclude))
        write_digests(Path(path), [name for name in ("cfg", "model") if name not in exclude])

    def from_disk(self, path: str | Path, *, exclude: Iterable[str] = ()) -> Self:
        """Load what `to_disk` saved. Raises ValueError that names a missing or damaged file."""
        folder, exclude = Path(path), tuple(exclude)
        check_digests(folder, self.name, exclude=exclude)
        for name in ("cfg", "model"):
            if name not in exclude and not (folder / name).is_file():
                raise ValueError(f"There is no '{folder / name}' of '{self.name}'. {AGAIN}")
        with in_component(self.name, folder):
            super().from_disk(folder, exclude=exclude)
            self._after_loading()
        return self

    def from_bytes(self, bytes_data: bytes, *, exclude: Iterable[str] = ()) -> Self:
        """Load what `to_bytes` returned."""
        with in_component(self.name):
            super().from_bytes(bytes_data, exclude=tuple(exclude))
            self._after_loading()
        return self

    def _after_loading(self) -> None:
        """Apply the settings of the config after loading.

        A setting that was changed in the config since the head was saved overrides the saved one.
        Otherwise the saved one stays, also where code has changed it (`cfg["threshold"] = …`). With
        another temperature, saved thresholds stand for the same decisions as before. An encoder of
        the head's own (`replace_listeners`) is set up for its own settings.
        """
        saved = self.cfg["config"]
        changed = {
            key: value for key, value in self._config.items() if not is_same(value, saved.get(key))
        }
        if "temperature" in changed:
            self.set_temperature(changed["temperature"] or 1.0)
            changed["thresholds"] = self._config["thresholds"]
        # What is the same is as exact as in the config.
        self.cfg |= {k: v for k, v in self._config.items() if is_same(v, self.cfg.get(k))}
        self.cfg |= changed
        self.cfg["config"] = self._config
        self.check_threshold_labels()
        for label in self.labels:
            self.vocab.strings.add(label)
        for listener in self._listeners():
            listener.trained_on = self.cfg.get("encoder")
            listener.trained_at = self.cfg.get("encoder_updates")
            listener.longest_gap = self.cfg.get("longest_gap", 1)
        for node in self.model.walk():
            if node.name == "bert_encoder" and shim_of(node).has_module:
                prepare(node)


def is_same(one: Any, other: Any) -> bool:
    """Compare two settings. spaCy's JSON rounds numbers to ten digits behind the point, and changes
    the last one of some, such as 0.3."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other, abs_tol=1e-9)
    return one == other
