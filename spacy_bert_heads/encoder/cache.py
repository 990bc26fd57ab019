"""Hidden states of a frozen encoder on disk, computed once for all epochs (BERT, section 5.3)."""

import os
import warnings
from hashlib import blake2b
from io import BufferedIOBase
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch

from ..text.batch import PackedBatch
from .hidden_states import HiddenStates
from .identity import digest_weights
from .model import EncoderModel, checkpoint_of, encode, layers_of, shim_of

# For each window: the digest of its wordpieces, its first row, its number of rows.
ENTRY = np.dtype([("key", "V16"), ("row", "<i8"), ("n_rows", "<i8")])


class StatesCache:
    """A cache of hidden states on disk, by the wordpieces of each window. Windows are stored one by
    one, because heads choose other windows of a text in every epoch.

    Each process appends to its own files and reads those of all processes. An entry is written
    after its hidden states, so incomplete ones of a killed process are not found. `folder` is
    created if needed and gets a subfolder for each encoder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._version: tuple | None = None  # of the files that are open
        self._digest = ""  # of weights, layers and precision
        self._off = False
        self._pid = os.getpid()
        self._width = 0
        self._files: list[BufferedIOBase] = []
        self._places: dict[bytes, tuple[BufferedIOBase, int]] = {}  # file, first row
        self._own: tuple[BufferedIOBase, BufferedIOBase] | None = None  # hidden states, entries
        self._n_rows = 0  # in the own file of hidden states

    def encode(self, model: EncoderModel, batch: PackedBatch) -> HiddenStates:
        """Return the hidden states of a batch, bitwise equal to those of the first computation.
        After an update of the encoder nothing is cached any more."""
        if not self._open(model):
            return encode(model, batch)
        lengths = batch.seqlens
        begins = batch.cu_seqlens[:-1].tolist()
        keys = _digest_each(batch)
        missing = {key: i for i, key in enumerate(keys) if key not in self._places}
        if missing and not self._add(model, batch, list(missing.values()), list(missing)):
            return encode(model, batch)
        states = np.empty((len(batch.input_ids), self._width), dtype="<f4")
        for key, begin, n in zip(keys, begins, lengths.tolist(), strict=True):
            file, row = self._places[key]
            file.seek(row * self._width * 4)
            file.readinto(states[begin : begin + n].view("B").data)
        on_device = torch.from_numpy(states).to(shim_of(model).device)
        return HiddenStates(on_device, batch, layers_of(model))

    def _open(self, model: EncoderModel) -> bool:
        """Open the files for the present state of an encoder. Returns False if caching is off."""
        checkpoint, shim, layers = checkpoint_of(model), shim_of(model), layers_of(model)
        version = shim.version, layers, shim.precision
        if self._pid != os.getpid():
            # A forked worker shares the file positions of its parent.
            self._pid, self._version = os.getpid(), None
        if self._off or version == self._version:
            return not self._off
        had, weights = self._version, digest_weights(checkpoint.model)
        digest = blake2b(repr((weights, *version[1:])).encode(), digest_size=16).hexdigest()
        if had is not None and had[1:] == version[1:] and digest != self._digest:
            self._stop(
                "The encoder learns, so its hidden states are not cached. Add its name to "
                "[training] frozen_components, or remove cache_states from [initialize]."
            )
            return False
        self._version, self._digest = version, digest
        self._width = checkpoint.hidden_size * len(layers)
        self._close()
        try:
            self._read(self.folder / digest)
        except OSError as error:
            self._stop(f"The states can't be kept in '{self.folder}' ({error}). Training goes on.")
        return not self._off

    def _read(self, folder: Path) -> None:
        """Read the existing entries, and create files for this process."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.entries")):
            states = path.with_suffix(".states").open("rb")
            self._files.append(states)
            n_rows = states.seek(0, 2) // (self._width * 4)
            for entry in np.fromfile(path, dtype=ENTRY):
                if entry["row"] + entry["n_rows"] <= n_rows:
                    self._places.setdefault(entry["key"].tobytes(), (states, int(entry["row"])))
        name = uuid4().hex
        self._own = (
            (folder / f"{name}.states").open("w+b"),
            (folder / f"{name}.entries").open("wb"),
        )
        self._files += self._own
        self._n_rows = 0

    def _add(
        self, model: EncoderModel, batch: PackedBatch, windows: list[int], keys: list[bytes]
    ) -> bool:
        """Compute and write missing windows. Returns False if they can't be written."""
        chosen = np.asarray(windows, dtype=np.int64)
        part, _ = batch.take_windows(chosen, np.ones_like(chosen))  # each as a separate text
        states = encode(model, part).states.cpu().numpy()
        sizes = part.seqlens
        entries = np.empty(len(keys), dtype=ENTRY)
        entries["key"] = np.frombuffer(b"".join(keys), dtype="V16")
        entries["row"] = self._n_rows + np.cumsum(sizes) - sizes
        entries["n_rows"] = sizes
        assert self._own is not None
        own_states, own_entries = self._own
        try:
            own_states.seek(self._n_rows * self._width * 4)
            own_states.write(np.ascontiguousarray(states, dtype="<f4").tobytes())
            own_states.flush()
            own_entries.write(entries.tobytes())
            own_entries.flush()
        except OSError as error:
            self._stop(f"The states can't be kept in '{self.folder}' ({error}). Training goes on.")
            return False
        for key, row in zip(keys, entries["row"].tolist(), strict=True):
            self._places[key] = own_states, row
        self._n_rows += len(states)
        return True

    def _stop(self, message: str) -> None:
        self._off = True
        self._close()
        warnings.warn(message, stacklevel=2)

    def _close(self) -> None:
        for file in self._files:
            file.close()
        self._files, self._places, self._own = [], {}, None


def _digest_each(batch: PackedBatch) -> list[bytes]:
    """Return the digest of each window's ids and types."""
    read = np.stack((batch.input_ids, batch.token_type_ids), axis=1)
    bounds = pairwise(batch.cu_seqlens.tolist())
    return [blake2b(read[begin:end].tobytes(), digest_size=16).digest() for begin, end in bounds]
