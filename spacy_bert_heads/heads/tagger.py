"""Tagging: fine-grained tags or coarse parts of speech of tokens."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from spacy.language import Language
from spacy.parts_of_speech import IDS as UNIVERSAL_TAGS
from spacy.scorer import Scorer
from spacy.tokens import Doc, Token
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model

from ..data.annotations import set_tags
from ..data.records import Settings
from .claims import Claim, claim_tags
from .declared import HFClasses, Score, score_weights
from .free_text import read_text
from .gold import is_negated
from .head import BertHead
from .imitation import divergence
from .negations import Negation, check_label_smoothing, tag_loss
from .ner import DEFAULT_MODEL
from .outputs import TokenLogits
from .tallies import Counts, Floats, Tally, count_decisions, match_tags, micro

ATTRS = ("tag", "pos")
SPACE_TAGS = {"tag": "_SP", "pos": "SPACE"}  # spaCy's tags for white space
# A tagger has one of the two scores; either must count when `spacy train` selects the best model.
SCORES = {"tag_acc": Score("tags", 0.5), "pos_acc": Score("parts of speech", 0.5)}


@Language.factory(
    "bert_tagger",
    assigns=["token.tag", "token.pos"],
    default_config={
        "model": DEFAULT_MODEL,
        "attr": "tag",
        "overwrite": False,
        "class_weights": None,
        "label_smoothing": 0.0,
        "temperature": None,
        "thresholds": None,
        "scorer": {"@scorers": "spacy_bert_heads.tagger_scorer.v1"},
    },
    default_score_weights=score_weights(SCORES),
)
def make_bert_tagger(
    nlp: Language,
    name: str,
    model: Model[list[Doc], TokenLogits],
    attr: str,
    overwrite: bool,
    class_weights: dict[str, float] | str | None,
    label_smoothing: float,
    temperature: float | None,
    thresholds: dict[str, float] | str | None,
    scorer: Callable | None,
) -> "BertTagger":
    """Create a tagger. A gold tag `!NN` says that a token is not an NN; it may be anything else.

    attr (str): The attribute to learn and write: "tag" for `token.tag_`, "pos" for `token.pos_`.
    overwrite (bool): Replace tags that earlier components have set, as spaCy's tagger does.
    class_weights (Optional[Dict[str, float]]): Weights in the loss by label, 1 by default.
    label_smoothing (float): As in torch's cross_entropy, 0 to 1.
    temperature (Optional[float]): Logits are divided by it. None takes that of `bert calibrate`.
    thresholds (Optional[Dict[str, float]]): By tag: predictions with a lower probability are not
        written.
    """
    weights, by_label = read_text(nlp, name, class_weights=class_weights, thresholds=thresholds)
    return BertTagger(
        nlp.vocab,
        model,
        name,
        attr=attr,
        overwrite=overwrite,
        class_weights=weights,
        label_smoothing=label_smoothing,
        temperature=temperature,
        thresholds=by_label,
        scorer=scorer,
    )


def tagger_score(
    examples: Iterable[Example], *, attr: str = "tag", **kwargs: Any
) -> dict[str, Any]:
    """Compute `tag_acc` or `pos_acc` with spaCy's `Scorer.score_token_attr`. Tokens that only have
    a negated gold tag (`!NN`) count as not annotated."""
    labels = kwargs.pop("labels", ())

    def get(token: Token, attr: str) -> str:
        return known_tag(token, attr, labels)

    return Scorer.score_token_attr(examples, attr, getter=get, **kwargs)


def known_tag(token: Token, attr: str, labels: Collection[str]) -> str:
    """Return a token's tag, "" if it has none or only a negated one."""
    tag = getattr(token, f"{attr}_")
    return "" if is_negated(tag, labels) else tag


def make_tagger_scorer() -> Callable:
    return tagger_score


class BertTagger(BertHead):
    """Tag tokens.

    A token without wordpieces keeps its tag. White space gets spaCy's tag for it, if the training
    data has that tag. The settings are those of `make_bert_tagger`; an invalid value raises
    ValueError.
    """

    factory = "bert_tagger"
    scores = SCORES
    json_keys = ("pos_tags",)
    annotation = "tags"
    hf_task = "token-classification"

    def __init__(
        self,
        vocab: Vocab,
        model: Model[list[Doc], TokenLogits],
        name: str = "bert_tagger",
        *,
        attr: str = "tag",
        overwrite: bool = False,
        class_weights: dict[str, float] | None = None,
        label_smoothing: float = 0.0,
        scorer: Callable | None = None,
        **calibration: Any,
    ) -> None:
        if attr not in ATTRS:
            raise ValueError(f"attr is '{attr}'. Choose one of: {', '.join(ATTRS)}.")
        super().__init__(
            vocab,
            model,
            name,
            scorer=scorer,
            class_weights=class_weights,
            attr=attr,
            overwrite=overwrite,
            label_smoothing=check_label_smoothing(label_smoothing),
            **calibration,
        )

    def has_gold(self, example: Example) -> bool:
        return example.reference.has_annotation(self.cfg["attr"].upper())

    def labels_of(self, example: Example) -> Iterable[str]:
        attr = self.cfg["attr"] + "_"
        tags = (getattr(token, attr) for token in example.reference)
        return (tag for tag in tags if tag and not is_negated(tag, self.labels))

    @classmethod
    def read_json(cls, doc: Doc, value: Any, settings: Settings) -> None:
        set_tags(doc, value)

    @classmethod
    def count_labels(cls, doc: Doc) -> dict[str, int]:
        return Counter(tag for token in doc if (tag := token.tag_ or token.pos_))

    @classmethod
    def is_annotated(cls, doc: Doc) -> bool:
        return doc.has_annotation("TAG") or doc.has_annotation("POS")

    @property
    def writes(self) -> set[str]:
        return {f"token.{self.cfg['attr']}"}

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        return 1

    @classmethod
    def read_hf(cls, config: Any, names: Sequence[str], checkpoint: str) -> HFClasses:
        attr = "pos" if set(names) <= set(UNIVERSAL_TAGS) else "tag"
        return super().read_hf(config, names, checkpoint)._replace(settings={"attr": attr})

    def scorer_settings(self) -> dict[str, Any]:
        return {"attr": self.cfg["attr"], "labels": self.labels}

    def tally(self, example: Example) -> Tally:
        get = partial(known_tag, attr=self.cfg["attr"], labels=self.labels)
        return count_decisions(match_tags(example, get))

    @classmethod
    def scores_of(cls, counts: Counts) -> dict[str, Floats]:
        return dict.fromkeys(cls.scores, micro(counts)[2])

    def imitation_loss(self, output: TokenLogits, wanted: TokenLogits) -> torch.Tensor:
        return divergence(output, wanted)

    def loss(self, examples: Sequence[Example], output: TokenLogits) -> torch.Tensor:
        """Compute the cross-entropy in nats, and −log(1 − p) of negated tags: a weighted mean over
        the tokens that are annotated and have a wordpiece."""
        number = {label: i for i, label in enumerate(self.labels)}
        weights = self._weights(output.logits)
        classes = np.full(len(output.has_wordpiece), -1, dtype=np.int64)
        wrong: list[Negation] = []
        tags = [t for eg in examples for t in eg.get_aligned(self.cfg["attr"].upper(), True)]
        for i, tag in enumerate(tags):
            if not tag:
                continue
            is_wrong = is_negated(tag, number)
            found = number.get(tag[1:] if is_wrong else tag, -1)
            if is_wrong and found >= 0 and output.has_wordpiece[i]:
                mask = np.arange(len(number)) == found
                wrong.append(Negation(np.asarray([i]), [mask], float(weights[found])))
            elif not is_wrong and found < 0:
                self.warn_unknown(tag)
            elif not is_wrong and output.has_wordpiece[i]:
                classes[i] = found
        return tag_loss(
            output.logits,
            classes,
            weights=weights,
            label_smoothing=self.cfg["label_smoothing"],
            negations=wrong,
        )

    def probabilities(self, output: TokenLogits) -> torch.Tensor:
        """Return the probabilities of all tags (num_tokens, num_labels)."""
        return (output.logits / self.temperature).softmax(-1)

    def claims(self, examples: Sequence[Example], output: TokenLogits) -> Iterator[Claim]:
        attr, labels = self.cfg["attr"], self.labels
        p = self.probabilities(output).cpu().numpy()
        p[~output.has_wordpiece] = np.nan
        stops = np.cumsum(output.lengths)[:-1]
        for example, rows in zip(examples, np.split(p, stops), strict=True):
            gold = [known_tag(token, attr, labels) for token in example.reference]
            yield from claim_tags(example, gold, rows, labels)

    def set_annotations(self, docs: Sequence[Doc], output: TokenLogits) -> None:
        """Write the tags, unless a token has one and `overwrite` is false."""
        attr = self.cfg["attr"] + "_"
        space = SPACE_TAGS[self.cfg["attr"]]
        labels, overwrite = self.labels, self.cfg["overwrite"]
        best = output.logits.argmax(dim=1)
        score = torch.ones(len(best))
        if self.may_abstain:
            score = self.probabilities(output).amax(dim=1)
        rows = zip(best.tolist(), score.tolist(), output.has_wordpiece.tolist(), strict=True)
        for doc in docs:
            left_out = []
            for token in doc:
                number, p, has_wordpiece = next(rows)
                label = labels[number]
                if getattr(token, attr) and not overwrite:
                    continue
                if has_wordpiece and not self.reaches_threshold(label, p):
                    place = {"start_char": token.idx, "end_char": token.idx + len(token)}
                    left_out.append({"label": label, "score": p, **place})
                elif has_wordpiece:
                    setattr(token, attr, label)
                elif token.is_space and space in labels:
                    setattr(token, attr, space)
            self.note_abstained(doc, left_out)
