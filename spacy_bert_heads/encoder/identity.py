"""The identity of a checkpoint: digests of its tensors, tokenizer and configuration."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any
from uuid import uuid4

import torch
from torch import nn

from .checkpoint import Checkpoint

# Settings that affect hidden states but not the shape of any tensor, with the value for families
# that don't have them. Their names are the same in transformers 4 and 5.
_SETTINGS = {
    **dict.fromkeys(("model_type", "num_attention_heads", "num_hidden_layers"), None),
    **dict.fromkeys(("activation", "hidden_act", "hidden_activation"), None),
    **dict.fromkeys(("layer_norm_eps", "norm_eps", "rms_norm_eps"), None),
    **dict.fromkeys(("inner_group_num", "num_hidden_groups"), None),
    **dict.fromkeys(("max_relative_positions", "position_buckets", "pos_att_type"), None),
    **dict.fromkeys(("is_decoder", "relative_attention", "share_att_key"), False),
    "local_attention": None,
    "pad_token_id": None,
}


def identify(encoder: Any, tokenizer: str) -> dict[str, str]:
    """Return the digests of an encoder (a PreTrainedModel), its tokenizer (the content of
    tokenizer.json) and its configuration. They don't depend on file formats and library
    versions."""
    settings = {name: getattr(encoder.config, name, value) for name, value in _SETTINGS.items()}
    return {
        "weights": digest_weights(encoder),
        "tokenizer": _digest_json(_without_defaults(_with_pairs(json.loads(tokenizer)))),
        "config": _digest_json(settings),
    }


def assign_id(checkpoint: Checkpoint) -> None:
    """Assign a new random id to the checkpoint of a new pipeline. Heads that are trained on it save
    the id, so that they are not used with another encoder by mistake."""
    checkpoint.origin |= {"id": uuid4().hex, "updates": 0}


def count_update(checkpoint: Checkpoint) -> None:
    """Count an update of the weights. A checkpoint that was saved by version 0.1 gets an id at its
    first update."""
    if "id" not in checkpoint.origin:
        assign_id(checkpoint)
    checkpoint.origin["updates"] += 1


def digest_weights(module: nn.Module) -> str:
    """Return the digest of the names, types, shapes and values of all parameters."""
    digest = sha256()
    for name, weight in sorted(module.named_parameters()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest_json(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf8")).hexdigest()


def _with_pairs(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Convert BPE's merges to the form of the tokenizers library since version 0.20."""
    merges = tokenizer.get("model", {}).get("merges")
    if merges:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        tokenizer = tokenizer | {"model": tokenizer["model"] | {"merges": pairs}}
    # Truncation and padding are set by the program that uses the tokenizer.
    return {k: v for k, v in tokenizer.items() if k not in ("version", "truncation", "padding")}


def _without_defaults(value: Any) -> Any:
    """Remove settings that are off, which newer versions of the library add."""
    if isinstance(value, dict):
        return {k: _without_defaults(v) for k, v in value.items() if v not in (None, False, [], {})}
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    return value
