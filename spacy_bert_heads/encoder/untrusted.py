"""Read untrusted checkpoints, their configuration, tokenizer and weights, as data only.

transformers treats parts of these files as more than data. It imports modules that `auto_map`
names, loads kernels that `_attn_implementation` names (CVE-2026-4372), follows nested
configurations to other repositories (CVE-2026-5241) and writes files under names from a tokenizer
(CVE-2026-9856). So all files are read here first: settings are rebuilt key by key from allow-lists,
classes are chosen by the model type, tensors are passed in memory.
"""

from __future__ import annotations

import json
import re
import tempfile
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..files import naming
from .source import CONFIG, TOKENIZER, TOKENIZER_SETTINGS, Source

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers import PreTrainedTokenizerFast as FastTokenizer

# Model types of encoders like BERT; tests/test_families.py compares each with transformers. Not
# ConvBERT and Nyströmformer, whose hidden states depend on the amount of padding.
FAMILIES = (
    "albert",
    "bert",
    "big_bird",
    "camembert",
    "data2vec-text",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "eurobert",
    "gte",
    "jina_embeddings_v3",
    "longformer",
    "megatron-bert",
    "mobilebert",
    "modernbert",
    "mpnet",
    "nomic_bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roformer",
    "splinter",
    "ultrabert",
    "xlm-roberta",
    "xlm-roberta-xl",
)
# Settings of a configuration that its class does not list among its parameters.
_MORE_SETTINGS = {
    # of any model; transformers 4 has them in **kwargs
    *("architectures", "id2label", "label2id", "num_labels", "problem_type"),
    *("bos_token_id", "cls_token_id", "eos_token_id", "mask_token_id", "pad_token_id"),
    *("sep_token_id", "is_decoder", "is_encoder_decoder", "tie_word_embeddings", "pruned_heads"),
    "add_cross_attention",  # of a decoder
    # of sentence-transformers: a cross-encoder and its activation
    *("sbert_ce_default_activation_function", "sentence_transformers"),
    # DeBERTa reads these with a default (transformers, modeling_deberta_v2.py)
    *("attention_head_size", "cls_dropout", "conv_act", "conv_groups", "conv_kernel_size"),
    *("embedding_size", "norm_rel_ebd", "position_buckets", "share_att_key", "talking_head"),
    # ModernBERT's and EuroBERT's names in transformers 4, UltraBERT's first names
    *("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta", "rope_scaling"),
    *("attention_windows", "rope_theta"),
}
# Parameters of configuration classes for running a model, which don't describe the model.
_NO_SETTINGS = {
    *("self", "kwargs", "dtype", "return_dict", "output_attentions", "output_hidden_states"),
    *("torchscript", "transformers_version", "tokenizer_class", "prefix", "task_specific_params"),
    *("finetuning_task", "decoder_start_token_id", "use_cache", "chunk_size_feed_forward"),
}
_NESTED = {
    *("id2label", "label2id", "pruned_heads", "rope_parameters", "rope_scaling"),
    "sentence_transformers",
}
_TOKENIZER_KEYS = {
    *("add_prefix_space", "added_tokens_decoder", "additional_special_tokens", "do_basic_tokenize"),
    *("clean_up_tokenization_spaces", "do_lower_case", "extra_special_tokens", "keep_accents"),
    *("model_input_names", "model_max_length", "padding_side", "split_by_punct", "strip_accents"),
    *("tokenize_chinese_chars", "tokenizer_class", "trim_offsets", "truncation_side", "vocab_type"),
    *(f"{name}_token" for name in ("bos", "cls", "eos", "mask", "pad", "sep", "unk")),
}
_ADAPTER = "adapter_config.json"  # of peft
_FRAMEWORKS = (
    ("tf_model.h5", "TensorFlow", "from_tf"),
    ("flax_model.msgpack", "Flax", "from_flax"),
)
ANY_FAST_TOKENIZER = "PreTrainedTokenizerFast"
# Before this version a file can run code despite `weights_only=True` (CVE-2025-32434 and later).
_SAFE_UNPICKLING = (2, 10)


# --- configuration


def read_config(source: Source) -> PretrainedConfig:
    """Make a checkpoint's configuration from its config.json.

    The class is chosen by `model_type`. Keys that are not known to describe a model are dropped.

    Raises ValueError if there is no config.json, if the model is not an encoder like BERT, or if
    the installed transformers does not have the type.
    """
    raw = source.read_json(CONFIG)
    if raw is None:
        if source.find(_ADAPTER) is not None:
            raise NotBert(f"'{source.name}' has no weights of its own. {_without_weights(source)}")
        raise ValueError(f"there is no {CONFIG}.")
    family = raw.get("model_type")
    if family not in FAMILIES or raw.get("is_encoder_decoder"):
        said = f"is a {family!r} model" if family else "has no model_type in its config.json"
        raise NotBert(
            f"'{source.name}' {said}, not an encoder of BERT's shape. "
            f"Its model_type must be one of: {', '.join(FAMILIES)}."
        )
    from transformers import CONFIG_MAPPING

    try:
        config_class = CONFIG_MAPPING[family]
    except KeyError:
        raise NotBert(
            f"'{source.name}' is a '{family}' model, which the installed transformers doesn't "
            "have. Install a newer one: pip install -U transformers"
        ) from None
    known = (set(signature(config_class.__init__).parameters) | _MORE_SETTINGS) - _NO_SETTINGS
    settings = {key: value for key, value in raw.items() if _is_setting(key, value, known)}
    return config_class(**settings)


class NotBert(ValueError):
    """A checkpoint of an unsupported kind. The message is complete: callers add nothing to it."""


def _is_setting(key: str, value: Any, known: set[str]) -> bool:
    return key in known and _is_plain(value, depth=2 if key in _NESTED else 0)


def _is_plain(value: Any, *, depth: int) -> bool:
    """Return whether a value is None, a number, a string, or a list or dict of such values, with at
    most `depth` nested dicts."""
    if isinstance(value, dict):
        return depth > 0 and all(_is_plain(item, depth=depth - 1) for item in value.values())
    if isinstance(value, list):
        return all(_is_plain(item, depth=depth) for item in value)
    return value is None or isinstance(value, str | int | float)


# --- tokenizer


def read_tokenizer(source: Source, config: PretrainedConfig | None) -> FastTokenizer:
    """Load a tokenizer with transformers, from copies of its files with rebuilt settings.

    `config` determines the class if the tokenizer's own settings don't. The copies are in a
    temporary folder, which is deleted afterwards; nothing else is written.

    Raises NotBert if the tokenizer has no fast version, ValueError if it can't be read or has no
    vocabulary, and OSError, with its path, if the temporary folder is full.
    """
    from transformers import AutoTokenizer

    files = {name: content for name in TOKENIZER if (content := source.read(name)) is not None}
    if "tokenizer.json" in files:
        _check_tokenizer(files["tokenizer.json"])
    missing = ""
    if files.keys() <= {*TOKENIZER_SETTINGS, "added_tokens.json"}:  # CANINE needs no others
        missing = (
            f"it has no tokenizer, none of {', '.join(TOKENIZER)}. Put in the one that it was "
            f"trained with: AutoTokenizer.from_pretrained(…).save_pretrained('{source.name}')."
        )
    for name in TOKENIZER_SETTINGS:
        settings = read_tokenizer_settings(source, name)
        if config is None and "tokenizer.json" in files:
            settings.setdefault("tokenizer_class", ANY_FAST_TOKENIZER)
        files[name] = json.dumps(settings).encode("utf8")
    with tempfile.TemporaryDirectory() as folder:
        with naming(folder):
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=config, use_fast=True, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises Exception itself
            raise ValueError(missing or str(error).replace(folder, source.name)) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        # transformers 5 makes an empty vocabulary.
        raise ValueError(missing or "The tokenizer has no vocabulary.")
    if not tokenizer.is_fast:
        raise NotBert(
            f"The tokenizer of '{source.name}' has no fast version, so it has no character "
            "offsets. Add a tokenizer.json: AutoTokenizer.from_pretrained(…, use_fast=True)"
            ".save_pretrained(…), with `pip install sentencepiece tiktoken` if it asks for them."
        )
    return tokenizer


def _check_tokenizer(content: bytes) -> None:
    """Raise ValueError if tokenizer.json can't be read; transformers would then try other files."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(content.decode("utf8"))
    except Exception as error:  # the tokenizers library raises Exception itself
        raise ValueError(f"tokenizer.json is damaged: {error}") from error


def read_tokenizer_settings(source: Source, file: str = TOKENIZER_SETTINGS[0]) -> dict[str, Any]:
    """Return the settings of a tokenizer and its special tokens in a file, without templates and
    names of modules; empty if there is no such file. Raises ValueError if it is not a JSON
    object."""
    raw = source.read_json(file) or {}
    settings = {
        key: value
        for key, value in raw.items()
        if key in _TOKENIZER_KEYS and _is_plain(value, depth=2)
    }
    name = settings.pop("tokenizer_class", None)
    if _is_tokenizer_class(name):
        settings["tokenizer_class"] = name
    elif name is not None and source.find("tokenizer.json") is not None:
        settings["tokenizer_class"] = ANY_FAST_TOKENIZER
    if not isinstance(settings.get("model_max_length", 0), int | float):
        del settings["model_max_length"]
    return settings


def tokenizer_to_files(tokenizer: FastTokenizer) -> dict[str, bytes]:
    """Serialize a tokenizer to files that Hugging Face's classes and other programs read. Their
    names are constants, and their settings are data only."""
    backend = tokenizer.backend_tokenizer
    settings = {
        key: value
        for key, value in tokenizer.init_kwargs.items()
        if key in _TOKENIZER_KEYS and _is_plain(value, depth=2)
    }
    settings |= tokenizer.special_tokens_map
    settings["model_input_names"] = list(tokenizer.model_input_names)
    if tokenizer.model_max_length > 10**9:  # in transformers this means that there is no limit
        settings.pop("model_max_length", None)
    # A name that both transformers 4 and 5 know.
    name = type(tokenizer).__name__
    generic = name in ("TokenizersBackend", ANY_FAST_TOKENIZER)
    settings["tokenizer_class"] = ANY_FAST_TOKENIZER if generic else name.removesuffix("Fast")
    files = {
        "tokenizer.json": backend.to_str().encode("utf8"),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode("utf8"),
    }
    if type(backend.model).__name__ == "WordPiece":
        files["vocab.txt"] = list_vocabulary(backend).encode("utf8")
    return files


def list_vocabulary(tokenizer: Tokenizer) -> str:
    """Format a WordPiece vocabulary as vocab.txt: one wordpiece per line, in the order of ids."""
    by_id = {number: wordpiece for wordpiece, number in tokenizer.get_vocab().items()}
    return "".join(f"{by_id.get(i, f'[unused{i}]')}\n" for i in range(max(by_id) + 1))


def _is_tokenizer_class(name: Any) -> bool:
    """Return whether this is the name of one of transformers' own tokenizer classes."""
    import transformers

    found = getattr(transformers, name, None) if isinstance(name, str) else None
    return isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase)


# --- weights


def read_weights(source: Source) -> dict[str, torch.Tensor]:
    """Load the tensors of a checkpoint into memory, floating-point ones as float32.

    Raises ValueError if there are none in a supported format, or a file is damaged. Pickles
    (pytorch_model.bin) need torch 2.10 or newer.
    """
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if source.find(stem + suffix) is not None:
            return _read_tensors(source, stem + suffix)
        index = source.read_json(f"{stem}{suffix}.index.json")
        if index is not None:
            shards = sorted(set(index.get("weight_map", {}).values()))
            if not shards or not all(_is_shard(shard, suffix) for shard in shards):
                raise ValueError(f"{stem}{suffix}.index.json names no files of weights.")
            parts = [_read_tensors(source, shard) for shard in shards]
            return {name: tensor for part in parts for name, tensor in part.items()}
    reason = _without_weights(source)
    if reason is not None:
        raise NotBert(f"'{source.name}' has no weights for torch. {reason}")
    raise ValueError("there are no weights. It needs model.safetensors or pytorch_model.bin.")


def _is_shard(name: Any, suffix: str) -> bool:
    """Return whether the name of a shard is a file in the same folder."""
    return isinstance(name, str) and bool(re.fullmatch(rf"[\w-]+{re.escape(suffix)}", name))


def _read_tensors(source: Source, file: str) -> dict[str, torch.Tensor]:
    found = source.find(file)
    if found is None:
        raise ValueError(f"{file} is missing.")
    try:
        if file.endswith(".bin"):
            tensors = _unpickle(found)
        elif isinstance(found, Path):
            from safetensors.torch import load_file

            tensors = load_file(found)
        else:
            from safetensors.torch import load

            tensors = load(found)
    except Exception as error:  # torch, pickle, zip and safetensors raise different classes
        raise ValueError(f"{file}: {error}") from error
    # Copied even if they are float32 already, because the file is memory-mapped and may change.
    return {
        name: tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in tensors.items()
    }


def _unpickle(found: Path | bytes) -> dict[str, torch.Tensor]:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _SAFE_UNPICKLING:
        needed = ".".join(map(str, _SAFE_UNPICKLING))
        raise ValueError(
            f"it holds pickles, which torch {torch.__version__} can't read without the risk of "
            f"running code that is hidden in them. Install torch {needed} or newer, or take a "
            "checkpoint with model.safetensors."
        )
    assert isinstance(found, Path)
    tensors = torch.load(found, map_location="cpu", weights_only=True)
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise ValueError("it is not a dict of named tensors.")
    return tensors


def _without_weights(source: Source) -> str | None:
    """Return what to do about a checkpoint with weights of another kind; None if it has none."""
    names = (source.read_json(CONFIG) or {}).get("architectures")
    name = names[0] if isinstance(names, list) and names else "AutoModel"
    loads = f"{name if re.fullmatch('[A-Za-z0-9]+', str(name)) else 'AutoModel'}.from_pretrained"
    if source.find(_ADAPTER) is not None:
        base = (source.read_json(_ADAPTER) or {}).get("base_model_name_or_path")
        return (
            f"It is a peft adapter of '{base}': merge the two with "
            f"peft.AutoPeftModelFor….from_pretrained('{source.name}').merge_and_unload()"
            ".save_pretrained(…), with the class of its task, save the tokenizer to the same "
            "folder, and load that one."
        )
    for file, kind, option in _FRAMEWORKS:
        if source.find(file) is not None:
            return (
                f"It has weights for {kind} only ({file}): save them for torch by transformers 4, "
                f"{loads}('{source.name}', {option}=True).save_pretrained(…)."
            )
    for file in ("model.onnx", "onnx/model.onnx"):
        if source.find(file) is not None:
            return (
                f"It has a compiled graph only ({file}), which can't be trained or shared by "
                "heads. Load the checkpoint that it was exported from."
            )
    return None


# --- model


def build_model(
    auto_class: Any, config: PretrainedConfig, weights: dict[str, torch.Tensor]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Make a model in float32 from weights in memory; transformers reads no file.

    `auto_class` is one of transformers' auto classes or model classes. Returns the model, and
    transformers' report of missing and unexpected keys.
    """
    mapping = getattr(auto_class, "_model_mapping", None)
    model_class = auto_class if mapping is None else mapping[type(config)]
    if hasattr(config, "reference_compile"):  # on a GPU, transformers 4 would compile ModernBERT
        config.reference_compile = False
    return model_class.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True
    )
