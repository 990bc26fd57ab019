"""How Hugging Face's classes of each family put a head on the encoder, and what they call its
layers, so that our heads begin, load and are exported as theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Family:
    """Where the class for sequences has its layers.

    dense (str): The layer between the pooled state and the classifier.
    classifier (str): The classifier.
    """

    dense: str
    classifier: str = "classifier"


# A tag that the checkpoint lacks starts as the nearest tag of its label, so much below it that it
# never wins and takes less than e^-10 = 5e-5 of its probability; training brings it up from there.
MARGIN = 10.0
_ROBERTA = Family("classifier.dense", "classifier.out_proj")
FAMILIES = {
    "albert": Family("albert.pooler"),
    "bert": Family("bert.pooler.dense"),
    "camembert": _ROBERTA,
    "deberta-v2": Family("pooler.dense"),
    "distilbert": Family("pre_classifier"),
    "electra": _ROBERTA,
    "modernbert": Family("head.dense"),
    "mpnet": _ROBERTA,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}


def dense_settings(config: Any, dropout: float) -> dict[str, Any]:
    """The dense layer of a family's class for sequences.

    config (Any): The checkpoint's configuration, or None for BERT's kind.
    dropout (float): The rate before the classifier.
    RETURNS (Dict[str, Any]): The settings of `layers.Dense`, without its width.
    """
    match getattr(config, "model_type", "bert"):
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


def count_classes(weights: dict[str, Any], family: str, task: str) -> int | None:
    """Count the classes that a checkpoint has weights for, whatever its configuration says; None if
    it has no classifier. Raises ValueError if the family is not known."""
    classifier = weights.get(f"{layer_names(family, task)['classifier']}.weight")
    return None if classifier is None else len(classifier)


def select_classes(
    weights: dict[str, torch.Tensor], classes: Sequence[int], lacking: Sequence[bool]
) -> dict[str, torch.Tensor]:
    """The classifier's rows in another order; what is `lacking` starts below the row it is."""
    selected = {name: tensor[list(classes)] for name, tensor in weights.items()}
    selected["bias"][list(lacking)] -= MARGIN
    return selected


def layer_names(family: str, task: str) -> dict[str, str]:
    """Which layer of ours is which of theirs.

    family (str): The model's type, as its config calls it.
    task (str): "text-classification", "token-classification" or "question-answering".
    RETURNS (Dict[str, str]): Names in our module, and in Hugging Face's model.
    RAISES (ValueError): If the family is not known.
    """
    if family not in FAMILIES:
        raise ValueError(
            f"Heads of '{family}' models can't be exchanged with Hugging Face. The families are: "
            f"{', '.join(FAMILIES)}."
        )
    names = {"classifier": "classifier"}
    if task == "text-classification":
        layers = FAMILIES[family]
        names = {"classifier": layers.classifier, "dense.linear": layers.dense}
    elif task == "question-answering" and family != "modernbert":
        names = {"classifier": "qa_outputs"}
    if family == "modernbert":
        names |= {"dense.linear": "head.dense", "dense.norm": "head.norm"}
    return names
