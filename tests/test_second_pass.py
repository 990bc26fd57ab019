"""A Doc that goes through the same recognizer again; and the strings of labels."""

import pytest
from head_cases import BIO, NLP, certain, make_head
from spacy.tokens import Doc, DocBin, Span


def found(doc: Doc) -> list[tuple[str, str]]:
    return [(ent.text, ent.label_) for ent in doc.ents]


def through_docbin(doc: Doc) -> Doc:
    content = DocBin(store_user_data=True, docs=[doc]).to_bytes()
    return next(DocBin().from_bytes(content).get_docs(NLP.vocab))


def through_bytes(doc: Doc) -> Doc:
    return Doc(NLP.vocab).from_bytes(doc.to_bytes())


@pytest.fixture
def doc() -> Doc:
    """A Doc with an entity of our recognizer, one of another of our kind and one by hand."""
    doc = Doc(NLP.vocab, words=["the", "Anna", "Grete", "left", "Hull", "today", "."])
    doc.ents = [Span(doc, 4, 5, "HAND")]
    make_head("ner", spans_key=None).set_annotations([doc], certain(["O B-A I-A O O O O"], BIO))
    other = make_head("ner", spans_key=None)
    other.name = "other"
    other.set_annotations([doc], certain(["O O O O O B-B O"], BIO))
    assert found(doc) == [("Anna Grete", "A"), ("Hull", "HAND"), ("today", "B")]
    return doc


@pytest.mark.parametrize("way", [lambda doc: doc, Doc.copy, through_docbin, through_bytes])
def test_what_was_found_before_gives_way(doc, way):
    ner, again = make_head("ner", spans_key=None), way(doc)
    ner.set_annotations([again], certain(["B-B O O O B-A B-A O"], BIO))
    assert found(again) == [("the", "B"), ("Hull", "HAND"), ("today", "B")]
    ner.set_annotations([again], certain(["O O O O O O O"], BIO))
    assert found(again) == [("Hull", "HAND"), ("today", "B")]
    assert [entry["component"] for entry in again._.ent_scores] == ["other"]


def merge_entity(doc: Doc) -> str:
    with doc.retokenize() as retokenizer:
        retokenizer.merge(doc[1:3])
    return "B-B O O O O O"


def merge_more(doc: Doc) -> str:
    """The entity is a longer token then."""
    with doc.retokenize() as retokenizer:
        retokenizer.merge(doc[1:4])
    assert found(doc)[0] == ("Anna Grete left", "A")
    return "B-B O O O O"


def split(doc: Doc) -> str:
    with doc.retokenize() as retokenizer:
        retokenizer.split(doc[1], ["An", "na"], [(doc[1], 1), doc[2]])
    return "B-B O O O O O O O"


@pytest.mark.parametrize("change", [merge_entity, merge_more, split])
def test_tokens_that_were_merged_or_split_since(doc, change):
    tags = change(doc)
    make_head("ner", spans_key=None).set_annotations([doc], certain([tags], BIO))
    assert found(doc) == [("the", "B"), ("Hull", "HAND"), ("today", "B")]


def test_an_entity_that_was_corrected_by_hand_stays(doc):
    doc.ents = [Span(doc, 0, 3, "A"), *doc.ents[1:]]
    make_head("ner", spans_key=None).set_annotations([doc], certain(["O B-B O O O O O"], BIO))
    assert found(doc)[0] == ("the Anna Grete", "A")


def test_a_pipeline_twice(nlp):
    nlp.get_pipe("bert_ner").cfg["spans_key"] = None
    doc = nlp("Anna Grete left Skagen on Tuesday")
    first = found(doc)
    assert len(first) == 3
    nlp.get_pipe("bert_ner").cfg["threshold"] = 1.0
    assert found(nlp(doc)) == []


# --- strings


@pytest.mark.parametrize("by", ["bytes", "disk"])
@pytest.mark.parametrize("kind", ["ner", "tagger", "textcat", "textcat_multilabel", "nli"])
def test_labels_are_in_the_strings_of_another_vocab(make_nlp, tmp_path, kind, by):
    labels = ["ZULU-1", "ZULU-2"]
    nlp = make_nlp(initialize=False)
    head = nlp.add_pipe(f"bert_{kind}")
    for label in labels:
        head.add_label(label)
    nlp.initialize()
    other = make_nlp(initialize=False)
    again = other.add_pipe(f"bert_{kind}")
    assert not any(label in other.vocab.strings for label in labels)
    if by == "bytes":
        again.from_bytes(head.to_bytes())
    else:
        head.to_disk(tmp_path / "head")
        again.from_disk(tmp_path / "head")
    assert again.labels == head.labels
    assert all(label in other.vocab.strings for label in again.labels)
    assert other.vocab is not nlp.vocab
