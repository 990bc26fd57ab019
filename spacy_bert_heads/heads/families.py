"""The heads of each model family in Hugging Face's classes, and their layers' names, so that our
heads are initialised, loaded and exported like them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


# The suffixes of Hugging Face's model classes by task.
ARCHITECTURES = {
    "token-classification": "ForTokenClassification",
    "text-classification": "ForSequenceClassification",
    "question-answering": "ForQuestionAnswering",
    "multiple-choice": "ForMultipleChoice",
}


@dataclass(frozen=True)
class Family:
    """The names of layers in a family's class for sequences. `dense` is the layer between the
    pooled hidden state and the classifier. `choice_dense` is that of the class for multiple choice,
    if it is another one; the classifier of that class is always named "classifier". `masked` are
    the layers of the class for masked words: a linear one, whose activation is the setting
    `masked_act`, by default gelu; a LayerNorm; and the one that returns logits."""

    dense: str
    classifier: str = "classifier"
    choice_dense: str = ""
    masked: tuple[str, str, str] = ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder")
    masked_act: str = ""


# A tag that the checkpoint lacks starts as a copy of the most similar tag of its label, with a
# logit that is lower by this: it never wins and takes less than e^-10 = 5e-5 of the probability.
MARGIN = 10.0
_ROBERTA = Family("classifier.dense", "classifier.out_proj", "roberta.pooler.dense")
_BERTS: dict[str, Any] = {
    "masked": (
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.decoder",
    ),
    "masked_act": "hidden_act",
}
FAMILIES = {
    "albert": Family(
        "albert.pooler",
        masked=("predictions.dense", "predictions.LayerNorm", "predictions.decoder"),
        masked_act="hidden_act",
    ),
    "bert": Family("bert.pooler.dense", **_BERTS),
    "camembert": _ROBERTA,
    "deberta-v2": Family("pooler.dense", **_BERTS),
    "distilbert": Family(
        "pre_classifier",
        masked=("vocab_transform", "vocab_layer_norm", "vocab_projector"),
        masked_act="activation",
    ),
    "electra": Family(
        "classifier.dense",
        "classifier.out_proj",
        "sequence_summary.summary",
        masked=(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head",
        ),
    ),
    "modernbert": Family(
        "head.dense",
        masked=("head.dense", "head.norm", "decoder"),
        masked_act="classifier_activation",
    ),
    "mpnet": Family("classifier.dense", "classifier.out_proj", "mpnet.pooler.dense"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
# The second one is the name in versions before 4.
CROSS_ENCODER_SETTINGS = ("sentence_transformers", "sbert_ce_default_activation_function")


def cross_encoder_activation(config: Any) -> str | None:
    """Return the activation of a sentence-transformers cross-encoder, IDENTITY or SIGMOID, or None
    for any other configuration. The default for a single logit is SIGMOID."""
    settings, named = (getattr(config, name, None) for name in CROSS_ENCODER_SETTINGS)
    if isinstance(settings, dict):
        default = SIGMOID if config.num_labels == 1 else IDENTITY
        named = settings.get("activation_fn") or default
    if named is None:
        return None
    return SIGMOID if str(named).endswith("Sigmoid") else IDENTITY


def as_cross_encoder(activation: str) -> dict[str, Any]:
    """Make the setting that tells sentence-transformers a cross-encoder's activation."""
    return {"sentence_transformers": {"activation_fn": activation}}


def dense_settings(config: Any, dropout: float, *, is_choice: bool = False) -> dict[str, Any]:
    """Return the settings of a `modules.Dense`, without its width, for the dense layer of a
    family's class for sequences, or for multiple choice. `config` is the checkpoint's
    configuration; None takes BERT's layer. `dropout` is the probability before the classifier."""
    family = getattr(config, "model_type", "bert")
    if is_choice and family in FAMILIES and FAMILIES[family].choice_dense:
        return {"activation": "gelu" if family == "electra" else "tanh"}
    match family:
        case "roberta" | "xlm-roberta" | "camembert" | "mpnet":
            return {"activation": "tanh", "dropout": dropout}
        case "electra":
            return {"activation": "gelu", "dropout": dropout}
        case "distilbert":
            return {"activation": "relu"}
        case "deberta-v2":
            return {"activation": config.pooler_hidden_act, "dropout": config.pooler_dropout}
        case "modernbert":
            return {
                "activation": config.classifier_activation,
                "bias": config.classifier_bias,
                "norm_eps": config.norm_eps,
                "norm_bias": config.norm_bias,
            }
        case _:
            return {"activation": "tanh"}


def masked_word_activation(config: Any) -> str:
    """Name the activation in a family's head for masked words."""
    setting = FAMILIES[config.model_type].masked_act
    return getattr(config, setting) if setting else "gelu"


def count_classes(weights: dict[str, Any], family: str, task: str) -> int | None:
    """Count the classes that a checkpoint has weights for, which can differ from its configuration;
    None if it has no classifier. Raises ValueError if the family is not known."""
    classifier = weights.get(f"{layer_names(family, task)['classifier']}.weight")
    return None if classifier is None else len(classifier)


def select_classes(
    weights: dict[str, torch.Tensor], classes: Sequence[int], lacking: Sequence[bool]
) -> dict[str, torch.Tensor]:
    """Select rows of the classifier's weights by `classes`. The bias of `lacking` classes is
    lowered by MARGIN."""
    selected = {name: tensor[list(classes)] for name, tensor in weights.items()}
    selected["bias"][list(lacking)] -= MARGIN
    return selected


def layer_names(family: str, task: str) -> dict[str, str]:
    """Map the names of our module's layers to those in Hugging Face's model for a task:
    "text-classification", "token-classification", "question-answering", "multiple-choice" or
    "fill-mask". Raises ValueError if the family, a `model_type`, is not known."""
    if family not in FAMILIES:
        raise ValueError(
            f"Heads of '{family}' models can't be exchanged with Hugging Face. The families are: "
            f"{', '.join(FAMILIES)}."
        )
    if task == "fill-mask":
        own = ("dense.linear", "dense.norm", "classifier")
        return dict(zip(own, FAMILIES[family].masked, strict=True))
    names = {"classifier": "classifier"}
    if task == "text-classification":
        layers = FAMILIES[family]
        names = {"classifier": layers.classifier, "dense.linear": layers.dense}
    elif task == "multiple-choice":
        layers = FAMILIES[family]
        names["dense.linear"] = layers.choice_dense or layers.dense
    elif task == "question-answering" and family != "modernbert":
        names = {"classifier": "qa_outputs"}
    if family == "modernbert":
        names |= {"dense.linear": "head.dense", "dense.norm": "head.norm"}
    return names


def auto_class(task: str) -> Any:
    """Return the auto class that makes and loads models for a task."""
    import transformers

    return getattr(transformers, f"AutoModel{ARCHITECTURES[task]}")
