"""Contrastive training of an encoder on a few labelled texts, before its classifier is trained."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch.nn.functional as F
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import resolve_dot_names
from thinc.api import Adam, warmup_linear
from tqdm import tqdm

from ..encoder.component import BertEncoder
from ..encoder.model import reading_layers
from ..heads.head import BertHead
from ..heads.modules import mean_by_group

MANY_STEPS = 1000  # 400 texts with the default settings


class Pair(NamedTuple):
    """The indices of two texts, and whether they have the same category: 1 or 0."""

    left: int
    right: int
    is_same: float


def make_contrastive(
    component: str = "bert_textcat",
    num_pairs: int = 20,
    batch_size: int = 16,
    learn_rate: float = 2e-5,
    seed: int = 0,
) -> Callable[[Language], Language]:
    """Make a callback that trains the encoder of a text classifier on few labelled texts by
    contrast, before the classifier is trained (SetFit; Tunstall et al. 2022, section 3). Put it
    into `[initialize.after_init]`.

    Each text of the training corpus for which one of the component's categories holds is paired
    `num_pairs` times with a text of the same category and as often with one of another. The cosine
    of the two should be 1 or 0; the loss is the squared error. The vector of a text is the mean of
    its last hidden states, so the head should have `pooling = "mean"`. This takes 4 * `num_pairs`
    passes for each text.

    component (str): The text classifier's name.
    num_pairs (int): How many pairs of each kind to make for a text.
    batch_size (int): The number of pairs in a batch.
    learn_rate (float): The maximum learning rate, with a warm-up over a tenth of the steps and a
        linear decay to 0.
    seed (int): The seed of the pairs.

    Raises ValueError if a number is less than 1. The callback raises ValueError if there is no such
    component, or if the texts have fewer than two categories.
    """
    if num_pairs < 1 or batch_size < 1:
        raise ValueError(
            f"contrastive.v1 has num_pairs = {num_pairs} and batch_size = {batch_size}; both must "
            "be 1 or more."
        )

    def contrast(nlp: Language) -> Language:
        head = nlp.get_pipe(component) if component in nlp.component_names else None
        if not isinstance(head, BertHead) or not head._listeners():
            raise ValueError(
                f"contrastive.v1 finds no component '{component}' that reads a bert_encoder. Set "
                "component in [initialize.after_init] to the text classifier's name."
            )
        config = nlp.config.interpolate()
        (corpus,) = resolve_dot_names(config, [config["training"]["train_corpus"]])
        docs, labels, left_out = [], [], 0
        for example in corpus(nlp):
            cats = {k: v for k, v in example.reference.cats.items() if k in head.labels}
            held = [label for label, value in cats.items() if value > 0.5]
            if len(held) == 1 and len(example.predicted):
                docs.append(example.predicted)
                labels.append(held[0])
            elif cats:
                left_out += 1
        if left_out:
            warnings.warn(
                f"contrastive.v1 leaves out {left_out:,} of {left_out + len(docs):,} texts, for "
                f"which not exactly one category of {component} holds.",
                stacklevel=2,
            )
        pairs = make_pairs(labels, num_pairs, random.Random(seed))
        encoder = head._listeners()[0].encoder_for(docs)
        starts = range(0, len(pairs), batch_size)
        steps = len(starts)
        if steps > MANY_STEPS:
            warnings.warn(
                f"contrastive.v1 takes {steps:,} steps of {batch_size} pairs before the training "
                f"begins. With {len(docs):,} texts you may not need it; else reduce num_pairs in "
                "[initialize.after_init].",
                stacklevel=2,
            )
        optimizer = Adam(
            learn_rate=cast(Any, warmup_linear(learn_rate, steps // 10, steps)),
            L2=0.01,
            L2_is_weight_decay=True,
            grad_clip=1.0,
            use_averages=False,
        )
        for start in tqdm(starts, desc="Contrastive training", leave=False, disable=None):
            learn_pairs(encoder, docs, pairs[start : start + batch_size])
            encoder.finish_update(optimizer)
            optimizer.step_schedules()
        return nlp

    return contrast


def make_pairs(labels: list[str], num_pairs: int, chosen: random.Random) -> list[Pair]:
    """Make random pairs of texts in random order, see `make_contrastive`. A text that is alone in
    its category gets no pairs of the same category. Raises ValueError if there are fewer than two
    categories."""
    groups: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        groups.setdefault(label, []).append(number)
    if len(groups) < 2:
        raise ValueError(
            f"contrastive.v1 needs texts of two categories, but there are {len(labels)} of "
            f"{', '.join(groups) or 'none'}. Texts with several categories are not read."
        )
    pairs: list[Pair] = []
    for number, label in enumerate(labels):
        same = [other for other in groups[label] if other != number]
        others = [other for other in range(len(labels)) if labels[other] != label]
        for _ in range(num_pairs):
            if same:
                pairs.append(Pair(number, chosen.choice(same), 1.0))
            pairs.append(Pair(number, chosen.choice(others), 0.0))
    chosen.shuffle(pairs)
    return pairs


def learn_pairs(encoder: BertEncoder, docs: list[Doc], pairs: list[Pair]) -> float:
    """Accumulate the gradient of a batch of pairs; each text is encoded once. Returns the loss, the
    mean squared error of the cosines."""
    numbers = sorted({number for pair in pairs for number in (pair.left, pair.right)})
    place = {number: i for i, number in enumerate(numbers)}
    model: Any = reading_layers(encoder.model, [-1])
    hidden, backprop = model.begin_update([docs[number] for number in numbers])
    states = hidden.states.requires_grad_()
    windows = mean_by_group(states, hidden.batch.seqlens)
    vectors = mean_by_group(windows, hidden.batch.num_windows)
    left = vectors[[place[pair.left] for pair in pairs]]
    right = vectors[[place[pair.right] for pair in pairs]]
    wanted = vectors.new_tensor([pair.is_same for pair in pairs])
    loss = F.mse_loss(F.cosine_similarity(left, right), wanted)
    loss.backward()
    backprop(states.grad)
    return float(loss.detach())
