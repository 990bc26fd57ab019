"""Named entity recognition: tags of tokens, decoded into entities that don't overlap."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model

from ..data.annotations import set_entities
from ..data.records import Settings
from ..encoder.listener import DEFAULT_LISTENER
from ..encoder.model import shim_of
from ..text.doc_data import ENT_SCORES, get_ent_score, get_ent_scores, register_extension
from ..text.user_data import set_value
from .calibrated import check_probability
from .claims import Claim, claim_entities
from .crf import MAX_TAGS, allowed_transitions, crf_loss
from .declared import HFClasses, Score, score_weights
from .decoding import decode
from .entities import split_by_threshold, write_entities
from .find import register_extensions
from .gold import is_negated, make_warnings, negations, read_gold, tag_classes, without_negated
from .head import BertHead
from .imitation import distance, divergence
from .model import CRF, set_aggregation
from .modules import AGGREGATIONS
from .negations import check_label_smoothing, tag_loss
from .outputs import TokenLogits, map_tensors
from .pipelines import labels_beside
from .tags import SCHEMES, STRICT_SCHEMES, read_tags
from .tallies import Counts, Floats, Tally, count_decisions, match_entities, micro
from .units import ALIGNMENT_MODES, Units, to_tokens

LOSSES = ("softmax", "crf")
DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.TokenHead.v1",
    "dropout": None,
    "lstm_width": 0,
    "learning_rate_multiplier": 1.0,
    "tok2vec": DEFAULT_LISTENER,
}
SCORES = {
    "ents_f": Score("entities F", 1.0),
    "ents_p": Score("entities P", 0.0),
    "ents_r": Score("entities R", 0.0),
    "ents_per_type": Score("entities"),
}


@Language.factory(
    "bert_ner",
    assigns=["doc.ents", "token.ent_iob", "token.ent_type", "doc._.ent_scores", "doc.spans"],
    default_config={
        "model": DEFAULT_MODEL,
        "scheme": "BIO",
        "threshold": 0.0,
        "spans_key": None,
        "incorrect_spans_key": None,
        "alignment_mode": "strict",
        "aggregation": "first",
        "loss": "softmax",
        "class_weights": None,
        "label_smoothing": 0.0,
        "temperature": None,
        "thresholds": None,
        "scorer": {"@scorers": "spacy.ner_scorer.v1"},
    },
    default_score_weights=score_weights(SCORES),
)
def make_bert_ner(
    nlp: Language,
    name: str,
    model: Model[list[Doc], TokenLogits],
    scheme: str,
    threshold: float,
    spans_key: str | None,
    incorrect_spans_key: str | None,
    alignment_mode: str,
    aggregation: str,
    loss: str,
    class_weights: dict[str, float] | str | None,
    label_smoothing: float,
    temperature: float | None,
    thresholds: dict[str, float] | str | None,
    scorer: Callable | None,
) -> "BertNER":
    """Create a named entity recognizer.

    White space and zero-width characters at the borders of entities are not learned and not
    predicted. A gold entity with the label `!PERSON` says that these tokens are not a PERSON; they
    may be anything else.

    scheme (str): The tags to learn: "BIO" or "BILOU", decoded into valid sequences only. For
        checkpoints that have such tags also "IOB" and "IOBES", where an entity may begin and end
        with any tag, and "IO", which does not mark where an entity begins.
    threshold (float): Entities with a lower probability than this are not written, 0 to 1.
    thresholds (Optional[Dict[str, float]]): The same by label.
    temperature (Optional[float]): Logits are divided by it. None takes that of `bert calibrate`.
    spans_key (Optional[str]): Also write the entities to this span group, and their probabilities
        to `doc.spans[spans_key].attrs["scores"]`. spaCy's retokenizer does not update span groups;
        `doc._.ent_scores` stays correct.
    incorrect_spans_key (Optional[str]): A span group of gold Docs with spans that are not entities
        of their label, such as Prodigy's rejected ones. Other borders or labels may be right.
    alignment_mode (str): What to do with entities whose borders are inside of a token, because the
        gold data is tokenized differently, or with aggregation = "simple": "strict" skips them,
        "contract" keeps the tokens that are inside, "expand" takes all tokens that they touch.
    aggregation (str): How a token is classified, in the terms of transformers' pipelines: by its
        "first" wordpiece, by the "average" of its wordpieces' probabilities, or by the wordpiece
        with the "max" probability. "simple" tags wordpieces and finds the tokens by
        `alignment_mode`. It can be changed when a pipeline is loaded.
    loss (str): "softmax", the cross-entropy of each token; or "crf", a conditional random field
        over whole Docs, which learns the transitions between at most 200 tags.
    class_weights (Optional[Dict[str, float]]): Weights in the loss by label, "O" for tokens outside
        of entities; 1 by default. Not with "crf".
    label_smoothing (float): As in torch's cross_entropy, 0 to 1. Not with "crf".
    """
    return BertNER.for_pipeline(
        nlp,
        name,
        model,
        scheme=scheme,
        threshold=threshold,
        spans_key=spans_key,
        incorrect_spans_key=incorrect_spans_key,
        alignment_mode=alignment_mode,
        aggregation=aggregation,
        loss=loss,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
        temperature=temperature,
        thresholds=thresholds,
        scorer=scorer,
    )


class BertNER(BertHead):
    """Recognize named entities.

    Entities are added to `doc.ents`; one that overlaps an entity of an earlier component is not.
    Their probabilities are in `doc._.ent_scores` and `ent._.ent_score`. The settings are those of
    `make_bert_ner`; an invalid value raises ValueError.
    """

    factory = "bert_ner"
    scores = SCORES
    json_keys = ("spans", "entities")
    annotation = "entities"
    hf_task = "token-classification"
    no_thresholds = {"thresholds": None, "threshold": 0.0}

    def __init__(
        self,
        vocab: Vocab,
        model: Model[list[Doc], TokenLogits],
        name: str = "bert_ner",
        *,
        scheme: str = "BIO",
        threshold: float = 0.0,
        spans_key: str | None = None,
        incorrect_spans_key: str | None = None,
        alignment_mode: str = "strict",
        aggregation: str = "first",
        loss: str = "softmax",
        class_weights: dict[str, float] | None = None,
        label_smoothing: float = 0.0,
        scorer: Callable | None = None,
        **calibration: Any,
    ) -> None:
        check_probability("threshold", threshold)
        for setting, value, values in (
            ("scheme", scheme, SCHEMES),
            ("alignment_mode", alignment_mode, ALIGNMENT_MODES),
            ("aggregation", aggregation, AGGREGATIONS),
            ("loss", loss, LOSSES),
        ):
            if value not in values:
                raise ValueError(f"{setting} is '{value}'. Choose one of: {', '.join(values)}.")
        if loss == "crf":
            if class_weights or label_smoothing:
                raise ValueError(
                    f"{name} has class_weights or label_smoothing, which apply to single tokens, "
                    'but loss = "crf" scores whole texts. Remove them, or set loss = "softmax".'
                )
            model.attrs[CRF] = True
        register_extensions()
        super().__init__(
            vocab,
            model,
            name,
            scorer=scorer,
            scheme=scheme,
            class_weights=class_weights,
            threshold=threshold,
            spans_key=spans_key,
            incorrect_spans_key=incorrect_spans_key,
            alignment_mode=alignment_mode,
            aggregation=aggregation,
            loss=loss,
            label_smoothing=check_label_smoothing(label_smoothing),
            **calibration,
        )
        self._moved, self._dropped, self._lost = make_warnings(name)

    @property
    def tags(self) -> list[str]:
        """The model's classes in order: "O", then the tags of each label."""
        prefixes = dict.fromkeys(SCHEMES[self.cfg["scheme"]].values())
        return ["O", *(f"{prefix}-{label}" for label in self.labels for prefix in prefixes)]

    @property
    def n_classes(self) -> int:
        return len(self.tags)

    @property
    def weighted_labels(self) -> tuple[str, ...]:
        return ("O", *self.labels)

    def has_gold(self, example: Example) -> bool:
        wrong = example.reference.spans.get(self.cfg["incorrect_spans_key"], ())
        return self.is_annotated(example.reference) or len(wrong) > 0

    def labels_of(self, example: Example) -> Iterable[str]:
        ents = example.reference.ents
        return (ent.label_ for ent in ents if not is_negated(ent.label_, self.labels))

    @classmethod
    def set_extensions(cls) -> None:
        set_scores = partial(set_value, ENT_SCORES)
        register_extension(Doc, ENT_SCORES, getter=get_ent_scores, setter=set_scores)
        register_extension(Span, "ent_score", getter=get_ent_score)

    @classmethod
    def read_json(cls, doc: Doc, value: Any, settings: Settings) -> None:
        set_entities(doc, value, settings)

    @classmethod
    def count_labels(cls, doc: Doc) -> dict[str, int]:
        return Counter(ent.label_ for ent in doc.ents)

    @classmethod
    def is_annotated(cls, doc: Doc) -> bool:
        return doc.has_annotation("ENT_IOB")

    def data_checks(self) -> list:
        from ..checks.heads import check_entity_borders, check_entity_tokens

        return [
            *super().data_checks(),
            (check_entity_borders, "no entity begins or ends with white space"),
            (check_entity_tokens, "all entities are made of whole tokens"),
        ]

    @classmethod
    def fits_hf(cls, config: Any, names: Sequence[str]) -> int:
        return 2 if "O" in names else 0

    @classmethod
    def read_hf(cls, config: Any, names: Sequence[str], checkpoint: str) -> HFClasses:
        tags = read_tags(names)
        lacking = [number < 0 for number in tags.classes]
        return HFClasses({"scheme": tags.scheme}, tags.labels, tags.nearest_classes(), lacking)

    def hf_names(self) -> list[str]:
        if self.cfg["scheme"] == "IO":
            return ["O", *self.labels]
        if self.cfg["scheme"] in ("BILOU", "IOBES"):
            warnings.warn(
                "transformers.pipeline doesn't know the tags L and U and will not join the tokens "
                "of an entity; AutoModelForTokenClassification returns the same logits.",
                stacklevel=4,
            )
        return self.tags

    def _after_loading(self) -> None:
        trained, shim = {"scheme": self.cfg["scheme"]}, shim_of(self.model)
        if shim.has_module:
            has_crf = getattr(shim.module, "transitions", None) is not None
            trained["loss"] = "crf" if has_crf else "softmax"
        for setting, value in trained.items():
            if value != self._config[setting]:
                raise ValueError(
                    f'{self.name} was trained with {setting} = "{value}", so it can\'t be loaded '
                    f'with "{self._config[setting]}". Train it again for that.'
                )
        super()._after_loading()

    def check_labels(self) -> None:
        super().check_labels()
        if self.cfg["loss"] == "crf" and self.n_classes > MAX_TAGS:
            raise ValueError(
                f'{self.name} has {self.n_classes} tags, but loss = "crf" takes at most '
                f"{MAX_TAGS}: it learns a transition for each pair of tags. Set loss = "
                '"softmax", use scheme = "BIO" if it is another one, or use fewer labels.'
            )

    def predict(self, docs: Iterable[Doc]) -> TokenLogits:
        set_aggregation(self.model, self.cfg["aggregation"])
        return self.model.predict(list(docs))

    def begin_update(self, examples: list[Example]) -> tuple[Any, Callable] | None:
        set_aggregation(self.model, self.cfg["aggregation"])
        return super().begin_update(examples)

    def unlabelled_inputs(self, docs: list[Doc]) -> list[Doc] | None:
        set_aggregation(self.model, self.cfg["aggregation"])
        return docs or None

    def imitation_loss(self, output: TokenLogits, wanted: TokenLogits) -> torch.Tensor:
        return (divergence if output.transitions is None else distance)(output, wanted)

    def loss(self, examples: Sequence[Example], output: TokenLogits) -> torch.Tensor:
        """Compute the cross-entropy in nats, plus −log(1 − p) of spans that are annotated as wrong:
        a weighted mean over annotated tokens that can have a tag, and over wrong spans. With a
        conditional random field, −log p of each Doc's annotation, see `crf_loss`."""
        units = Units.of(output, [example.predicted for example in examples])
        gold = read_gold(
            examples,
            units,
            labels=self.labels,
            mode=self.cfg["alignment_mode"],
            incorrect_spans_key=self.cfg["incorrect_spans_key"],
        )
        self._moved.add_new(gold.moved)
        self._dropped.add_new(gold.dropped)
        beside = labels_beside(self)
        for label in sorted({span.label for span in gold.entities} - {*self.labels, *beside}):
            self.warn_unknown(label)
        by_label = self.cfg["class_weights"] or {}
        weights = [by_label.get(tag[2:] or tag, 1.0) for tag in self.tags]
        scheme = self.cfg["scheme"]
        classes = tag_classes(gold, self.tags, scheme, beside)
        wrong = negations(gold, units, self.tags, scheme, weights)
        if output.transitions is not None:
            return crf_loss(
                output.logits,
                output.transitions,
                classes,
                units.lengths,
                units.tagged,
                allowed=allowed_transitions(self.tags, strict=scheme in STRICT_SCHEMES),
                negations=wrong,
            )
        return tag_loss(
            output.logits,
            classes,
            weights=output.logits.new_tensor(weights),
            label_smoothing=self.cfg["label_smoothing"],
            negations=wrong,
        )

    def score(self, examples: Iterable[Example], **kwargs: Any) -> dict[str, Any]:
        """Score the annotated examples; negated entities (`!PERSON`) count as not annotated."""
        return super().score((without_negated(eg, self.labels) for eg in examples), **kwargs)

    def tally(self, example: Example) -> Tally:
        return count_decisions(match_entities(without_negated(example, self.labels)))

    @classmethod
    def scores_of(cls, counts: Counts) -> dict[str, Floats]:
        return dict(zip(("ents_p", "ents_r", "ents_f"), micro(counts), strict=True))

    def claims(self, examples: Sequence[Example], output: TokenLogits) -> Iterator[Claim]:
        for example in examples:
            yield from claim_entities(without_negated(example, self.labels), self.name)

    def reaches_threshold(self, label: str, probability: float) -> bool:
        is_sure = super().reaches_threshold(label, probability)
        return is_sure and probability >= self.cfg["threshold"]

    def set_annotations(self, docs: Sequence[Doc], output: TokenLogits) -> None:
        """Write the entities and their probabilities."""
        units = Units.of(output, docs)
        scaled = map_tensors(output, lambda logits: logits / self.temperature)
        spans = decode(
            scaled._replace(has_wordpiece=units.tagged),
            self.tags,
            strict=self.cfg["scheme"] in STRICT_SCHEMES,
        )
        if output.offsets is not None:
            spans = to_tokens(spans, units, docs, self.cfg["alignment_mode"], self._lost.add)
        labels = np.asarray([self.vocab.strings.add(label) for label in self.labels], dtype="u8")
        columns = (spans.start, spans.end, labels[spans.label], spans.score)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        bounds = np.searchsorted(spans.doc, np.arange(len(docs) + 1)).tolist()
        for i, doc in enumerate(docs):
            found = rows[bounds[i] : bounds[i + 1]]
            left_out: list[dict[str, Any]] = []
            if self.may_abstain:
                found, left_out = split_by_threshold(doc, found, self.reaches_threshold)
            self.note_abstained(doc, left_out)
            write_entities(doc, found, component=self.name, spans_key=self.cfg["spans_key"])
