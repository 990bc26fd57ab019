"""Hugging Face folders with encoder and head as one ONNX file, for ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from .encoder.checkpoint import Checkpoint
from .encoder.loading import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "model.onnx"  # optimum's name for it
TOLERANCE = 1e-3  # the maximum difference of logits between torch and ONNX Runtime
# The first opset with LayerNormalization as one operator.
OPSET = 17
TRACED = (2, 16)  # number of sequences and wordpieces in the trace
OPTIONS = 3  # number of options of each choice in the trace
LONGEST = 300  # wordpieces, in the comparison with torch
# The dynamic axes of each class's outputs. Remaining axes are those of labels.
OUTPUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "token-classification": {"logits": ("batch_size", "sequence_length")},
    "text-classification": {"logits": ("batch_size",)},
    "question-answering": {
        "start_logits": ("batch_size", "sequence_length"),
        "end_logits": ("batch_size", "sequence_length"),
    },
    "multiple-choice": {"logits": ("batch_size", "num_choices")},
    "feature-extraction": {"last_hidden_state": ("batch_size", "sequence_length")},
}


class _Traced(nn.Module):
    """A model with positional inputs that returns a tuple of some outputs, for tracing."""

    def __init__(
        self, model: PreTrainedModel, inputs: list[str], outputs: list[str], *, adds_types: bool
    ) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs
        self.adds_types = adds_types

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = dict(zip(self.inputs, values, strict=True))
        if self.adds_types:  # transformers' default would have the length of the trace
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        output = self.model(**inputs)
        return tuple(output[name] for name in self.outputs)


def require_onnx() -> None:
    """Raise ImportError that says what to install if a package for the export is missing."""
    try:
        import onnx  # noqa: F401  (torch's exporter needs it)
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{error.name} is not installed, which an ONNX export needs: "
            "pip install 'spacy_bert_heads[onnx]'"
        ) from error


def replace_weights(folder: Path, checkpoint: Checkpoint, task: str) -> None:
    """Replace model.safetensors of a Hugging Face folder by model.onnx, a graph for any number of
    sequences (and options) of any length.

    Its inputs are `input_ids`, `attention_mask` and, if the checkpoint was trained with them,
    `token_type_ids`, int64 (batch_size, sequence_length), for multiple choice (batch_size,
    num_choices, sequence_length). Its outputs have the names of the Hugging Face class.

    torch's TorchScript exporter traces the graph: it takes 0.2 seconds for a model of two layers,
    the newer exporter 5. A trace can contain constants that depend on the shape of its example, so
    ONNX Runtime then runs the file on other shapes. Raises ValueError if a logit differs by more
    than 1e-3 from torch's.
    """
    import transformers

    with quiet():
        name = transformers.AutoConfig.from_pretrained(folder).architectures[0]
        # Eager attention consists of plain operators only.
        model = getattr(transformers, name).from_pretrained(folder, attn_implementation="eager")
    inputs = _make_inputs(model, checkpoint, task, *TRACED)
    outputs = OUTPUTS[task]
    adds_types = checkpoint.takes("token_type_ids") and "token_type_ids" not in inputs
    traced = _Traced(model, list(inputs), list(outputs), adds_types=adds_types).eval()
    axes = ("batch_size", "num_choices", "sequence_length")
    dynamic = dict.fromkeys(inputs, axes if task == "multiple-choice" else axes[::2]) | outputs
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the comparison finds what matters
        torch.onnx.utils.export(
            traced,
            tuple(inputs.values()),
            str(folder / FILE),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(enumerate(named)) for name, named in dynamic.items()},
            opset_version=OPSET,
        )
    (folder / "model.safetensors").unlink()
    _compare(folder / FILE, traced, checkpoint, task)


def _make_inputs(
    model: PreTrainedModel, checkpoint: Checkpoint, task: str, batch_size: int, length: int
) -> dict[str, torch.Tensor]:
    """Make random inputs. The second half of the last sequence is padding."""
    shape = (batch_size, OPTIONS, length) if task == "multiple-choice" else (batch_size, length)
    chance = np.random.default_rng(length)
    pad_id = checkpoint.tokenizer.pad_id
    ids = chance.integers(0, model.config.vocab_size - 1, shape)
    ids += ids >= pad_id  # any id except that of padding
    mask = np.ones_like(ids)
    mask[-1, ..., (length + 1) // 2 :] = 0
    ids[mask == 0] = pad_id
    inputs = {"input_ids": ids, "attention_mask": mask}
    if checkpoint.uses_token_types:
        types = np.zeros_like(ids)
        types[..., length // 3 :] = 1
        inputs["token_type_ids"] = types * mask
    return {name: torch.from_numpy(values) for name, values in inputs.items()}


def _compare(file: Path, traced: _Traced, checkpoint: Checkpoint, task: str) -> None:
    """Raise ValueError if ONNX Runtime and torch compute different logits for other shapes than
    that of the trace."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session: Any = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    longest = min(checkpoint.max_window, LONGEST)
    for batch_size, length in ((1, longest), (3, 7), (2, longest // 2 + 1)):
        inputs = _make_inputs(traced.model, checkpoint, task, batch_size, length)
        with torch.no_grad():
            expected = traced(*inputs.values())
        found = session.run(None, {name: values.numpy() for name, values in inputs.items()})
        present = inputs["attention_mask"].bool().numpy()
        for (output, axes), ours, theirs in zip(
            OUTPUTS[task].items(), expected, found, strict=True
        ):
            difference = np.abs(ours.numpy() - theirs)
            if "sequence_length" in axes:  # values for padding are not used
                difference = difference[present]
            if not difference.max() <= TOLERANCE:
                raise ValueError(
                    f"The {output} of the ONNX file differ from torch's by up to "
                    f"{difference.max():.2g}, for {batch_size} sequences of {length} wordpieces: "
                    f"'{checkpoint.family}' models can't be exported to ONNX with this version of "
                    "torch and transformers. Save the checkpoint with to_hf and export it with "
                    "optimum-cli."
                )
