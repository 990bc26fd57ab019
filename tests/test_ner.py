"""What the head for entities learns, writes and is scored."""

import warnings

import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme
import torch
from arrays import ints
from head_cases import (
    ALLOWED,
    BIO,
    NLP,
    certain,
    doc_of,
    make_head,
    random_logits,
    scores_of,
    tags_of,
    unannotated,
)
from losses import assert_same_loss, get_loss, in_torch, token_logits
from spacy.tokens import Doc, Span
from spacy.training import Example
from torch.nn import functional as F

# --- entities: what is learned


def with_ents(predicted: str, reference: str, ents: list[tuple[int, int, str]]) -> Example:
    """An Example of two tokenizations ("_" is the word without a space)."""
    docs = [
        Doc(
            NLP.vocab,
            words=[word.rstrip("_") for word in text.split(" ")],
            spaces=[not word.endswith("_") for word in text.split(" ")],
        )
        for text in (predicted, reference)
    ]
    docs[1].set_ents([Span(docs[1], start, end, label) for start, end, label in ents])
    return Example(*docs)


def masked(example: Example, start: int, end: int) -> Example:
    """Take the annotation of some tokens away."""
    reference = example.reference
    rest = [ent for ent in reference.ents if ent.end <= start or ent.start >= end]
    reference.set_ents(rest, missing=[reference[start:end]], default="unmodified")
    return example


# Of BIO the classes are O 0, B-A 1, I-A 2, B-B 3, I-B 4;
# of BILOU O 0, B-A 1, I-A 2, L-A 3, U-A 4, B-B 5, I-B 6, L-B 7, U-B 8.
GOLD = {
    "entities": (
        lambda: with_ents("a b c d", "a b c d", [(0, 2, "A"), (3, 4, "B")]),
        [1, 2, 0, 3],
        [1, 3, 0, 8],
    ),
    "neighbours": (
        lambda: with_ents("a b c d", "a b c d", [(0, 3, "B"), (3, 4, "B")]),
        [3, 4, 4, 3],
        [5, 6, 7, 8],
    ),
    "no entities": (lambda: with_ents("a b", "a b", []), [0, 0], [0, 0]),
    "no annotation": (lambda: unannotated("a b"), [-1, -1], [-1, -1]),
    "an empty Doc": (lambda: unannotated(""), [], []),
    "some tokens not annotated": (
        lambda: masked(with_ents("a b c d", "a b c d", [(0, 1, "A"), (2, 3, "A")]), 2, 4),
        [1, 0, -1, -1],
        [4, 0, -1, -1],
    ),
    "tags with -": (
        lambda: Example.from_dict(doc_of("a b c"), {"entities": ["U-A", "-", "O"]}),
        [1, -1, 0],
        [4, -1, 0],
    ),
    "an entity that ends inside a token": (
        lambda: with_ents("a New York-based b", "a New York_ -_ based b", [(1, 3, "A")]),
        [0, -1, -1, 0],
        [0, -1, -1, 0],
    ),
    "a token that is two": (
        lambda: with_ents("a can_ not b", "a cannot b", [(1, 2, "A")]),
        [0, 1, 2, 0],
        [0, 1, 3, 0],
    ),
    "two tokens that are one": (
        lambda: with_ents("a cannot b", "a can_ not b", [(1, 3, "A"), (3, 4, "B")]),
        [0, 1, 3],
        [0, 4, 8],
    ),
}


@pytest.mark.parametrize("scheme", ["BIO", "BILOU"])
def test_ner_learns_from_what_is_annotated(scheme):
    ner = make_head("ner", scheme=scheme)
    assert ner.tags == tags_of(scheme, "AB")
    examples = [make() for make, *_ in GOLD.values()]
    columns = [case[1 if scheme == "BIO" else 2] for case in GOLD.values()]
    assert [len(eg.predicted) for eg in examples] == [len(column) for column in columns]
    classes = [number for column in columns for number in column]
    known = np.ones(len(classes), dtype=bool)
    known[[0, 7]] = False  # without a wordpiece: the first entity is its second token, one is lost
    classes[1] = ner.tags.index("B-A" if scheme == "BIO" else "U-A")
    logits = random_logits(len(classes), len(ner.tags))
    scores = token_logits(logits, known, ints(*map(len, columns)))
    gold = torch.tensor(np.where(known, classes, -1))
    with pytest.warns(UserWarning, match="2 gold entities begin or end with white space"):
        found = get_loss(ner, examples, scores)
    assert_same_loss(found, in_torch(lambda x: F.cross_entropy(x, gold, ignore_index=-1), logits))
    assert (found[1] != 0).any(axis=1).tolist() == (gold >= 0).tolist()


@pytest.mark.parametrize("case", GOLD)
def test_ner_gold_case_by_case(case):
    make, *columns = GOLD[case]
    for scheme, classes in zip(["BIO", "BILOU"], columns, strict=True):
        ner = make_head("ner", scheme=scheme)
        # With these logits a row's gradient is largest by far, below 0, at its class.
        logits = np.zeros((len(classes), len(ner.tags)), dtype=np.float32)
        known = np.ones(len(classes), dtype=bool)
        loss, gradient = get_loss(ner, [make()], token_logits(logits, known, ints(len(classes))))
        taught = [int(row.argmin()) if row.any() else -1 for row in gradient]
        assert taught == classes
        any_gold = any(number >= 0 for number in classes)
        assert loss == pytest.approx(np.log(len(ner.tags)) if any_gold else 0.0)


def test_misaligned_character_offsets_are_not_learned():
    doc = doc_of("New York is big")
    with pytest.warns(UserWarning, match="W030"):
        example = Example.from_dict(doc, {"entities": [(0, 6, "A"), (12, 15, "B")]})
    ner = make_head("ner")
    logits = np.zeros((4, 5), dtype=np.float32)
    known = np.ones(4, dtype=bool)
    _, gradient = get_loss(ner, [example], token_logits(logits, known, ints(4)))
    assert [int(row.argmin()) if row.any() else -1 for row in gradient] == [-1, -1, 0, 3]


def test_ner_names_an_unknown_label_once_and_leaves_it_out():
    ner = make_head("ner", "A")
    scores = token_logits(random_logits(3, 3), np.ones(3, dtype=bool), ints(3))
    example = with_ents("a b c", "a b c", [(0, 1, "A"), (1, 3, "X")])
    with pytest.warns(UserWarning, match="bert_ner has no label 'X'") as caught:
        found = get_loss(ner, [example], scores)
    assert len(caught) == 1
    gold = torch.tensor([1, -1, -1])
    expected = in_torch(lambda x: F.cross_entropy(x, gold, ignore_index=-1), scores.logits)
    assert_same_loss(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_loss(ner, [example], scores)
    with pytest.warns(UserWarning, match="no label 'Y'"):
        get_loss(ner, [with_ents("a b c", "a b c", [(1, 3, "Y")])], scores)


# --- entities: what is written


PROBABLE = [
    [{"B-A": 0.9}, {"I-A": 0.8}, {"O": 0.95, "I-A": 0.01}],
    [],
    [{"B-B": 0.6}, {"B-A": 0.7, "I-B": 0.1}],
]


def test_entities_and_their_scores():
    ner = make_head("ner")
    docs = [doc_of("a b c"), doc_of(""), doc_of("d e")]
    ner.set_annotations(docs, scores_of(PROBABLE, BIO))
    written = [[(ent.start, ent.end, ent.label_) for ent in doc.ents] for doc in docs]
    assert written == [[(0, 2, "A")], [], [(0, 1, "B"), (1, 2, "A")]]
    for doc, ents in zip(docs, written, strict=True):
        assert [(s.start, s.end, s.label_) for s in doc.spans["ents"]] == ents
        assert doc.has_annotation("ENT_IOB", require_complete=True)
    scores = [doc.spans["ents"].attrs["scores"] for doc in docs]
    assert scores[0] == pytest.approx([0.9 * 0.8 * 0.99], rel=1e-5)
    assert scores[1] == []
    assert scores[2] == pytest.approx([0.6 * 0.9, 0.7], rel=1e-5)


def test_threshold_and_spans_key():
    docs = [doc_of("a b c"), doc_of(""), doc_of("d e")]
    ner = make_head("ner", threshold=0.69, spans_key=None)
    ner.set_annotations(docs, scores_of(PROBABLE, BIO))
    assert [[ent.text for ent in doc.ents] for doc in docs] == [["a b"], [], ["e"]]
    assert [dict(doc.spans) for doc in docs] == [{}, {}, {}]
    ner.cfg.update(threshold=0.705, spans_key="found")  # read at every prediction
    docs = [doc_of("a b c"), doc_of(""), doc_of("d e")]
    ner.set_annotations(docs, scores_of(PROBABLE, BIO))
    assert [[ent.text for ent in doc.ents] for doc in docs] == [["a b"], [], []]
    assert [len(doc.spans["found"]) for doc in docs] == [1, 0, 0]


def test_entities_that_are_there_win():
    doc = doc_of("a b c d e")
    doc.ents = [Span(doc, 1, 2, "X", kb_id="Q1"), Span(doc, 4, 5, "Y")]
    ner = make_head("ner")
    ner.set_annotations([doc], certain(["B-A I-A B-B O O"], BIO))
    ents = [(ent.start, ent.end, ent.label_, ent.kb_id_) for ent in doc.ents]
    assert ents == [(1, 2, "X", "Q1"), (2, 3, "B", ""), (4, 5, "Y", "")]
    assert [(s.start, s.end, s.label_) for s in doc.spans["ents"]] == [(2, 3, "B")]
    p = 0.99 * (1 - 0.01 / 4)  # the closing token is an O
    assert doc.spans["ents"].attrs["scores"] == pytest.approx([p], rel=1e-5)


@pytest.mark.parametrize("scheme", ["BIO", "BILOU"])
def test_scores_are_seqevals(scheme):
    tags, rng = tags_of(scheme, "ABC"), np.random.default_rng(0)
    ner = make_head("ner", "ABC", scheme=scheme)

    def draw(length: int) -> list[str]:
        while True:
            path = rng.choice(tags, length, p=[0.4] + [0.6 / (len(tags) - 1)] * (len(tags) - 1))
            if ALLOWED[scheme].fullmatch("".join(f"{tag} " for tag in path)):
                return path.tolist()

    gold = [draw(length) for length in rng.integers(1, 7, 300)]
    guessed = [draw(len(one)) if rng.random() < 0.5 else one for one in gold]
    examples = []
    for one in gold:
        words = ["w"] * len(one)
        iob = [tag.replace("L-", "I-").replace("U-", "B-") for tag in one]
        reference = Doc(NLP.vocab, words=words, ents=iob)
        examples.append(Example(Doc(NLP.vocab, words=words), reference))
    scores = certain([" ".join(one) for one in guessed], tags)
    ner.set_annotations([eg.predicted for eg in examples], scores)
    found = ner.score([*examples, unannotated("a b")])

    report = seqeval.metrics.classification_report(
        gold,
        guessed,
        output_dict=True,
        mode="strict",
        scheme=seqeval.scheme.IOB2 if scheme == "BIO" else seqeval.scheme.BILOU,
    )
    assert 0.2 < found["ents_f"] < 0.9
    for ours, theirs in (("p", "precision"), ("r", "recall"), ("f", "f1-score")):
        assert found[f"ents_{ours}"] == pytest.approx(report["micro avg"][theirs])
        for label in "ABC":
            assert found["ents_per_type"][label][ours] == pytest.approx(report[label][theirs])
