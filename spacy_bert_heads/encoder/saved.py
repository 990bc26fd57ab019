"""A saved encoder: a Hugging Face folder, separately saved trained weights, and its origin."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..files import AGAIN, naming, replace_file
from ..text.wordpieces import WordpieceTokenizer
from .adapters import (
    AdapterSettings,
    assume_merged,
    digest_embeddings,
    merge_adapter,
    trained_weights,
    without_adapter,
)
from .checkpoint import Checkpoint, Files
from .encoder import Encoder
from .identity import identify
from .loading import load_checkpoint, make_model, pad_id_of, quiet
from .source import Source, open_files
from .untrusted import NotBert, read_config, read_tokenizer_settings, read_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The files of a saved encoder: the checkpoint, separately saved trained weights, the origin. Of the
# tokenizer's files we read tokenizer.json only; the others are for users of the folder in Hugging
# Face's libraries.
SAVED_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
SAVED = (
    *("config.json", "model.safetensors", *SAVED_TOKENIZER),
    *("trained.json", "trained.safetensors", "origin.json"),
)


def encoder_to_files(encoder: nn.Module, *, share: bool = False) -> Files:
    """Serialize an encoder to the named files that `write_checkpoint` writes, in memory."""
    assert isinstance(encoder, Encoder)
    with tempfile.TemporaryDirectory() as folder, naming(folder):
        names = write_checkpoint(encoder.checkpoint, Path(folder), share=share)
        return {name: (Path(folder) / name).read_bytes() for name in names}


def write_checkpoint(checkpoint: Checkpoint, folder: Path, *, share: bool = False) -> list[str]:
    """Write a checkpoint into a folder, as files from `SAVED`: the files of a Hugging Face folder;
    the trained weights, if there is an adapter or with `share`; and the origin. With `share` the
    Hugging Face files are left out.

    Weights are written without a copy in memory. Returns the names of the files. Raises OSError
    with the path.
    """
    from safetensors.torch import save

    files: Files = {}
    if checkpoint.origin:
        files["origin.json"] = json.dumps(checkpoint.origin, indent=1).encode("utf8")
    if share:
        _check_shareable(checkpoint)
    if share or checkpoint.adapter is not None:
        # What was learned before an adapter was added is only in the weights without its product.
        was_merged = share and merge_adapter(checkpoint.model, False)
        trained = trained_weights(checkpoint.model, checkpoint.learned if share else ())
        weights = {name: weight.cpu().contiguous() for name, weight in trained.items()}
        adapter = None if checkpoint.adapter is None else list(checkpoint.adapter)
        files["trained.json"] = json.dumps({"adapter": adapter}).encode("utf8")
        files["trained.safetensors"] = save(weights)
        if was_merged:
            merge_adapter(checkpoint.model, True)
    names = list(files)
    if not share:
        files |= checkpoint.tokenizer_files
        names = [*files, "config.json", "model.safetensors"]
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as beside:
            save_model(checkpoint.without_adapter(), Path(beside))
            for name in ("config.json", "model.safetensors"):
                (Path(beside) / name).replace(folder / name)
    write_files(folder, files)
    return names


def _check_shareable(checkpoint: Checkpoint) -> None:
    """Raise ValueError if a pipeline can't be loaded with the weights of its original
    checkpoint."""
    if "weights" not in checkpoint.origin:
        raise ValueError(
            "The pipeline can't share its checkpoint: it was trained without share_checkpoint, or "
            "layers were removed, so other weights than the saved ones would be loaded. Set "
            "share_checkpoint = false in [components.bert_encoder.model]."
        )


def save_model(
    model: PreTrainedModel, folder: Path, state: dict[str, torch.Tensor] | None = None
) -> None:
    """Write config.json and model.safetensors as transformers does, with all weights in one file.
    `state` are the tensors to write, all of the model's by default. Raises OSError with the
    folder's path."""
    from safetensors import SafetensorError

    try:
        with quiet(), naming(folder):
            model.save_pretrained(
                folder, state_dict=state, safe_serialization=True, max_shard_size="1TB"
            )
    except SafetensorError as error:  # has the OSError as text only
        raise OSError(f"Can't write the weights to '{folder}': {error}") from error
    # safetensors makes files that only their owner can read, whatever the umask is.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")


def write_files(folder: Path, files: Files) -> None:
    """Write files into a folder, each atomically. Raises OSError with the path."""
    for name, content in files.items():
        replace_file(folder / name, content)


def encoder_from_files(files: Files, *, name: str = "", revision: str | None = None) -> Encoder:
    """Make an encoder from what `encoder_to_files` returned, as `read_checkpoint` does."""
    saved = open_files(files, "the saved encoder")
    return Encoder(read_checkpoint(saved, name=name, revision=revision))


def read_checkpoint(saved: Source, *, name: str = "", revision: str | None = None) -> Checkpoint:
    """Make a checkpoint from what `write_checkpoint` wrote, with LoRA merged into its weights. Peak
    memory is that of the weights.

    It needs no network, unless the checkpoint is shared and `name` is a hub name. Then it is read
    at `revision`, by default at the commit that the pipeline was trained on.

    Raises ValueError if a file is missing or damaged, or the shared checkpoint is not the one that
    the pipeline was trained on.
    """
    origin = _read_json(saved, "origin.json") or {}
    about = _read_json(saved, "trained.json")
    shared = about is not None and saved.find("model.safetensors") is None
    if shared:
        if revision is None and origin.get("name") == name:
            revision = origin.get("revision")
        checkpoint = load_checkpoint(name, revision)
        add_identity(checkpoint)
        ids = {key: value for key, value in origin.items() if key in ("id", "updates")}
        checkpoint.origin |= ids
    else:
        checkpoint = _read_whole(saved)
        checkpoint.origin = origin
    if about is not None:
        if shared:
            _check_shared(checkpoint, name, origin, about)
        _add_trained(checkpoint, saved, about, is_merged=not shared)
    return checkpoint


def add_identity(checkpoint: Checkpoint) -> None:
    """Add its digests to the origin of a loaded checkpoint, for pipelines that share it."""
    tokenizer = checkpoint.tokenizer_files["tokenizer.json"].decode("utf8")
    checkpoint.origin |= identify(checkpoint.model, tokenizer)


def _check_shared(
    checkpoint: Checkpoint, name: str, wanted: dict[str, Any], about: dict[str, Any]
) -> None:
    """Raise ValueError if a shared checkpoint is not the one that the pipeline was trained on."""
    found = checkpoint.origin
    parts = [part for part in ("weights", "tokenizer", "config") if part in wanted]
    differ: list[str] = [part for part in parts if wanted[part] != found[part]]
    if not parts:  # saved by version 0.1, which digested the embeddings only
        is_same = about.get("embeddings") == digest_embeddings(checkpoint.model)
        differ = [] if is_same else ["embeddings"]
    if differ:
        raise ValueError(
            f"The pipeline was trained on another checkpoint than '{name}' is now: its "
            f"{' and '.join(differ)} differ. Set the encoder's name, and on the hub its revision, "
            "to those that it was trained on: spacy.load(…, config={'components': "
            "{'bert_encoder': {'model': {'name': …, 'revision': …}}}})."
        )


def _read_json(saved: Source, file: str) -> dict[str, Any] | None:
    try:
        return saved.read_json(file)
    except ValueError as error:
        raise ValueError(f"The saved encoder is damaged: {error}\n{AGAIN}") from error


def _add_trained(
    checkpoint: Checkpoint, saved: Source, about: dict[str, Any], *, is_merged: bool
) -> None:
    """Load the trained weights into a checkpoint."""
    from safetensors.torch import load

    content = saved.read("trained.safetensors")
    if content is None:
        raise ValueError(f"The saved encoder has no trained.safetensors. {AGAIN}")
    try:
        adapter = about["adapter"]
        settings = adapter and AdapterSettings(*adapter)
        weights = load(content)
    except Exception as error:  # Python and safetensors raise different classes
        message = f"The encoder's trained.json or trained.safetensors is damaged: {error!r}"
        raise ValueError(f"{message}\n{AGAIN}") from error
    if settings:
        checkpoint.add_adapter(settings)
        if is_merged:
            assume_merged(checkpoint.model)
    try:
        _, unexpected = checkpoint.model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"The saved encoder is damaged: {error}\n{AGAIN}") from error
    if unexpected:
        raise ValueError(f"The checkpoint has no {unexpected[0]}. {AGAIN}")
    checkpoint.learned |= {without_adapter(name) for name in weights}
    merge_adapter(checkpoint.model, True)


def _read_whole(saved: Source) -> Checkpoint:
    """Make the checkpoint of a saved pipeline, whose tokenizer `tokenizer_to_files` has written."""
    from tokenizers import Tokenizer
    from transformers import AutoModel

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if saved.find(name) is None:
            raise ValueError(f"The saved encoder has no {name}. {AGAIN}")
    try:
        config = read_config(saved)
        model, _ = make_model(saved.name, AutoModel, config, read_weights(saved))
        files = {name: saved.read(name) for name in SAVED_TOKENIZER}
        tokenizer_files = {name: content for name, content in files.items() if content is not None}
        settings = json.dumps(read_tokenizer_settings(saved), indent=2)
        tokenizer_files["tokenizer_config.json"] = settings.encode("utf8")
        tokenizer = Tokenizer.from_str(tokenizer_files["tokenizer.json"].decode("utf8"))
        fast = WordpieceTokenizer(tokenizer, pad_id=pad_id_of(config))
        return Checkpoint(model, fast, tokenizer_files)
    except NotBert:
        raise
    except Exception as error:  # transformers, torch and tokenizers raise different classes
        raise ValueError(f"The saved encoder is damaged: {error}\n{AGAIN}") from error
