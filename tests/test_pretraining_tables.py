"""Raw text in tables, from readers and under other keys."""

import sys
from dataclasses import replace

import pytest
import spacy
from new_encoders import ask
from raw_text import BY_KIND, TWO, read, run, write

from spacy_bert_heads.pretraining.records import Format, read_texts
from spacy_bert_heads.pretraining.start import prepare_texts

EXPECTED = [["anna left berlin .", "the crew swim [UNK]"], ["a fire in new york ."]]


def test_another_key(tmp_path):
    file = write(tmp_path / "a.jsonl", b'{"body": "anna", "text": 1}\n{"title": "x", "id": 2}\n')
    corpus = run(tmp_path, file, format=Format(key="body"))
    assert read(corpus) == [["anna"]]
    assert corpus.report.samples == [
        f"{file}:2: no 'body': the keys are title, id; set text.key to one of them"
    ]
    assert list(read_texts([file], Format(key="body"))) == ["anna"]
    with pytest.raises(ValueError, match="the keys are body, text; set text.key"):
        run(tmp_path, file, format=Format(key="content"))


def test_a_reader_of_the_user(tmp_path):
    calls = []

    def texts():
        calls.append(1)
        yield TWO[0]
        yield {"text": TWO[1], "id": 7}

    corpus = run(tmp_path, texts, format=Format(key="body"))
    assert read(corpus) == EXPECTED
    assert corpus.report.lines()[1] == "Read as documents: 2 texts of a reader"
    # Read again, found again by its content
    assert run(tmp_path, texts, format=Format(key="body")).fingerprint == corpus.fingerprint
    assert list(read_texts([texts])) == TWO
    assert len(calls) == 3
    with pytest.raises(ValueError, match="yields 7 as item 0. It must yield texts"):
        run(tmp_path, lambda: [7])


def test_csv(tmp_path):
    first = write(tmp_path / "a.csv", f'id,text\n1,"{TWO[0]}"\n2,a,b\n'.encode())
    second = write(tmp_path / "b.tsv", f"text\tid\n{TWO[1]}\t3\n".encode())
    corpus = run(tmp_path, first, second)
    assert read(corpus) == EXPECTED
    assert corpus.report.kinds == {"csv": 2}
    assert corpus.report.samples == [f"{first}:2: no text: None"]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "shards" / "a.parquet"
    path.parent.mkdir()
    table = pyarrow.table({"id": [1, 2, 3], "text": [TWO[0], None, TWO[1]]})
    parquet.write_table(table, path, row_group_size=1)
    corpus = run(tmp_path, path.parent)
    assert read(corpus) == EXPECTED
    assert corpus.report.kinds == {"parquet": 2}
    assert corpus.report.samples == [f"{path}:2: no text: None"]
    with pytest.raises(ValueError, match="no 'body': the columns are id, text"):
        run(tmp_path, path, format=Format(key="body"))
    path.write_bytes(path.read_bytes()[:-8])
    good = write(tmp_path / "a.txt", b"anna")
    assert run(tmp_path, path, good).report.skipped == {"damaged file": 1}


def test_saved_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": TWO, "label": [0, 1]})
    data.save_to_disk(str(tmp_path / "one"))
    corpus = run(tmp_path, tmp_path / "one")
    assert read(corpus) == EXPECTED
    assert corpus.report.lines()[1] == "Read as documents: 2 rows of a saved data set"
    both = datasets.DatasetDict(train=data, test=data.select([1]))
    both.save_to_disk(str(tmp_path / "both"))
    assert read(run(tmp_path, tmp_path / "both")) == EXPECTED
    assert read(run(tmp_path, tmp_path / "both" / "test")) == EXPECTED[1:]
    datasets.DatasetDict(test=data).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(
        FileNotFoundError, match="no split 'train'. Pass the folder of one of: .*other/test"
    ):
        run(tmp_path, tmp_path / "other")


@pytest.mark.parametrize("package", ["pyarrow", "datasets"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    write(tmp_path / "set" / "state.json", b"{}")
    write(tmp_path / "set" / "data.arrow", b"")
    source = {"pyarrow": write(tmp_path / "a.parquet", b""), "datasets": tmp_path / "set"}[package]
    with pytest.raises(ImportError, match=f"{source.name} .*pip install {package}"):
        run(tmp_path, source)


# --- special tokens, and spans


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram"])
def test_special_tokens_in_a_text_are_text(tmp_path, kind):
    wordpieces = BY_KIND[kind]
    tokenizer = wordpieces.tokenizer
    decoder = tokenizer.get_added_tokens_decoder()
    unknown = {i for i, token in decoder.items() if "unk" in token.content.lower()}
    text = " ".join(token.content for token in decoder.values()) + " [MASK] </s> <mask> Anna"
    corpus = run(tmp_path, write(tmp_path / "a.txt", text.encode()), wordpieces=wordpieces)
    assert not set(corpus.pieces.tolist()) & (set(decoder) - unknown)
    assert tokenizer.encode("Anna", add_special_tokens=False).ids[-1] == corpus.pieces[-1]
    # What others tokenize with it is as before.
    for number, token in decoder.items():
        assert number in tokenizer.encode(token.content, add_special_tokens=False).ids


@spacy.Language.component("parse_by_hand")
def parse_by_hand(doc):
    """Find the noun chunks "the crew" and "a fire" in one sentence."""
    tree = [(1, "det"), (2, "nsubj"), (2, "ROOT"), (4, "det"), (2, "dobj")]
    if doc.text == "the crew swim a fire":
        for token, (head, dep) in zip(doc, tree, strict=True):
            token.head, token.dep_ = doc[head], dep
            token.pos_ = "NOUN" if token.text in ("crew", "fire") else "DET"
    else:
        for token in doc:
            token.is_sent_start = token.i == 0
    return doc


def test_entities_are_spans(tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    patterns = [{"label": "GPE", "pattern": "New York"}, {"label": "P", "pattern": "the crew"}]
    nlp.add_pipe("entity_ruler").add_patterns(patterns)
    text = "Anna ufra New York. Berlin the crew"
    corpus = run(tmp_path, write(tmp_path / "a.txt", text.encode()), pipeline=nlp)
    #                                     anna u f r a new york . berlin the crew
    assert corpus.words.astype(int).tolist() == [1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert corpus.spans.astype(int).tolist() == [1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 0]
    assert corpus.report.spans == 2
    assert corpus.report.lines()[0].endswith(", 2 entities and noun chunks")
    # Lines that are sentences keep their bounds, and have spans too.
    file = write(tmp_path / "b.txt", b"Anna. Berlin\nNew York\n")
    corpus = run(tmp_path, file, pipeline=nlp, format=Format("sentences"))
    assert read(corpus) == [["anna . berlin", "new york"]]
    assert corpus.spans.astype(int).tolist() == [1, 1, 1, 1, 0]


def test_the_patterns_of_a_pipeline_count(tmp_path):
    file = write(tmp_path / "a.txt", b"Anna swim New York")
    found = []
    for pattern in ("Anna", "New York"):
        nlp = spacy.blank("en")
        nlp.add_pipe("sentencizer")
        nlp.add_pipe("entity_ruler").add_patterns([{"label": "X", "pattern": pattern}])
        found.append(run(tmp_path, file, pipeline=nlp).spans.astype(int).tolist())
    assert found == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_noun_chunks_are_spans(tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("parse_by_hand")
    ruler = nlp.add_pipe("entity_ruler")
    # An entity that overlaps with a longer chunk gives way.
    ruler.add_patterns([{"label": "X", "pattern": "crew"}])
    file = write(tmp_path / "a.txt", b"the crew swim a fire")
    corpus = run(tmp_path, file, pipeline=nlp)
    assert read(corpus) == [["the crew swim a fire"]]
    assert corpus.spans.astype(int).tolist() == [1, 0, 1, 1, 0]
    assert corpus.report.spans == 2


def test_held_out_text_may_have_no_spans(tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "P", "pattern": "Anna"}])
    nlp.to_disk(tmp_path / "pipeline")
    files = {name: write(tmp_path / f"{name}.txt", name.encode()) for name in ("Anna", "Berlin")}
    settings = ask(str(files["Anna"]))
    settings.text = replace(settings.text, pipeline=str(tmp_path / "pipeline"))
    settings.masking = replace(settings.masking, units="spans")
    settings.paths = replace(settings.paths, cache=str(tmp_path), held_out=[str(files["Berlin"])])
    corpus, held_out = prepare_texts(settings, BY_KIND["wordpiece"])
    assert (corpus.report.spans, held_out.report.spans) == (1, 0)
    settings.paths = replace(settings.paths, raw=[str(files["Berlin"])])
    with pytest.raises(ValueError, match="finds no entities and no noun chunks in the text"):
        prepare_texts(settings, BY_KIND["wordpiece"])
