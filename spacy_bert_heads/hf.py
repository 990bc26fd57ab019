"""Convert fine-tuned Hugging Face checkpoints to pipelines, and pipelines to checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import spacy
import torch
from spacy.language import Language

from .encoder.checkpoint import Checkpoint
from .encoder.component import BertEncoder
from .encoder.encoder import Encoder
from .encoder.identity import assign_id
from .encoder.loading import load_from
from .encoder.model import checkpoint_of, prepare, shim_of
from .encoder.source import open_source
from .heads import encoder_decoder
from .heads.decoder import Decoder, check_fit, load_decoder, with_ids
from .heads.families import ARCHITECTURES, auto_class, count_classes, layer_names, select_classes
from .heads.find import head_classes
from .heads.head import BertHead
from .heads.modules import Classifier
from .heads.seq2seq import BertSeq2Seq
from .hf_export import to_hf
from .model_card import short_name

__all__ = ["from_hf", "to_hf"]


def from_hf(
    name: str,
    *others: str,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    revision: str | None = None,
    lang: str = "en",
) -> Language:
    """Make a pipeline from fine-tuned Hugging Face checkpoints, ready to predict.

    Each checkpoint becomes an encoder and a head; checkpoints with identical encoders share one.
    `name` and `others` are hub names or folders. `task` is a head's factory without "bert_", such
    as "ner"; None infers it from the checkpoint's architecture, settings and labels. `labels` are
    the names of the checkpoint's classes in their order; None takes those of its configuration.
    `revision` is a branch, tag or commit on the hub; None takes the newest. `lang` is the language
    of spaCy's tokenizer.

    Raises ValueError if a checkpoint can't be read or has no trained head of a known kind; if two
    heads would write to the same place of a Doc; if there is no such task; or if `task`, `labels`
    or `revision` are given for several checkpoints.
    """
    if others and (task or labels or revision):
        raise ValueError(
            "task, labels and revision belong to one checkpoint. Load them one by one."
        )
    heads = {key: cls for key, cls in head_classes().items() if cls.hf_task}
    if task is not None and task not in heads:
        raise ValueError(f"Unknown task '{task}'. Choose one of: {', '.join(heads)}.")
    nlp = spacy.blank(lang)
    nlp.batch_size = 128
    for one in (name, *others):
        _add_checkpoint(nlp, one, heads[task] if task else None, labels, revision)
    nlp.meta["description"] = f"{', '.join(map(short_name, (name, *others)))}, from Hugging Face"
    return nlp


def _add_checkpoint(
    nlp: Language,
    name: str,
    head_class: type[BertHead] | None,
    labels: Sequence[str] | None,
    revision: str | None,
) -> None:
    source = open_source(name, revision)
    if (parts := encoder_decoder.split(source)) is not None:
        _add_decoder(nlp, name, parts, head_class, labels, source.revision)
        return
    model, checkpoint, missing = load_from(
        source, lambda config, weights: _choose_class(config, weights, name, head_class, labels)
    )
    if missing:
        raise ValueError(
            f"'{name}' has no trained {type(model).__name__}: {len(missing)} of its parameters are "
            f"missing ({', '.join(missing[:3])}, …). Was it fine-tuned for another task?"
        )
    names = class_names(model.config, name)
    if len(set(names)) < len(names):
        raise ValueError(f"Two classes of '{name}' have one name: {', '.join(names)}. Give labels.")
    head_class = head_class or find_head(model.config, name, names)
    found = head_class.read_hf(model.config, names, name)
    if labels and not found.labels:
        raise ValueError(f"{head_class.factory} has no labels. Give no labels.")
    head = _add_head(nlp, name, revision, checkpoint, head_class, found.settings)
    head.start_from_hf(found.labels)
    _check_free(nlp, head, name)
    head.model.set_dim("nO", head.n_classes, force=True)
    head.model.initialize()
    head.record_encoder()
    module = shim_of(head.model).module
    assert isinstance(module, Classifier)
    for ours, theirs in layer_names(model.config.model_type, head.hf_task).items():
        weights = model.get_submodule(theirs).state_dict()
        if ours == "classifier":
            weights = select_classes(weights, found.classes, found.lacking)
        module.get_submodule(ours).load_state_dict(weights)


def _add_decoder(
    nlp: Language,
    name: str,
    parts: encoder_decoder.Parts,
    head_class: type[BertHead] | None,
    labels: Sequence[str] | None,
    revision: str | None,
) -> None:
    """Add the two parts of an EncoderDecoderModel."""
    if head_class not in (None, BertSeq2Seq) or labels:
        wrong = "give no labels" if labels else "it can become a bert_seq2seq alone"
        raise ValueError(f"'{name}' is an EncoderDecoderModel, which writes texts: {wrong}.")
    from transformers import AutoModel

    _, checkpoint, _ = load_from(parts.encoder, lambda config, weights: AutoModel)
    module = Decoder(load_decoder(parts.decoder))
    check_fit(module.model, checkpoint, name)
    with_ids(module.model, checkpoint.tokenizer, start=parts.start_id, end=parts.end_id)
    checkpoint.origin = {"name": name, "revision": revision}
    head = _add_head(nlp, name, revision, checkpoint, BertSeq2Seq, parts.settings)
    head.model.layers[0].initialize()
    shim_of(head.model).module = module
    _check_free(nlp, head, name)
    head.model.set_dim("nO", int(module.model.config.vocab_size), force=True)
    head.record_encoder()


def _add_head(
    nlp: Language,
    name: str,
    revision: str | None,
    checkpoint: Checkpoint,
    head_class: type[BertHead],
    settings: dict[str, Any],
) -> BertHead:
    """Add a head without weights, behind the encoder that is the checkpoint's or its equal."""
    upstream = _find_encoder(nlp, checkpoint) or _add_encoder(nlp, name, revision, checkpoint)
    if upstream == [n for n, pipe in nlp.pipeline if isinstance(pipe, BertEncoder)][-1]:
        upstream = "*"  # still valid if the encoder is renamed
    config = {"model": {"tok2vec": {"upstream": upstream}}, **settings}
    factory = head_class.factory
    head = nlp.add_pipe(factory, name=_free_name(nlp, factory), config=config)
    assert isinstance(head, BertHead)
    return head


def find_head(config: Any, name: str, names: Sequence[str]) -> type[BertHead]:
    """Return the head for a checkpoint, by its configuration and the names of its classes. Raises
    ValueError if no head fits, or several fit equally well."""
    task = _find_task(config, name)
    heads = {key: cls for key, cls in head_classes().items() if cls.hf_task == task}
    fits = {key: cls.fits_hf(config, names) for key, cls in heads.items()}
    best = [key for key, fit in fits.items() if fit and fit == max(fits.values())]
    # A subclass that fits as well as its base class leaves the checkpoint to the base class.
    derived = {k for k in best for one in best if k != one and issubclass(heads[k], heads[one])}
    best = [key for key in best if key not in derived]
    if len(best) != 1:
        raise ValueError(
            f"'{name}', a {_architecture(config)} with problem_type = {config.problem_type!r} and "
            f"the classes {', '.join(names)}, fits {'several heads' if best else 'no head'}. Set "
            f"the task: {' or '.join(best or heads)}."
        )
    return heads[best[0]]


def _architecture(config: Any) -> str:
    return next(iter(getattr(config, "architectures", None) or []), "")


def _find_task(config: Any, name: str, default: str | None = None) -> str:
    """Return the task of Hugging Face's pipelines for the architecture. Raises ValueError if none
    of our heads is for it, and there is no default."""
    found = (task for task, end in ARCHITECTURES.items() if _architecture(config).endswith(end))
    task = next(found, default)
    if task is None:
        raise ValueError(
            f"'{name}' is a {_architecture(config) or 'checkpoint of unknown kind'}, without a "
            "head for tokens, sequences or answers. Set the task if it has one; to train a "
            "checkpoint without a head, set it as `name` of bert_encoder in a pipeline."
        )
    return task


def _choose_class(
    config: Any,
    weights: dict[str, torch.Tensor],
    name: str,
    head_class: type[BertHead] | None,
    labels: Sequence[str] | None,
) -> Any:
    """Return the class for loading a checkpoint, after setting the names of classes in its
    configuration."""
    task = _find_task(config, name, head_class.hf_task if head_class else None)
    # A classifier's weights have the same names and shapes in classes for other tasks.
    if head_class is not None and task != head_class.hf_task:
        raise ValueError(
            f"'{name}' is a {_architecture(config)}, for {task}: it can't become a "
            f"{head_class.factory}."
        )
    count = count_classes(weights, config.model_type, task)
    names = list(labels or class_names(config, name))
    if task in ("question-answering", "multiple-choice") and count is not None:
        names = [f"LABEL_{i}" for i in range(count)]  # they have no meaning there
    if len(names) != (count or len(names)):
        if labels:
            said = f"{len(names)} labels are given. Give one for each, in order"
        else:
            said = f"its id2label names {len(names)}. Give their names in order: labels=[…]"
        raise ValueError(f"'{name}' has {count} classes, but {said}.")
    config.id2label = dict(enumerate(names))
    config.label2id = {label: i for i, label in enumerate(names)}
    return auto_class(task)


def class_names(config: Any, name: str) -> list[str]:
    """List the names of a checkpoint's classes, in order. Raises ValueError if its configuration
    doesn't number them from 0."""
    names = config.id2label
    if sorted(names) != list(range(len(names))):
        numbers = ", ".join(map(str, sorted(names)))
        raise ValueError(
            f"'{name}' numbers its classes {numbers}, not from 0. Give their names in order, "
            "labels=[…], or fix id2label in its config.json."
        )
    return [str(names[i]) for i in range(len(names))]


def _check_free(nlp: Language, head: BertHead, name: str) -> None:
    """Raise ValueError if another head writes to the same place of a Doc."""
    for other, pipe in nlp.components:
        if isinstance(pipe, BertHead) and pipe is not head and pipe.writes & head.writes:
            raise ValueError(
                f"'{name}' would overwrite what {other} writes to a Doc. Load them one by one, and "
                "give labels where both have the same."
            )


def _find_encoder(nlp: Language, checkpoint: Checkpoint) -> str | None:
    """Return the name of the pipeline's encoder with the same weights and tokenizer, if any."""
    for name, component in nlp.pipeline:
        if isinstance(component, BertEncoder) and _is_same(
            checkpoint_of(component.model), checkpoint
        ):
            return name
    return None


def _is_same(one: Checkpoint, other: Checkpoint) -> bool:
    weights = [
        {k: v for k, v in c.model.state_dict().items() if not k.startswith("pooler")}
        for c in (one, other)
    ]
    return (
        one.tokenizer_files["tokenizer.json"] == other.tokenizer_files["tokenizer.json"]
        and weights[0].keys() == weights[1].keys()
        and all(torch.equal(tensor.cpu(), weights[1][k].cpu()) for k, tensor in weights[0].items())
    )


def _add_encoder(nlp: Language, name: str, revision: str | None, checkpoint: Checkpoint) -> str:
    longest = checkpoint.tokenizer_settings.get("model_max_length") or checkpoint.max_window
    window = int(min(longest, checkpoint.max_window))
    stride = min(3 * window // 4, window - checkpoint.tokenizer.num_special)
    encoder_name = _free_name(nlp, "bert_encoder")
    config = {"name": name, "revision": revision, "window": window, "stride": stride}
    encoder = nlp.add_pipe("bert_encoder", name=encoder_name, config={"model": config})
    assert isinstance(encoder, BertEncoder)
    assign_id(checkpoint)
    shim_of(encoder.model).module = Encoder(checkpoint)
    prepare(encoder.model)
    return encoder_name


def _free_name(nlp: Language, name: str) -> str:
    names = (name, *(f"{name}_{i}" for i in range(2, len(nlp.component_names) + 3)))
    return next(one for one in names if one not in nlp.component_names)
