"""Run tests on a stand-in for a GPU: `make stand-in`.

The stand-in is a device of torch that computes on the CPU, but is as strict as a GPU: an operator
with tensors of both devices fails. So code that forgets to move a tensor fails here too. It has no
kernels, streams or half precision, no LSTM, no cupy, and no gradients of inputs as `explain` needs.
For torch 2.13, whose devices in Python are experimental.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
# Operators that take tensors of both devices on a GPU too.
MOVES = ("aten::_to_copy", "aten::copy_")
INDEXES = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


class Backend:
    """What torch asks a device for."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, Backend())
DEVICE = torch.device(NAME, 0)


class OnDevice(torch.Tensor):
    """A tensor on the stand-in, with the tensor `raw` of the CPU that has its values."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        made.raw = raw
        return made

    def __repr__(self, **options: Any) -> str:
        return f"OnDevice({self.raw!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.raw.__reduce_ex__(protocol)  # loaded to the CPU, as our files are

    def untyped_storage(self) -> Any:
        return self.raw.untyped_storage()  # its address tells which tensors share memory


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the CPU. Raises RuntimeError if its tensors are on both devices."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    moved = [one for one in tensors if isinstance(one, OnDevice)]
    name = func._schema.name
    takes_both = name in MOVES or (name in INDEXES and isinstance(args[0], OnDevice))
    for one in tensors if moved and not takes_both else ():
        if not isinstance(one, OnDevice) and one.dim():  # a number may be on the CPU
            raise RuntimeError(f"{name}: a tensor {tuple(one.shape)} is on the CPU")
    on_device = bool(moved)
    if name == "aten::copy_":
        on_device = isinstance(args[0], OnDevice)
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]).type == NAME
        kwargs = kwargs | {"device": torch.device("cpu")}
    found = func(*tree_map(bare, args), **tree_map(bare, kwargs))
    known = {id(one.raw): one for one in moved}  # what an operator changes in place, it returns
    return tree_map(lambda one: wrap(one, known), found) if on_device else found


def bare(value: Any) -> Any:
    return value.raw if isinstance(value, OnDevice) else value


def wrap(value: Any, known: dict[int, OnDevice]) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(value, OnDevice):
        return value
    return known[id(value)] if id(value) in known else OnDevice(value)


def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> Any:
    bare(target).copy_(bare(source))
    return target


def register() -> torch.library.Library:
    """Give the device its own memory, where no tensor of it is an argument."""
    library = torch.library.Library("aten", "IMPL")
    for name, overload in (("empty", "memory_format"), ("empty_strided", "default")):
        func = getattr(getattr(torch.ops.aten, name), overload)
        full = name if overload == "default" else f"{name}.{overload}"
        library.impl(full, lambda *a, func=func, **k: run(func, a, k), "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    return library


LIBRARY = register()


@pytest.fixture(autouse=True, scope="session")
def on_stand_in() -> None:
    """Make components put their weights on the device, as after `spacy.require_gpu()`."""
    from spacy_bert_heads.encoder import shim

    shim.get_torch_default_device = lambda: DEVICE
    shim.check_device = lambda device: None
    # Tests compare values, with the CPU's too.
    torch.testing.assert_close = partial(torch.testing.assert_close, check_device=False)
