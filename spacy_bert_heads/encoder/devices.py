"""Which devices are supported, and what their hardware can do."""

from functools import cache

import torch


def check_device(device: torch.device) -> None:
    """Raise ValueError for a device that is neither a CPU nor an NVIDIA GPU."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"The device '{device}' is not supported: this package runs on CPUs and on NVIDIA's "
            "GPUs. Leave out spacy.require_gpu(), spacy.prefer_gpu() and --gpu-id to use the CPU."
        )


@cache
def is_ampere(device: torch.device) -> bool:
    """Return whether a GPU is of the Ampere generation (2020) or later. Older ones emulate bf16 and
    have no kernel for sequences of different lengths."""
    return torch.cuda.get_device_capability(device) >= (8, 0)
