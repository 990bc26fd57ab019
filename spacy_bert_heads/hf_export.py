"""Write pipelines as Hugging Face checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spacy.language import Language

from .encoder.attention import NAME as ATTENTION
from .encoder.checkpoint import Checkpoint
from .encoder.component import BertEncoder
from .encoder.listener import checkpoint_behind, reads_last_layer
from .encoder.model import checkpoint_of, shim_of
from .encoder.saved import save_model, write_files
from .encoder.shim import DTYPES, check_precision
from .files import fill_folder
from .heads import encoder_decoder
from .heads.decoder import Decoder
from .heads.families import CROSS_ENCODER_SETTINGS, auto_class, layer_names
from .heads.head import BertHead
from .heads.model import DROPOUT_RATES, family_settings
from .heads.modules import Classifier
from .model_card import make_card
from .onnx import OUTPUTS, replace_weights, require_onnx

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The command that makes a folder of each format.
COMMANDS = {"safetensors": "to-hf", "onnx": "to-onnx"}


def to_hf(
    nlp: Language,
    component: str,
    folder: str | Path,
    *,
    format: str = "safetensors",
    precision: str = "fp32",
    force: bool = False,
) -> None:
    """Export a head with its encoder, or an encoder alone, as a Hugging Face folder with a model
    card.

    `component` is the name of a head or of the encoder. `format` is "safetensors", or "onnx" for
    encoder and head as one ONNX file in fp32, see `onnx.replace_weights`. `precision` is that of
    the weights: "fp32", "bf16" or "fp16". The folder is created; it may be empty or an earlier
    export. In any other folder `force` replaces config.json, the model file, the tokenizer files
    and README.md.

    Raises ValueError if there is no such component, format or precision, if Hugging Face has no
    class for the component, if ONNX Runtime computes different logits, or if the folder has other
    files; ImportError if a package for ONNX is missing.
    """
    if component not in nlp.component_names:
        raise ValueError(
            f"The pipeline has no '{component}'. It has: {', '.join(nlp.component_names)}."
        )
    check_precision(precision, DTYPES)
    if format not in COMMANDS:
        raise ValueError(f"Unknown format '{format}'. Choose one of: {', '.join(COMMANDS)}.")
    if format == "onnx":
        require_onnx()
        if precision != "fp32":
            raise ValueError(
                f'precision is "{precision}", but ONNX files are written in fp32. Quantize the '
                "file with ONNX Runtime's tools."
            )
    for _, one in nlp.components:
        if isinstance(one, BertEncoder):
            one.close_step()
    pipe: Any = nlp.get_pipe(component)
    if isinstance(pipe, BertEncoder):
        checkpoint, task = checkpoint_of(pipe.model), "feature-extraction"
        model: Any = copy.deepcopy(_without_adapter(checkpoint))
    elif isinstance(pipe, BertHead):
        task = pipe.hf_task
        if not task:
            raise ValueError(f"Hugging Face has no class for heads like {component}.")
        found = checkpoint_behind(pipe.model.get_ref("tok2vec"))
        if found is None:
            raise ValueError(
                f"Hugging Face has no class for {component}, because it does not read a "
                "bert_encoder."
            )
        if format == "onnx" and task not in OUTPUTS:
            raise ValueError(
                f"{component} writes texts step by step, which one ONNX graph can't do. Export it "
                'with format="safetensors", and give that folder to optimum: `optimum-cli export '
                "onnx --task text2text-generation`."
            )
        checkpoint, model = found, _make_task_model(pipe, found, task)
    else:
        raise ValueError(f"'{component}' is not a component of spacy_bert_heads.")
    with fill_folder(Path(folder), COMMANDS[format], force=force) as made:
        save_model(model.cpu().to(DTYPES[precision]), made)
        write_files(made, checkpoint.tokenizer_files)
        if format == "onnx":
            replace_weights(made, checkpoint, task)
        card = make_card(nlp, component, task, getattr(pipe, "labels", ()), format=format)
        (made / "README.md").write_text(card, encoding="utf8")


def _make_task_model(head: BertHead, checkpoint: Checkpoint, task: str) -> PreTrainedModel:
    """Make Hugging Face's model of a head and its encoder."""
    module = shim_of(head.model).module
    if isinstance(module, Decoder):
        _without_adapter(checkpoint)  # raises
        return encoder_decoder.join(checkpoint, module, head.generation)
    assert isinstance(module, Classifier)
    names = layer_names(checkpoint.family, task)
    _check_shape(head, module, checkpoint)
    config = copy.deepcopy(checkpoint.config)
    if config._attn_implementation == ATTENTION:  # unknown to transformers without this package
        config._attn_implementation = "sdpa"
    config.id2label = dict(enumerate(head.hf_names()))
    config.label2id = {label: i for i, label in config.id2label.items()}
    for name in DROPOUT_RATES:
        if hasattr(config, name):
            setattr(config, name, module.settings["dropout"])
    for name in CROSS_ENCODER_SETTINGS:  # of the original checkpoint
        config.__dict__.pop(name, None)
    for name, value in head.hf_settings().items():
        setattr(config, name, value)
    # In float32, whatever the type of the original checkpoint was.
    model = auto_class(task).from_config(config).float()
    weights = _without_adapter(checkpoint).state_dict()
    missing, _ = model.base_model.load_state_dict(weights, strict=False)
    assert not [name for name in missing if not name.startswith("pooler")], missing
    for ours, theirs in names.items():
        source = module.get_submodule(ours).state_dict()
        model.get_submodule(theirs).load_state_dict(source)
    return model


def _without_adapter(checkpoint: Checkpoint) -> PreTrainedModel:
    """Return the model without its adapter. Raises ValueError if Hugging Face has no class for the
    encoder."""
    if checkpoint.adapter is not None and checkpoint.adapter.kind != "lora":
        raise ValueError(
            "Hugging Face's classes don't support bottleneck adapters. Train with adapter = "
            '"lora", which is merged into the weights, or without an adapter.'
        )
    return checkpoint.without_adapter()


def _check_shape(head: BertHead, module: Classifier, checkpoint: Checkpoint) -> None:
    """Raise ValueError if Hugging Face's class for the family does not have the layers of a
    head."""
    if not reads_last_layer(head.model.get_ref("tok2vec")) or module.settings.get("lstm_width"):
        raise ValueError(
            f"Hugging Face has no class for {head.name}: its heads read the last layer, without an "
            "LSTM. Train it with layers = [-1] in model.tok2vec and lstm_width = 0 in its model."
        )
    if module.settings.get("crf"):
        raise ValueError(
            f"Hugging Face has no class for {head.name}, a conditional random field. Train it "
            'with loss = "softmax".'
        )
    expected = family_settings(checkpoint.config, type(module), dropout=module.settings["dropout"])
    for name, value in expected.items():
        if module.settings.get(name) != value:
            raise ValueError(
                f"Hugging Face's '{checkpoint.family}' models have no head of this shape: "
                f"{head.name} has {name} = {module.settings.get(name)!r}. Train it with "
                'pooling = "pooler", as in Hugging Face\'s classes.'
            )
