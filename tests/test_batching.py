"""What a training batch is made of: the examples of a reader, and a budget of wordpieces."""

import random
from collections import Counter
from unittest import mock

import pytest
import spacy
import transformers
from checkpoints import make_checkpoint, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc, DocBin
from spacy.training import Example
from spacy.util import registry

from spacy_bert_heads.data import batching
from spacy_bert_heads.data.batching import count_pieces, make_batch_by_pieces
from spacy_bert_heads.data.reader import make_corpus, split_pairs
from spacy_bert_heads.encoder.loading import load_wordpiece_tokenizer
from spacy_bert_heads.pairs import make_answer, make_verdict
from spacy_bert_heads.text.wordpieces import WordpieceTokenizer

NLP = spacy.blank("en")
WORDPIECES = WordpieceTokenizer(make_tokenizer("wordpiece").backend_tokenizer)
TEXT = "Anna Grete left Skagen. She burned in Hull."


def make_doc(hypotheses=(), questions=(), text=TEXT, gold=True) -> Doc:
    """A Doc with every kind of annotation, and gold entries that name their own text."""
    doc = NLP.make_doc(text)
    doc._.hypotheses, doc._.questions = list(hypotheses), list(questions)
    if gold:
        doc._.nli = [make_verdict(text) for text in hypotheses]
        doc._.answers = [
            make_answer(doc, 0, 4, alternatives=[{"text": text}]) for text in questions
        ]
    doc.ents = [doc.char_span(0, 10, label="VESSEL")]
    doc.cats = {"fire": 1.0}
    doc[0].is_sent_start, doc[5].is_sent_start = True, True
    for token in doc:
        token.tag_ = "NN"
    return doc


def save(path, *docs):
    DocBin(docs=docs, store_user_data=True).to_disk(path)
    return path


def pairs_of(doc):
    return {name: doc._.get(name) for name in ("hypotheses", "nli", "questions", "answers")}


# --- the reader


@pytest.mark.parametrize("gold_preproc", [False, True])
def test_reader_carries_what_is_asked_and_nothing_else(tmp_path, gold_preproc):
    doc = make_doc(["H1", "H2"], ["Q1"])
    file = save(tmp_path / "a.spacy", doc)
    (example,) = make_corpus(file, gold_preproc=gold_preproc)(NLP)
    assert pairs_of(example.reference) == pairs_of(doc)
    expected = {"hypotheses": ["H1", "H2"], "nli": [], "questions": ["Q1"], "answers": []}
    assert pairs_of(example.predicted) == expected
    assert example.predicted.text == TEXT
    assert not example.predicted.ents and not example.predicted.cats
    example.predicted._.questions.append("Q2")
    assert example.reference._.questions == ["Q1"]


def test_gold_preproc_cuts_docs_without_pairs_alone(tmp_path):
    file = save(tmp_path / "a.spacy", make_doc(), make_doc([], ["Q"]))
    texts = [eg.predicted.text.strip() for eg in make_corpus(file, gold_preproc=True)(NLP)]
    assert texts == ["Anna Grete left Skagen.", "She burned in Hull.", TEXT]


def test_limits_count_the_docs_of_the_file(tmp_path):
    long = make_doc(["H4", "H5"], text=TEXT + " Nobody saw the fire.")
    file = save(tmp_path / "a.spacy", make_doc(["H1", "H2"]), make_doc(["H3"]), long)

    def asked(**options):
        examples = make_corpus(file, max_pairs=1, **options)(NLP)
        return [(eg.predicted._.hypotheses, eg.predicted[0].text) for eg in examples]

    text = ([], "Anna")
    first = [text, (["H1"], "Anna"), (["H2"], "Anna"), text, (["H3"], "Anna")]
    assert asked(limit=2) == first
    # As in spaCy, of a Doc that is too long its sentences are read.
    assert asked(max_length=len(long)) == [*first, text, ([], "She")]


# --- splitting


def test_split_by_hand():
    doc = make_doc(["A", "B", "C"], ["D", "E"])
    parts = list(split_pairs(doc, 2))
    assert [(p._.hypotheses, p._.questions) for p in parts] == [
        ([], []),
        (["A", "B"], []),
        (["C"], []),
        ([], ["D", "E"]),
    ]
    assert [p._.nli for p in parts] == [[], doc._.nli[:2], doc._.nli[2:], []]
    assert [p._.answers for p in parts] == [[], [], [], doc._.answers]
    assert [[token.text for token in p] for p in parts] == [[token.text for token in doc]] * 4
    assert [p.text for p in parts] == [TEXT] * 4
    # What is learned from the text alone is learned once.
    for attr in ("TAG", "ENT_IOB", "SENT_START"):
        assert [p.has_annotation(attr) for p in parts] == [True, False, False, False], attr
    assert [p.cats for p in parts] == [{"fire": 1.0}, {}, {}, {}]
    assert [[ent.text for ent in p.ents] for p in parts] == [["Anna Grete"], [], [], []]
    assert doc._.hypotheses == ["A", "B", "C"]  # as before


@pytest.mark.parametrize(
    "doc, max_pairs",
    [(make_doc(), 1), (make_doc(["A", "B"], ["C"]), 0)],
    ids=["no pairs", "no limit"],
)
def test_nothing_to_split(doc, max_pairs):
    assert list(split_pairs(doc, max_pairs)) == [doc]


@pytest.mark.parametrize("name, value", [("nli", [None]), ("questions", "ABC")])
def test_what_does_not_match_stays_whole(name, value):
    doc = make_doc(["A", "B"], ["C"])
    doc._.set(name, value)
    assert list(split_pairs(doc, 1)) == [doc]


def test_unknown_spaces_stay_unknown():
    doc = Doc(NLP.vocab, words=["Anna", "left"])
    doc._.questions = ["A", "B"]
    assert [(p.has_unknown_spaces, p.text) for p in split_pairs(doc, 1)] == [(True, doc.text)] * 2


def test_a_doc_that_teaches_pairs_alone_has_no_part_without_them():
    doc = NLP.make_doc(TEXT)
    doc._.questions, doc._.answers = ["A", "B"], [make_answer(doc, 0, 4)] * 2
    assert [p._.questions for p in split_pairs(doc, 1)] == [["A"], ["B"]]
    doc.cats = {"fire": 0.0}
    assert [p._.questions for p in split_pairs(doc, 1)] == [[], ["A"], ["B"]]


@pytest.mark.parametrize(
    "heads, expected",
    [
        ([], [[], ["H1"], ["H2"], ["Q"]]),
        (["bert_ner"], [[]]),
        (["bert_qa"], [["Q"]]),
        (["bert_nli"], [["H1"], ["H2"]]),
        (["bert_qa", "bert_textcat"], [[], ["Q"]]),
        (["bert_qa", "parser"], [[], ["Q"]]),
    ],
)
def test_the_parts_are_those_that_the_pipeline_learns_from(tmp_path, heads, expected):
    file = save(tmp_path / "a.spacy", make_doc(["H1", "H2"], ["Q"]))
    nlp = spacy.blank("en")
    for head in ["bert_encoder", *heads] if heads else []:
        nlp.add_pipe(head)
    found = [eg.y._.hypotheses + eg.y._.questions for eg in make_corpus(file, max_pairs=1)(nlp)]
    assert found == expected
    (whole,) = make_corpus(file)(nlp)
    assert (whole.y._.hypotheses, whole.y._.questions) == (["H1", "H2"], ["Q"])


@settings(deadline=None)
@given(
    n_hypotheses=st.integers(0, 7),
    n_questions=st.integers(0, 7),
    max_pairs=st.integers(0, 9),
    gold=st.booleans(),
)
def test_no_pair_is_lost_or_doubled(n_hypotheses, n_questions, max_pairs, gold):
    doc = make_doc(
        [f"H{i}" for i in range(n_hypotheses)], [f"Q{i}" for i in range(n_questions)], gold=gold
    )
    parts = list(split_pairs(doc, max_pairs))
    for name, entries in pairs_of(doc).items():
        assert [entry for part in parts for entry in part._.get(name)] == entries
    if max_pairs and n_hypotheses + n_questions:
        assert [(len(part._.hypotheses), len(part._.questions)) for part in parts] == [
            (0, 0),
            *((min(n_hypotheses - i, max_pairs), 0) for i in range(0, n_hypotheses, max_pairs)),
            *((0, min(n_questions - i, max_pairs)) for i in range(0, n_questions, max_pairs)),
        ]
    for part in parts:
        assert [entry["label"] for entry in part._.nli] == (part._.hypotheses if gold else [])
        answered = [entry["alternatives"][0]["text"] for entry in part._.answers]
        assert answered == (part._.questions if gold else [])


# --- the batcher


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_counts_are_those_of_hugging_face(tmp_path, family):
    name = make_checkpoint(tmp_path, family=family)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    docs = [
        make_doc(["A fire broke out."], ["Who left?", "Where is it?"]),
        make_doc(),
        NLP.make_doc(""),
        make_doc(["Nobody can't swim."]),
    ]
    expected = [
        len(tokenizer(doc.text).input_ids)
        + sum(
            len(tokenizer(doc.text, text).input_ids) for text in doc._.hypotheses + doc._.questions
        )
        for doc in docs
    ]
    assert count_pieces(docs, load_wordpiece_tokenizer(name)).tolist() == expected


def test_batches_by_hand(checkpoint):
    # Of a Doc of n pieces, [CLS] and [SEP]: n + 2; beside a question of one piece: n + 4.
    docs = [NLP.make_doc("fire " * n) for n in (3, 5, 6, 20, 1, 1)]
    docs[4]._.questions = ["why"]  # 3 + 5
    batcher = make_batch_by_pieces(12, checkpoint)
    sizes = [[len(doc) for doc in batch] for batch in batcher(docs)]
    assert sizes == [[3, 5], [6], [20], [1, 1]]
    assert list(batcher([])) == []
    # A schedule gives every batch its own size, and goes on from call to call.
    by_schedule = make_batch_by_pieces(iter([5, 100, 8, 100]), checkpoint)
    assert [len(batch) for batch in by_schedule(docs)] == [1, 5]
    assert [len(batch) for batch in by_schedule(docs[:3])] == [1, 2]


def test_batches_follow_the_reference(checkpoint):
    reference = make_doc(["fire"])
    bare = Example(NLP.make_doc(TEXT), NLP.make_doc(TEXT))
    asked = Example(NLP.make_doc(TEXT), reference)
    size = count_pieces([reference], load_wordpiece_tokenizer(checkpoint))[0]
    batcher = make_batch_by_pieces(int(size), checkpoint)
    assert list(batcher([bare, bare, asked])) == [[bare, bare], [asked]]


@settings(deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=40),
    size=st.integers(1, 60),
    chunk=st.integers(1, 5),
)
def test_every_item_comes_once_and_the_budget_holds(shapes, size, chunk):
    docs, counts = [], {}
    for n_words, n_questions in shapes:
        doc = Doc(NLP.vocab, words=["fire"] * n_words)
        doc._.questions = ["why"] * n_questions
        docs.append(doc)
        counts[id(doc)] = n_words + 2 + n_questions * (n_words + 4)
    with mock.patch.object(batching, "CHUNK", chunk):
        batches = list(batching.batch_by_pieces(docs, size=size, load=lambda: WORDPIECES))
    assert [id(doc) for batch in batches for doc in batch] == [id(doc) for doc in docs]
    filled = [sum(counts[id(doc)] for doc in batch) for batch in batches]
    assert all(
        count <= size or len(batch) == 1 for batch, count in zip(batches, filled, strict=True)
    )
    # No batch ends while there is room for the next item.
    for count, following in zip(filled, batches[1:], strict=False):
        assert count + counts[id(following[0])] > size


def test_of_what_teaches_pairs_alone_the_text_is_not_counted(checkpoint):
    tokenizer = load_wordpiece_tokenizer(checkpoint)
    doc = NLP.make_doc("fire " * 3)
    doc._.questions = ["why"]
    assert count_pieces([doc], tokenizer).tolist() == [3 + 2 + 3 + 4]
    doc._.answers = [make_answer(doc, 0, 4)]
    assert count_pieces([doc], tokenizer).tolist() == [3 + 4]
    doc[0].dep_ = "ROOT"
    assert count_pieces([doc], tokenizer).tolist() == [3 + 2 + 3 + 4]


@settings(deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["ents", "cats", "pairs", "both", "none"]), max_size=40),
    size=st.integers(1, 60),
    chunk=st.integers(1, 5),
)
def test_batches_of_one_task(kinds, size, chunk):
    docs = []
    for kind in kinds:
        doc = Doc(NLP.vocab, words=["fire"] * 6)
        if kind in ("ents", "both"):
            doc.set_ents([], default="outside")
        if kind in ("cats", "both"):
            doc.cats = {"fire": 1.0}
        if kind == "pairs":
            doc._.hypotheses, doc._.nli = ["why"], [make_verdict("entailment")]
        docs.append(doc)
    kind_of = dict(zip(map(id, docs), kinds, strict=True))
    with mock.patch.object(batching, "CHUNK", chunk):
        batches = list(
            batching.batch_by_pieces(docs, size=size, load=lambda: WORDPIECES, by_task=True)
        )
    found = {kind: [] for kind in kinds}
    for batch in batches:
        (kind,) = {kind_of[id(doc)] for doc in batch}
        found[kind].append(batch)
    for kind, own in found.items():
        # As if there were no other tasks.
        alone = [doc for doc in docs if kind_of[id(doc)] == kind]
        expected = batching.batch_by_pieces(alone, size=size, load=lambda: WORDPIECES)
        assert own == list(expected)


@pytest.mark.parametrize(
    "temperature, expected",
    [
        # Of 64 and 16 batches; 80 * 8 / 12 and 80 * 4 / 12; half of all each.
        (1.0, {"cats": 64, "ents": 16}),
        (2.0, {"cats": 53, "ents": 27}),
        (1e9, {"cats": 40, "ents": 40}),
    ],
)
def test_a_temperature_evens_tasks_out(checkpoint, temperature, expected):
    docs = [Doc(NLP.vocab, words=["fire"] * 4) for _ in range(160)]
    for i, doc in enumerate(docs):
        if i % 5:
            doc.cats = {"fire": 1.0}
        else:
            doc.set_ents([], default="outside")
    batcher = make_batch_by_pieces(12, checkpoint, by_task=True, temperature=temperature)
    random.seed(0)
    batches = list(batcher(docs))
    kinds = ["cats" if batch[0].cats else "ents" for batch in batches]
    assert Counter(kinds) == expected and {len(batch) for batch in batches} == {2}
    if temperature > 1:
        assert kinds != sorted(kinds)  # the tasks take turns
        # A small task is repeated as a whole, in another order; of a large one nothing is repeated.
        times = Counter(id(doc) for batch in batches for doc in batch)
        ents = [times[id(doc)] for doc in docs if not doc.cats]
        assert max(ents) - min(ents) <= 1
        assert max(times[id(doc)] for doc in docs if doc.cats) == 1
        # The next epoch has others of the large task.
        left = {id(doc) for doc in docs if doc.cats and id(doc) not in times}
        again = {id(doc) for batch in batcher(random.sample(docs, 160)) for doc in batch}
        assert left & again


@pytest.mark.parametrize("settings", [{"temperature": 2.0}, {"by_task": True, "temperature": 0.5}])
def test_a_temperature_that_makes_no_sense(settings):
    with pytest.raises(ValueError, match="Set temperature to 1 or above, and by_task = true"):
        make_batch_by_pieces(12, "bert-base-uncased", **settings)


def test_a_config_can_name_the_batcher(checkpoint):
    config = {
        "@batchers": "spacy_bert_heads.batch_by_pieces.v1",
        "size": {"@schedules": "compounding.v1", "start": 8, "stop": 16, "compound": 2},
        "name": checkpoint,
    }
    batcher = registry.resolve({"batcher": config})["batcher"]
    docs = [NLP.make_doc("fire " * 2) for _ in range(6)]
    assert [len(batch) for batch in batcher(docs)] == [2, 4]


def test_a_checkpoint_is_missed_at_the_first_batch(tmp_path):
    batcher = make_batch_by_pieces(100, str(tmp_path / "none"))
    with pytest.raises(ValueError, match="There is no checkpoint folder"):
        list(batcher([NLP.make_doc("fire")]))


def test_a_question_must_be_text(checkpoint):
    doc = NLP.make_doc("fire")
    doc._.questions = ["why", None]
    with pytest.raises(ValueError, match=r"doc\._\.questions must be a list of strings, but \[1\]"):
        list(make_batch_by_pieces(100, checkpoint)([doc]))
