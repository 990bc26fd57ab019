"""CoNLL: exact Docs out of the `.spacy` file, tag schemes, and sentences that are rejected."""

import itertools
from collections import Counter

import pytest
from conversion import (
    CONLL,
    CONLL_DOCS,
    NLP,
    Plain,
    check_report,
    load_plain,
    plain,
    read,
    run_plain,
    samples,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from spacy.training import Corpus

from spacy_bert_heads.data.conll import tags_to_entities
from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.data.records import Rejected

pytestmark = pytest.mark.usefixtures("share_blank_pipelines")


def test_conll(tmp_path):
    docs, report = run_plain(tmp_path, "train.conll", CONLL)
    assert docs == CONLL_DOCS
    labels = Counter(ORG=1, MISC=1, PER=1)
    check_report(report, format="conll", unit="sentences", read=2, kept=2, docs=2, labels=labels)


@pytest.mark.parametrize(
    "content",
    [
        CONLL.replace("\t", " "),
        CONLL.replace("\t", "   "),
        CONLL.replace("\t", "\tNNP\t"),
        CONLL.replace("\t", " NNP I-NP "),
        CONLL.replace("\n", "\r\n"),
        CONLL.replace("\n", "\t \n"),  # white space at the end, also of blank lines
        CONLL.replace("\n\n", "\n\n\n"),
        CONLL.rstrip("\n"),
        "\ufeff" + CONLL,
        "-DOCSTART- -X- -X- O\n\n" + CONLL,
        CONLL.replace("\n\n", "\n-DOCSTART-\tO\n"),
        "# sent_id = 1\n# text = EU rejects\n" + CONLL.replace("\n\n", "\n\n# sent_id = 2\n"),
        "# id 7d3a\tdomain=en\n" + CONLL.replace("\t", " _ _ "),
    ],
)
def test_conll_variants(tmp_path, content):
    docs, report = run_plain(tmp_path, "train.conll", content)
    assert docs == CONLL_DOCS
    assert report.rejected == 0


def test_conll_is_predicted_on_the_files_own_tokens(tmp_path):
    source = tmp_path / "a.conll"
    source.write_text("@paul:x\tB-PER\ncan't\tO\n")
    convert(source, tmp_path / "a.spacy")
    (example,) = Corpus(tmp_path / "a.spacy")(NLP)
    assert [token.text for token in example.predicted] == ["@paul:x", "can't"]


def test_conll_number_sign_is_a_token(tmp_path):
    docs, _ = run_plain(tmp_path, "a.conll", "# O\n1 B-X\n\n#\tO\n=\tO\n=\tO\n")
    assert [doc.tokens for doc in docs] == [["# ", "1"], ["# ", "= ", "="]]
    docs, _ = run_plain(tmp_path, "a.conll", "# = SYM O\n1 CD NUM B-X\n")
    assert docs == [Plain(["# ", "1"], [(1, 2, "X")], {})]


@pytest.mark.parametrize("token", ["\xa0", "a\xa0b", "\u200b", "\u2028", "\x85", "\ufeff", "a b"])
def test_conll_odd_white_space_in_a_token(tmp_path, token):
    docs, _ = run_plain(tmp_path, "a.conll", f"in\tO\n{token}\tB-X\nnow\tO\n")
    assert docs == [Plain(["in ", f"{token} ", "now"], [(1, 2, "X")], {})]
    # spaCy's own reader tokenizes the text anew, and that must still align.
    (example,) = Corpus(tmp_path / "out.spacy")(NLP)
    assert example.reference.ents[0].text == token
    assert None not in example.get_aligned_ner()


@pytest.mark.parametrize(
    "bad, reason",
    [
        ("b\tFOO", "not a tag of BIO or BILOU: 'FOO'"),
        ("b\tX-PER", "not a tag of BIO or BILOU: 'X-PER'"),
        ("b\tB-", "not a tag of BIO or BILOU: 'B-'"),
        ("b\tb-PER", "not a tag of BIO or BILOU: 'b-PER'"),
        ("b\t", "wrong number of columns: 1 instead of 2"),
        ("b\tNN\tO", "wrong number of columns: 3 instead of 2"),
        ("\tO", "empty token"),
        (" O", "empty token"),
        (b"b\xff\tO", "not UTF-8"),
    ],
)
def test_conll_rejects_the_sentence_with_a_bad_line(tmp_path, bad, reason):
    bad = bad.encode() if isinstance(bad, str) else bad
    content = CONLL.encode().replace(b"\n\n", b"\n\na\tO\n" + bad + b"\nc\tB-ORG\n\n")
    docs, report = run_plain(tmp_path, "a.conll", content)
    assert docs == CONLL_DOCS
    assert (report.read, report.rejected) == (3, 1)
    assert samples(report) == [f"a.conll:6: {reason}"]
    assert report.reasons == {reason.partition(":")[0]: 1}
    assert report.labels == Counter(ORG=1, MISC=1, PER=1)


def test_conll_column_count_comes_from_a_sentence_that_could_be_read(tmp_path):
    content = "a\nb X O\n\na X B-A\n\nb B-B\n\nc X B-C"
    docs, report = run_plain(tmp_path, "a.conll", content)
    assert [doc.ents for doc in docs] == [[(0, 1, "A")], [(0, 1, "C")]]
    assert samples(report) == [
        "a.conll:1: wrong number of columns: 1 instead of 2",
        "a.conll:6: wrong number of columns: 2 instead of 3",
    ]


def test_conll_without_blank_lines_is_not_one_huge_sentence():
    lines = itertools.chain(itertools.repeat("a\tO\n", 150_000), ["\n", "b\tO\n"])
    first, second = read("conll", lines)
    assert first == Rejected(":1", "no blank line for 100000 lines")
    assert isinstance(second, Doc) and [token.text for token in second] == ["b"]


# Tag schemes


@pytest.mark.parametrize(
    "tags, entities",
    [
        ("O O", []),
        ("B-X I-X I-X O", [(0, 3, "X")]),
        ("B-X B-X I-X", [(0, 1, "X"), (1, 3, "X")]),
        ("B-X I-Y", [(0, 1, "X"), (1, 2, "Y")]),
        ("I-X I-X B-X O I-Y", [(0, 2, "X"), (2, 3, "X"), (4, 5, "Y")]),  # IOB1
        ("U-X B-X L-X B-X I-X L-X", [(0, 1, "X"), (1, 3, "X"), (3, 6, "X")]),
        ("S-X B-X E-X B-X I-X E-X", [(0, 1, "X"), (1, 3, "X"), (3, 6, "X")]),
        ("B-X L-X I-X", [(0, 2, "X"), (2, 3, "X")]),  # L closes
        ("U-X I-X", [(0, 1, "X"), (1, 2, "X")]),  # U closes
        ("O L-X O E-X", [(1, 2, "X"), (3, 4, "X")]),  # a stray end is all there is
        ("B-creative-work I-creative-work", [(0, 2, "creative-work")]),
    ],
)
def test_tags_to_entities(tags, entities):
    assert tags_to_entities(tags.split()) == entities


@st.composite
def entity_spans(draw):
    """Draw a number of tokens and entities that do not overlap."""
    lengths = st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(["X", "Y", "B-I"]))
    entities, position = [], 0
    for gap, length, label in draw(st.lists(lengths, max_size=6)):
        entities.append((position + gap, position + gap + length, label))
        position += gap + length
    return position + draw(st.integers(0, 2)), entities


def render(n_tokens, entities, *, single, begin, inside, last):
    tags = ["O"] * n_tokens
    for start, end, label in entities:
        prefixes = begin + inside * (end - start - 2) + last if end - start > 1 else single
        tags[start:end] = [f"{prefix}-{label}" for prefix in prefixes]
    return tags


@settings(deadline=None)
@given(entity_spans())
def test_every_scheme_gives_the_same_entities(drawn):
    n_tokens, entities = drawn
    bio = render(n_tokens, entities, single="B", begin="B", inside="I", last="I")
    iob1 = list(bio)
    for start, _, label in entities:
        # IOB1 has a B only where an entity follows another one of its label.
        if start == 0 or not bio[start - 1].endswith(f"-{label}"):
            iob1[start] = f"I-{label}"
    bilou = render(n_tokens, entities, single="U", begin="B", inside="I", last="L")
    bioes = render(n_tokens, entities, single="S", begin="B", inside="I", last="E")
    for tags in (bio, iob1, bilou, bioes):
        assert tags_to_entities(tags) == entities
        docs = read("conll", [f"w {tag}\n" for tag in tags])
        ents = [plain(doc).ents for doc in docs if isinstance(doc, Doc)]
        assert ents == ([entities] if n_tokens else [])


# Real data


@pytest.mark.long
@pytest.mark.parametrize(
    "name, n_docs",
    [("ner_wnut17/train.conll", 3394), ("ner_ncbi_disease/train.tsv", 5432)],
)
def test_real_conll(tmp_path, data, name, n_docs):
    source = data / name
    report = convert(source, tmp_path / "out.spacy")
    # These files are plain BIO: every B is an entity, every other non-blank line one more token.
    lines = source.read_text(encoding="utf8").split("\n")
    rows = [line.split("\t") for line in lines if line.strip()]
    begins = Counter(tag[2:] for _, tag in rows if tag.startswith("B-"))
    assert (report.kept, report.rejected, report.labels) == (n_docs, 0, begins)
    docs = load_plain(tmp_path / "out.spacy")
    tokens = [token.strip(" ") for doc in docs for token in doc.tokens]
    assert tokens == [token for token, _ in rows]
    n_inside = sum(end - start for doc in docs for start, end, _ in doc.ents or [])
    assert n_inside == sum(tag != "O" for _, tag in rows)
