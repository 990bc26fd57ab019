"""Named entities: a tag for each token, decoded into entities that fit together."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from spacy.attrs import ENT_IOB, ENT_TYPE
from spacy.language import Language
from spacy.tokens import Doc, Span
from spacy.training import Example
from spacy.vocab import Vocab
from thinc.api import Model, get_array_module

from ..encoder.listener import DEFAULT_LISTENER
from ..types import Bools1d, Ints1d, TokenScores
from .head import BertHead, cross_entropy

DEFAULT_MODEL = {
    "@architectures": "spacy_bert_heads.TokenHead.v1",
    "dropout": None,
    "lstm_width": 0,
    "rate_factor": 1.0,
    "tok2vec": DEFAULT_LISTENER,
}

# The tags of each scheme, by what spaCy's aligned gold tags, which are BILUO, are called in it. The
# last three are for checkpoints: in IOB and IOBES (BILOU otherwise) an entity may begin and end
# with any tag; IO has no way to part two neighbours.
BIO = {"B": "B", "I": "I", "L": "I", "U": "B"}
BILOU = {"B": "B", "I": "I", "L": "L", "U": "U"}
IO = {"B": "I", "I": "I", "L": "I", "U": "I"}
SCHEMES = {"BIO": BIO, "BILOU": BILOU, "IOB": BIO, "IOBES": BILOU, "IO": IO}
STRICT_SCHEMES = ("BIO", "BILOU")


@Language.factory(
    "bert_ner",
    assigns=["doc.ents", "token.ent_iob", "token.ent_type", "doc.spans"],
    default_config={
        "model": DEFAULT_MODEL,
        "scheme": "BIO",
        "threshold": 0.0,
        "spans_key": "ents",
        "scorer": {"@scorers": "spacy.ner_scorer.v1"},
    },
    default_score_weights={"ents_f": 1.0, "ents_p": 0.0, "ents_r": 0.0, "ents_per_type": None},
)
def make_bert_ner(
    nlp: Language,
    name: str,
    model: Model[list[Doc], TokenScores],
    scheme: str,
    threshold: float,
    spans_key: str | None,
    scorer: Callable | None,
) -> "BertNER":
    """Create a named entity recognizer.

    nlp (Language): The pipeline.
    name (str): The component's name.
    model (Model[List[Doc], TokenScores]): The token head.
    scheme (str): The tags to learn. "BIO" or "BILOU", of which only sequences that make sense
        are read; for checkpoints that have such tags "IOB" and "IOBES", where an entity may begin
        and end with any of them, and "IO", without a mark of its beginning.
    threshold (float): Entities less probable than this are left out, 0 to 1.
    spans_key (Optional[str]): Where the entities go with their probabilities:
        `doc.spans[spans_key].attrs["scores"]`; None for nowhere.
    scorer (Optional[Callable]): The scorer.
    """
    return BertNER(
        nlp.vocab,
        model,
        name,
        scheme=scheme,
        threshold=threshold,
        spans_key=spans_key,
        scorer=scorer,
    )


class BertNER(BertHead):
    """Recognize named entities. They are written to `doc.ents` beside those that are there
    already, which win where they overlap, and with their probabilities to `doc.spans`.

    vocab (Vocab): The vocabulary.
    model (Model[List[Doc], TokenScores]): The token head.
    name (str): The component's name.
    scheme (str): "BIO", "BILOU", "IOB", "IOBES" or "IO".
    threshold (float): Entities less probable than this are left out.
    spans_key (Optional[str]): The span group for entities and probabilities.
    scorer (Optional[Callable]): The scorer.
    RAISES (ValueError): If there is no such scheme, or the threshold is no probability.
    """

    def __init__(
        self,
        vocab: Vocab,
        model: Model[list[Doc], TokenScores],
        name: str = "bert_ner",
        *,
        scheme: str = "BIO",
        threshold: float = 0.0,
        spans_key: str | None = "ents",
        scorer: Callable | None = None,
    ) -> None:
        if scheme not in SCHEMES:
            raise ValueError(f"Unknown scheme '{scheme}'. Choose one of: {', '.join(SCHEMES)}.")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; it must be a probability, 0 to 1.")
        super().__init__(
            vocab,
            model,
            name,
            scorer=scorer,
            scheme=scheme,
            threshold=threshold,
            spans_key=spans_key,
        )

    @property
    def tags(self) -> list[str]:
        """RETURNS (List[str]): The model's classes in order: "O", then each label's."""
        prefixes = dict.fromkeys(SCHEMES[self.cfg["scheme"]].values())
        return ["O", *(f"{prefix}-{label}" for label in self.labels for prefix in prefixes)]

    @property
    def n_classes(self) -> int:
        return len(self.tags)

    def has_gold(self, example: Example) -> bool:
        return example.reference.has_annotation("ENT_IOB")

    def labels_of(self, example: Example) -> Iterable[str]:
        return (ent.label_ for ent in example.reference.ents)

    def _settle(self) -> "BertNER":
        if self.cfg["scheme"] != self._config["scheme"]:
            raise ValueError(
                f'{self.name} was trained with scheme = "{self.cfg["scheme"]}", so it can\'t be '
                f'loaded with "{self._config["scheme"]}". Train it anew for that.'
            )
        super()._settle()
        return self

    def get_loss(self, examples: Iterable[Example], scores: TokenScores) -> tuple[float, Any]:
        """Cross-entropy over the tokens that are annotated and have a wordpiece.

        examples (Iterable[Example]): The batch.
        scores (TokenScores): The model's answer.
        RETURNS (Tuple[float, Floats2d]): The loss in nats, and its gradient by the logits.
        """
        number = {tag: i for i, tag in enumerate(self.tags)}
        rename = SCHEMES[self.cfg["scheme"]]
        classes: list[int] = []
        for example in examples:
            for tag in example.get_aligned_ner():
                if tag is None or tag[0] in "-":
                    classes.append(-1)
                elif tag == "O":
                    classes.append(0)
                else:
                    prefix, _, label = tag.partition("-")
                    classes.append(number.get(f"{rename[prefix]}-{label}", -1))
                    if classes[-1] < 0:
                        self.warn_unknown(label)
        known = np.where(scores.known, np.asarray(classes, dtype=np.int64), -1)
        return cross_entropy(scores.logits, known)

    def set_annotations(self, docs: Sequence[Doc], scores: TokenScores) -> None:
        """Write the entities.

        docs (Sequence[Doc]): The Docs.
        scores (TokenScores): The model's answer.
        """
        spans = decode(
            scores,
            self.tags,
            strict=self.cfg["scheme"] in STRICT_SCHEMES,
            threshold=self.cfg["threshold"],
        )
        labels = np.asarray([self.vocab.strings.add(label) for label in self.labels], dtype="u8")
        rows = list(
            zip(
                spans.start.tolist(),
                spans.end.tolist(),
                labels[spans.label].tolist(),
                spans.score.tolist(),
                strict=True,
            )
        )
        bounds = np.searchsorted(spans.doc, np.arange(len(docs) + 1)).tolist()
        for i, doc in enumerate(docs):
            self._write(doc, rows[bounds[i] : bounds[i + 1]])

    def _write(self, doc: Doc, entities: list[tuple[int, int, int, float]]) -> None:
        """Write one Doc's entities: (start, end, label, score). Those of earlier components stay,
        so a second recognizer adds to the first; what this one found before gives way."""
        key = self.cfg["spans_key"]
        group, scores = [], []
        if key in doc.spans:
            group = list(doc.spans[key])
            # Spans that somebody appended by hand have no score: they are certain.
            scores = [*doc.spans[key].attrs.get("scores", []), *[1.0] * len(group)]
        own = {(s.start, s.end, s.label) for s in group if s.id_ == self.name}
        others = [ent for ent in doc.ents if (ent.start, ent.end, ent.label) not in own]
        blocked = blocked_tokens(doc)
        taken = {token for ent in others for token in range(ent.start, ent.end)}.union(blocked)
        entities = [row for row in entities if taken.isdisjoint(range(row[0], row[1]))]

        found = [Span(doc, start, end, label=label) for start, end, label, _ in entities]
        blocks = [doc[token : token + 1] for token in blocked]
        doc.set_ents([*others, *found], blocked=blocks, default="outside")
        if key is not None:
            # A span's id says who found it, in the group and not in doc.ents.
            scored = [(s, p) for s, p in zip(group, scores, strict=False) if s.id_ != self.name]
            scored += [
                (Span(doc, start, end, label=label, span_id=self.name), score)
                for start, end, label, score in entities
            ]
            scored.sort(key=lambda pair: (pair[0].start, pair[0].end))
            doc.spans[key] = [span for span, _ in scored]
            doc.spans[key].attrs["scores"] = [score for _, score in scored]


def blocked_tokens(doc: Doc) -> list[int]:
    """RETURNS (List[int]): The tokens that `doc.set_ents(…, blocked=…)` keeps out of entities."""
    if not doc.has_annotation("ENT_IOB"):
        return []
    iob, label = doc.to_array([ENT_IOB, ENT_TYPE]).T
    return np.flatnonzero((iob == 3) & (label == 0)).tolist()


class Spans(NamedTuple):
    """The entities of a batch, in the order of the text."""

    doc: Ints1d  # (n_spans,)
    start: Ints1d  # (n_spans,) first token
    end: Ints1d  # (n_spans,) the token after the last
    label: Ints1d  # (n_spans,)
    score: NDArray[np.float64]  # (n_spans,)


def decode(
    scores: TokenScores, tags: Sequence[str], *, strict: bool = True, threshold: float = 0.0
) -> "Spans":
    """Find the most probable entities that fit together.

    scores (TokenScores): The model's answer.
    tags (Sequence[str]): The model's classes.
    strict (bool): Whether an entity must begin with its first tag and end with its last. If not,
        one begins wherever a token's label is not that of the token before.
    threshold (float): Leave out entities less probable than this.
    RETURNS (Spans): The entities. One's probability is that of its tags in a row, and without
        a tag for its end also that the next token doesn't go on: the model's own, tokens being
        independent in it.
    """
    logits: Any = scores.logits
    xp = get_array_module(logits)
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - xp.log(xp.exp(logits).sum(axis=1, keepdims=True))
    log_p = (log_p if xp is np else xp.asnumpy(log_p)).astype(np.float64)

    # Tokens without a wordpiece are passed over, as if they were not there.
    token = np.flatnonzero(scores.known)
    log_p = log_p[token]
    doc = np.repeat(np.arange(len(scores.lengths)), scores.lengths)[token]
    in_doc = token - np.repeat(np.cumsum(scores.lengths) - scores.lengths, scores.lengths)[token]
    if strict:
        path = viterbi(log_p, np.bincount(doc, minlength=len(scores.lengths)), tags)
    else:
        path = log_p.argmax(axis=1)

    labels = list(dict.fromkeys(tag[2:] for tag in tags if tag != "O"))
    label_of = np.asarray([labels.index(tag[2:]) if tag != "O" else -1 for tag in tags])
    label = label_of[path]
    goes_on = np.asarray([tag[0] in "IL" for tag in tags])[path]
    goes_on[:1] = False
    goes_on[1:] &= (doc[1:] == doc[:-1]) & (label[1:] == label[:-1])
    goes_on[1:] &= np.asarray([tag[0] not in "LU" for tag in tags])[path[:-1]]  # it has ended
    first = np.flatnonzero((label >= 0) & ~goes_on)
    stops = np.append(np.flatnonzero(~goes_on), len(path))
    after = stops[np.searchsorted(stops, first, side="right")]

    sums = np.append(0.0, np.cumsum(log_p[np.arange(len(path)), path]))
    score = sums[after] - sums[first]
    inside = {tag: i for i, tag in enumerate(tags)}
    if not any(tag[0] == "L" for tag in tags):
        going_on = np.asarray([inside.get(f"I-{tag[2:]}", 0) for tag in tags])[path[first]]
        follows = (after < len(path)) & (doc[np.minimum(after, len(path) - 1)] == doc[first])
        at = np.flatnonzero(follows)
        p_on = np.exp(log_p[after[at], going_on[at]])
        score[at] += np.log1p(-np.minimum(p_on, 1 - 1e-12))
    score = np.exp(score)

    keep = score >= threshold
    first, after = first[keep], after[keep]
    return Spans(doc[first], in_doc[first], in_doc[after - 1] + 1, label[first], score[keep])


@cache
def allowed_transitions(tags: tuple[str, ...]) -> tuple[NDArray[np.bool_], Bools1d, Bools1d]:
    """Which tag may follow which, begin a text, end a text.

    tags (Tuple[str, ...]): The tags.
    RETURNS (Tuple[Bools2d, Bools1d, Bools1d]): (from, to), (first), (last). Not to be changed.
    """
    bilou = any(tag[0] in "LU" for tag in tags)
    open_after = {"B", "I"} if bilou else set()
    follow = np.zeros((len(tags), len(tags)), dtype=bool)
    for i, before in enumerate(tags):
        for j, tag in enumerate(tags):
            if tag[0] in "IL":
                follow[i, j] = before[0] in "BI" and before[2:] == tag[2:]
            else:
                follow[i, j] = before[0] not in open_after
    first = np.asarray([tag[0] not in "IL" for tag in tags])
    last = np.asarray([tag[0] not in open_after for tag in tags])
    return follow, first, last


def surely_outside(log_p: NDArray[np.float64], inner: Bools1d, tags: Sequence[str]) -> Bools1d:
    """Find words that are "O" in the most probable path, whatever the words around them are.

    If another tag is taken for such a word, "O" can be put in its place, and what that bars the
    neighbours from can be changed as well, for a path that is no less probable. The neighbour
    behind begins anew (I-PER becomes B-PER), the one before ends here.

    log_p (Floats2d): Log-probabilities, text after text (n_tokens, n_tags).
    inner (Bools1d): Whether the next token is of the same text (n_tokens - 1,).
    tags (Sequence[str]): The tags.
    RETURNS (Bools1d): Which (n_tokens,). There may be others.
    """
    follow, first, last = allowed_transitions(tuple(tags))
    outside = tags.index("O")
    rest = np.delete(log_p, outside, axis=1).max(axis=1, initial=-np.inf)
    lead = log_p[:, outside] - rest
    # What its neighbour loses: behind it, then the same with the text turned round.
    for ways, ends, change, at in (
        (follow, last, lead[:-1], slice(1, None)),
        (follow.T, first, lead[1:], slice(None, -1)),
    ):
        loss = np.zeros(len(log_p))
        for i in np.flatnonzero(~ways[outside]):
            others = ways[outside] & (ways >= ways[i]).all(axis=1) & (ends >= ends[i])
            best = log_p[:, others].max(axis=1, initial=-np.inf)
            loss = np.maximum(loss, log_p[:, i] - best)
        change -= np.where(inner, loss[at], 0.0)
    return lead >= 0


def viterbi(log_p: NDArray[np.float64], lengths: Ints1d, tags: Sequence[str]) -> Ints1d:
    """Find the most probable allowed tags of every text (Viterbi 1967), the batch at once.

    log_p (Floats2d): Log-probabilities, text after text (n_tokens, n_tags).
    lengths (Ints1d): Tokens of each text (n_texts,).
    tags (Sequence[str]): The tags.
    RETURNS (Ints1d): A tag for each token (n_tokens,).
    """
    follow, first, last = allowed_transitions(tuple(tags))
    path = log_p.argmax(axis=1)
    if not len(path):
        return path

    # Where the best tags by themselves are allowed already, they are the best path.
    starts = np.cumsum(lengths) - lengths
    text = np.repeat(np.arange(len(lengths)), lengths)
    inner = text[1:] == text[:-1]
    barred = inner & ~follow[path[:-1], path[1:]]
    wrong = np.append(barred, False)
    wrong[1:] |= barred
    full = np.flatnonzero(lengths)
    ends = (starts + lengths)[full] - 1
    wrong[starts[full]] |= ~first[path[starts[full]]]
    wrong[ends] |= ~last[path[ends]]
    if not wrong.any():
        return path

    # A word that is outside for sure parts a text in two, so that few words need more than that.
    alone = surely_outside(log_p, inner, tags)
    begins = alone.copy()
    begins[1:] |= alone[:-1] | ~inner
    begins[0] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, len(path)))
    wrong = np.flatnonzero(np.logical_or.reduceat(wrong, starts))

    # The others step by step, longest first, so that those still running are the first rows.
    wrong = wrong[np.argsort(-lengths[wrong], kind="stable")]
    start, length = starts[wrong], lengths[wrong]
    steps = int(length[0])
    barred = np.where(follow, 0.0, -np.inf)
    back = np.zeros((steps, len(wrong), len(tags)), dtype=np.int64)
    best = np.where(first, log_p[start], -np.inf)
    for t in range(1, steps):
        n = int(np.searchsorted(-length, -t, side="left"))  # texts longer than t
        ways = best[:n, :, None] + barred
        back[t, :n] = ways.argmax(axis=1)
        best[:n] = ways.max(axis=1) + log_p[start[:n] + t]
    tag = np.where(last, best, -np.inf).argmax(axis=1)
    for t in range(steps - 1, -1, -1):
        n = int(np.searchsorted(-length, -t, side="left"))
        path[start[:n] + t] = tag[:n]
        tag[:n] = back[t, np.arange(n), tag[:n]]
    return path
