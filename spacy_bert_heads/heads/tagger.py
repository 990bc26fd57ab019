"""One class for each token: fine-grained tags or coarse parts of speech."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from spacy.language import Language
from spacy.parts_of_speech import IDS as UNIVERSAL_TAGS
from spacy.scorer import Scorer
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model

from .declared import HFClasses, Score, score_weights
from .head import BertHead
from .losses import token_loss
from .ner import DEFAULT_MODEL
from .outputs import TokenLogits

ATTRS = ("tag", "pos")
SPACE_TAGS = {"tag": "_SP", "pos": "SPACE"}  # what spaCy calls white space
# One of the two is there; either must move the score that `spacy train` keeps the best by.
SCORES = {"tag_acc": Score("tags", 0.5), "pos_acc": Score("parts of speech", 0.5)}


@Language.factory(
    "bert_tagger",
    assigns=["token.tag", "token.pos"],
    default_config={
        "model": DEFAULT_MODEL,
        "attr": "tag",
        "scorer": {"@scorers": "spacy_bert_heads.tagger_scorer.v1"},
    },
    default_score_weights=score_weights(SCORES),
)
def make_bert_tagger(
    nlp: Language,
    name: str,
    model: Model[list[Doc], TokenLogits],
    attr: str,
    scorer: Callable | None,
) -> "BertTagger":
    """Create a tagger.

    nlp (Language): The pipeline.
    name (str): The component's name.
    model (Model[List[Doc], TokenLogits]): The token head.
    attr (str): What to learn and write: "tag" for `token.tag_`, "pos" for `token.pos_`.
    scorer (Optional[Callable]): The scorer.
    """
    return BertTagger(nlp.vocab, model, name, attr=attr, scorer=scorer)


def tagger_score(
    examples: Iterable[Example], *, attr: str = "tag", **kwargs: Any
) -> dict[str, Any]:
    """Score one attribute of the tokens by spaCy's own `Scorer.score_token_attr`.

    examples (Iterable[Example]): The examples.
    attr (str): "tag" or "pos".
    RETURNS (Dict[str, Any]): `tag_acc` or `pos_acc`.
    """
    return Scorer.score_token_attr(examples, attr, **kwargs)


def make_tagger_scorer() -> Callable:
    """RETURNS (Callable): The scorer."""
    return tagger_score


class BertTagger(BertHead):
    """Tag tokens. A token without a wordpiece keeps what it has; white space is tagged as spaCy
    does, if the training data had such a tag.

    vocab (Vocab): The vocabulary.
    model (Model[List[Doc], TokenLogits]): The token head.
    name (str): The component's name.
    attr (str): "tag" or "pos".
    scorer (Optional[Callable]): The scorer.
    RAISES (ValueError): If there is no such attribute.
    """

    factory = "bert_tagger"
    scores = SCORES
    hf_task = "token-classification"

    def __init__(
        self,
        vocab: Vocab,
        model: Model[list[Doc], TokenLogits],
        name: str = "bert_tagger",
        *,
        attr: str = "tag",
        scorer: Callable | None = None,
    ) -> None:
        if attr not in ATTRS:
            raise ValueError(f"attr is '{attr}'. Choose one of: {', '.join(ATTRS)}.")
        super().__init__(vocab, model, name, scorer=scorer, attr=attr)

    def has_gold(self, example: Example) -> bool:
        return example.reference.has_annotation(self.cfg["attr"].upper())

    def labels_of(self, example: Example) -> Iterable[str]:
        attr = self.cfg["attr"] + "_"
        return (getattr(token, attr) for token in example.reference if getattr(token, attr))

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
        return {"attr": self.cfg["attr"]}

    def loss(self, examples: Sequence[Example], output: TokenLogits) -> torch.Tensor:
        """Cross-entropy in nats, a mean over the tokens that are annotated and have a wordpiece."""
        number = {label: i for i, label in enumerate(self.labels)}
        classes: list[int] = []
        for example in examples:
            for label in example.get_aligned(self.cfg["attr"].upper(), as_string=True):
                classes.append(number.get(label, -1) if label else -1)
                if label and classes[-1] < 0:
                    self.warn_unknown(label)
        return token_loss(output, classes)

    def set_annotations(self, docs: Sequence[Doc], output: TokenLogits) -> None:
        """Write the tags."""
        attr = self.cfg["attr"] + "_"
        space = SPACE_TAGS[self.cfg["attr"]]
        labels = self.labels
        best = iter(
            zip(output.logits.argmax(dim=1).tolist(), output.has_wordpiece.tolist(), strict=True)
        )
        for doc in docs:
            for token in doc:
                label, has_wordpiece = next(best)
                if has_wordpiece:
                    setattr(token, attr, labels[label])
                elif token.is_space and space in labels:
                    setattr(token, attr, space)
