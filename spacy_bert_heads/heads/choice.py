"""Which of several options is right: the most plausible ending, or the answer to a question."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model

from ..data.choices import read_answer
from ..data.records import Settings, check_list
from ..encoder.listener import DEFAULT_LISTENER
from ..encoder.model import PackedPairs
from ..text.doc_data import check_choices, drop_results, make_choice
from ..text.user_data import copy_of_list, set_value
from .claims import OPTION, Claim, claim_options
from .declared import HFClasses, Score, score_weights
from .free_text import read_text
from .layers import MAX_WINDOWS
from .losses import cross_entropy
from .pair_head import UnlabelledPairHead, match_predictions
from .tallies import Counts, Floats, ratio

DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.ChoiceHead.v1",
    "dropout": None,
    "max_windows": MAX_WINDOWS,
    "learning_rate_multiplier": 1.0,
    "tok2vec": DEFAULT_LISTENER,
}
SCORES = {
    "choice_acc": Score("choices, accuracy", 1.0),
    "choice_chance": Score("choices, accuracy of chance"),
}


@Language.factory(
    "bert_choice",
    assigns=["doc._.chosen"],
    default_config={
        "model": DEFAULT_MODEL,
        "temperature": None,
        "thresholds": None,
        "scorer": {"@scorers": "spacy_bert_heads.choice_scorer.v1"},
    },
    default_score_weights=score_weights(SCORES),
)
def make_bert_choice(
    nlp: Language,
    name: str,
    model: Model[PackedPairs, torch.Tensor],
    temperature: float | None,
    thresholds: dict[str, float] | str | None,
    scorer: Callable | None,
) -> "BertChoice":
    """Create a component that chooses one option for each of `doc._.choices`.

    temperature (Optional[float]): Logits are divided by it. None takes that of `bert calibrate`.
    thresholds (Optional[Dict[str, float]]): {"option": 0.8}: no option is chosen below it.
    """
    (by_label,) = read_text(nlp, name, thresholds=thresholds)
    return BertChoice(
        nlp.vocab, model, name, temperature=temperature, thresholds=by_label, scorer=scorer
    )


def make_choice_scorer() -> Callable:
    return score_choices


def score_choices(examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
    """Compute `choice_acc`, the accuracy, and `choice_chance`, the expected accuracy of guessing;
    None if no choice is annotated. Raises ValueError if a predicted Doc lacks choices of its
    reference."""
    right, chance = [], []
    for example in examples:
        for gold, found in match_predictions(example, "choices", "chosen"):
            right.append(found is not None and found["answer"] == gold["answer"])
        asked = copy_of_list("choices", example.reference)
        for choice, gold in zip(asked, copy_of_list("chosen", example.reference), strict=False):
            if gold is not None:
                chance.append(1 / len(choice["options"]))
    if not right:
        return {"choice_acc": None, "choice_chance": None}
    return {"choice_acc": float(np.mean(right)), "choice_chance": float(np.mean(chance))}


class BertChoice(UnlabelledPairHead):
    """Choose one option for each of `doc._.choices`, dicts with "options" and maybe a "question".

    `doc._.chosen` gets the index of the most probable option and the probability of each. The
    model reads the Doc with each option, which follows the question if there is one, and a softmax
    runs over the logits of the options (BERT, section 4.4, where the Doc is SWAG's first sentence).
    """

    factory = "bert_choice"
    scores = SCORES
    input_name, output_name = "choices", "chosen"
    does = "chooses between options"
    doc_first = True
    json_keys = ("choices",)
    annotation = "choices"
    made_by = "made with spacy_bert_heads.pairs.make_choice"
    hf_task = "multiple-choice"
    n_classes = 1  # one logit for each option
    threshold_labels = (OPTION,)

    def __init__(
        self,
        vocab: Vocab,
        model: Model[PackedPairs, torch.Tensor],
        name: str = "bert_choice",
        *,
        scorer: Callable | None = score_choices,
        **calibration: Any,
    ) -> None:
        super().__init__(vocab, model, name, texts=(), scorer=scorer, **calibration)

    # --- data, and exchange with Hugging Face

    @classmethod
    def check_asked(cls, asked: Any, where: str) -> list[dict[str, Any]]:
        return check_choices(asked, where)

    @classmethod
    def texts_of(cls, asked: dict[str, Any]) -> list[str]:
        question = asked["question"]
        return [f"{question} {option}" if question else option for option in asked["options"]]

    @classmethod
    def join(cls, results: list[torch.Tensor]) -> dict[str, Any]:
        p = torch.stack(results).softmax(0)
        return make_choice(int(p.argmax()), p.tolist())

    @classmethod
    def read_json(cls, doc: Doc, value: Any, settings: Settings) -> None:
        """Read a list of `{"question": "…", "options": ["…", "…"], "answer": 0}`; the question and
        the answer may be missing."""
        given = check_list("choices", value)
        choices = check_choices(given, "choices")
        answers = [
            read_answer(one.get("answer"), choice["options"])
            for one, choice in zip(given, choices, strict=True)
        ]
        set_value(cls.input_name, doc, choices)
        set_value(cls.output_name, doc, [x if x is None else make_choice(x) for x in answers])

    def check_gold(self, example: Example) -> None:
        for choice, entry in self.gold_pairs(example):
            answer = entry.get("answer") if isinstance(entry, dict) else None
            if type(answer) is not int or not 0 <= answer < len(choice["options"]):
                raise ValueError(
                    f"The gold choice between {choice['options']} must have the number of an "
                    f"option, counted from 0, but is {entry!r}. Make it with "
                    "spacy_bert_heads.pairs.make_choice(answer)."
                )

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        return 1

    @classmethod
    def read_hf(cls, config: Any, names: Sequence[str], checkpoint: str) -> HFClasses:
        if len(names) != cls.n_classes:
            raise ValueError(
                f"'{checkpoint}' has {len(names)} outputs; a choice needs one for each option."
            )
        return HFClasses({}, [], [0], [False])

    def hf_names(self) -> list[str]:
        return ["LABEL_0"]

    # --- training and predicting

    def start_from_data(self, examples: Iterable[Example]) -> None:
        for example in examples:
            self.check_gold(example)

    def loss(self, examples: Sequence[Example], output: torch.Tensor) -> torch.Tensor:
        """Compute the softmax cross-entropy in nats over the options, a mean over choices. `output`
        has the logits of all options (num_options, 1), choice after choice."""
        taught = list(chain.from_iterable(map(self.training_pairs, examples)))
        parts = output[:, 0].split([len(choice["options"]) for choice, _ in taught])
        rows = torch.nn.utils.rnn.pad_sequence(
            list(parts), batch_first=True, padding_value=-torch.inf
        )
        return cross_entropy(rows, np.asarray([entry["answer"] for _, entry in taught]))

    def read_out(self, output: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the logit of each option, divided by the temperature."""
        yield from output[:, 0].float().cpu() / self.temperature

    def set_annotations(self, docs: Sequence[Doc], results: list) -> None:
        """Write the chosen options, None where none is sure; `results` is what `predict`
        returned."""
        for doc, (choices, chosen) in zip(docs, results, strict=True):
            left_out: list[dict[str, Any]] = []
            if choices:
                asked = zip(choices, chosen, strict=True)
                given = [one and self._decide(one, choice, left_out) for choice, one in asked]
                set_value(self.output_name, doc, given)
            else:
                drop_results(doc, self.output_name)
            self.note_abstained(doc, left_out)

    def _decide(self, entry: dict[str, Any], choice: dict, left_out: list) -> dict[str, Any] | None:
        """Give what is chosen; None if that is not sure, then add it to `left_out`."""
        answer = entry["answer"]
        p = entry["scores"][answer]
        if self.reaches_threshold(OPTION, p):
            return entry
        left_out.append({"label": OPTION, "score": p, "answer": answer, "asked": choice})
        return None

    def claims(self, examples: Sequence[Example], output: list) -> Iterator[Claim]:
        for example in examples:
            yield from claim_options(example, (self.input_name, self.output_name))

    def truths(self, example: Example) -> Mapping[str, float]:
        return Counter(OPTION for _ in self.gold_pairs(example))

    # --- comparison with other pipelines

    def decisions(self, example: Example) -> list[tuple[str, str]]:
        matched = match_predictions(example, self.input_name, self.output_name)
        return [
            (f"{gold['answer']}", f"{found['answer']}" if found else "") for gold, found in matched
        ]

    @classmethod
    def scores_of(cls, counts: Counts) -> dict[str, Floats]:
        right, wrong = counts["tp"].sum(axis=-1), counts["fn"].sum(axis=-1)
        return {"choice_acc": ratio(right, right + wrong)}
