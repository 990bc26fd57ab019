"""Files of every kind as documents, from any document on."""

import gzip
import io
import json

import pytest
import spacy
from annotation import annotations, parts, read, run, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from joint import BURNED, SAILED, assert_same
from spacy.tokens import Doc, DocBin

from spacy_bert_heads.annotate import source
from spacy_bert_heads.annotate.plan import Job, Types, make_plan
from spacy_bert_heads.annotate.source import (
    Document,
    SourceFile,
    list_source,
    read_documents,
    read_lines,
)
from spacy_bert_heads.annotate.worker import BATCH_CHARS, BATCH_DOCS, make_batches
from spacy_bert_heads.pairs import make_verdict

TEXTS = [BURNED, "", SAILED, "  ", "Grete left 😀", "the last"]


def documents(path, output, size):
    """All documents of a corpus, part by part."""
    files = list_source(path, output)
    plan = make_plan(Job("", str(path), output, docs_per_part=size), "", files)
    return [
        document
        for part in plan.parts
        for document in list(
            read_documents(
                files[part.file],
                plan.files[part.file].text_column,
                first=part.first,
                offset=part.offset,
            )
        )[: part.num_docs]
    ]


def write_all_kinds(folder):
    folder.mkdir()
    lines = "\n".join(TEXTS)
    rows = [{"text": text, "number": i} for i, text in enumerate(TEXTS)]
    blank = "\n\n".join(json.dumps(row) for row in rows) + "\n \n"
    (folder / "a.txt").write_text(lines)
    (folder / "b.txt.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "c.jsonl").write_text("\ufeff" + blank)
    (folder / "d").mkdir()
    (folder / "d" / "e.ndjson.gz").write_bytes(gzip.compress(blank.encode()))
    nlp = spacy.blank("xx")
    docs = [nlp(text) for text in TEXTS]
    DocBin(docs=docs, store_user_data=True).to_disk(folder / "f.spacy")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "notes.md").write_text("no data")


@pytest.mark.parametrize("size", [1, 4, 100])
def test_documents_of_a_folder(tmp_path, size):
    write_all_kinds(tmp_path / "in")
    found = documents(tmp_path / "in", tmp_path / "out", size)
    assert [document.text for document in found] == TEXTS * 5
    assert [document.columns["text"] for document in found] == TEXTS * 5
    assert [document.columns["id"] for document in found[:6]] == [f"a.txt:{i}" for i in range(1, 7)]
    numbers = [document.columns["number"] for document in found if "number" in document.columns]
    assert numbers == [*range(6), *range(6)]
    assert found[-7].where == "d/e.ndjson.gz:6"


def test_files_of_a_pattern(tmp_path):
    write_all_kinds(tmp_path / "in")
    found = documents(f"{tmp_path}/in/**/*.gz", tmp_path / "out", 4)
    assert [document.text for document in found] == TEXTS * 2
    assert found[-1].where == "d/e.ndjson.gz:6"


def test_the_output_is_no_input(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    write_jsonl(tmp_path / "out" / "part-00000.jsonl", [{"text": "b"}])
    assert [file.name for file in list_source(tmp_path, tmp_path / "out")] == ["a.jsonl"]
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="has only files of the output folder"):
        list_source(tmp_path, tmp_path / "out")


def test_zstd(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    content = zstandard.ZstdCompressor().compress("\n".join(TEXTS).encode())
    (tmp_path / "a.txt.zst").write_bytes(content)
    assert [one.text for one in documents(tmp_path / "a.txt.zst", tmp_path / "out", 2)] == TEXTS
    (tmp_path / "a.txt.zst").write_bytes(content[:-4])
    with pytest.raises(ValueError, match=r"a.txt.zst is damaged"):
        documents(tmp_path / "a.txt.zst", tmp_path / "out", 2)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.spacy"])
def test_damaged_files_are_named(tmp_path, name):
    content = gzip.compress(b'{"text": "a"}\n' * 10_000)
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        documents(tmp_path / name, tmp_path / "out", 10)


def test_the_text_has_a_common_name(tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [{"review": "good", "id": 1}])
    assert [one.text for one in documents(tmp_path / "in.jsonl", tmp_path / "out", 2)] == ["good"]


def test_docs_bring_what_is_asked(joint, tmp_path):
    nlp = spacy.load(joint)
    Doc.set_extension("author", default=None, force=True)
    doc = nlp.make_doc(BURNED)
    doc._.questions, doc._.author, doc.user_data["page"] = ["Where?"], "Anna", 3
    doc._.hypotheses, doc._.nli = ["It burned."], [make_verdict("neutral")]
    DocBin(docs=[doc], store_user_data=True).to_disk(tmp_path / "in.spacy")
    run(joint, tmp_path / "in.spacy", tmp_path / "out")
    (row,) = read(tmp_path / "out")
    assert (row["author"], row["page"], row["questions"]) == ("Anna", 3, ["Where?"])
    assert row["answers"][0]["text"] == "Hull" and row["verdicts"][0]["label"] == "entailment"


@pytest.mark.parametrize("content", ['[{"text": "a"}]', "\ufeff \n[\n  {}\n]", "\n" * 9999 + "[1]"])
def test_an_array_is_not_json_lines(tmp_path, content):
    path = tmp_path / "an array.json"
    path.write_text(content, "utf8")
    with pytest.raises(ValueError, match=rf"Convert it: cat '{path}' \| jq -c '\.\[\]' > lines"):
        list_source(path, tmp_path / "out")
    packed = tmp_path / "array.jsonl.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    with pytest.raises(ValueError, match=rf"Convert it: gzip -dc {packed} \|"):
        list_source(packed, tmp_path / "out")
    path.rename(tmp_path / "array.txt")
    assert list_source(tmp_path / "array.txt", tmp_path / "out")


@pytest.mark.parametrize("format", ["jsonl", "parquet", "spacy"])
def test_columns_named_as_annotations_keep_their_values(joint, tmp_path, format):
    row = {"text": BURNED, "input_entities": "a", "entities": "b", "error": "c", "input_x": "d"}
    write_jsonl(tmp_path / "in.jsonl", [row])
    run(joint, tmp_path / "in.jsonl", tmp_path / "out", format=format)
    run(joint, tmp_path / "out", tmp_path / "again")
    (found,) = read(tmp_path / "again")
    names = ("input_entities", "input_input_entities", "input_error", "input_x")
    assert [found[name] for name in names] == ["a", "b", "c", "d"]
    assert [entity["text"] for entity in found["entities"]] == ["Hull"] and found["error"] is None


# --- Parquet


def test_parquet_to_parquet_keeps_types(joint, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import datetime
    from decimal import Decimal

    from pyarrow import parquet

    day = datetime.date(2020, 2, 3)
    schema = pa.schema(
        [
            ("id", pa.int32()),
            ("text", pa.large_string()),
            ("day", pa.date32()),
            ("price", pa.decimal128(9, 2)),
            ("error", pa.list_(pa.int8())),
            ("questions", pa.list_(pa.string())),
        ]
    )
    rows = [
        {"id": i, "text": text, "day": day, "price": Decimal("1.50"), "error": [i]}
        | {"questions": ["Where?"] if i == 0 else None}
        for i, text in enumerate([*TEXTS, None])
    ]
    table = pa.Table.from_pylist(rows, schema=schema)
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=3)
    for name in ("parquet", "jsonl"):
        run(joint, tmp_path / "in.parquet", tmp_path / name, format=name, docs_per_part=4)
    assert len(parts(tmp_path / "parquet")) == 2
    found = pa.concat_tables([parquet.read_table(path) for path in parts(tmp_path / "parquet")])
    carried = found.select(["id", "text", "day", "price", "input_error", "questions"])
    assert carried.rename_columns(schema.names).cast(schema).equals(table)
    assert carried.schema.types == schema.types
    as_json = read(tmp_path / "jsonl")
    assert [row["day"] for row in as_json] == ["2020-02-03"] * 7
    assert [row["price"] for row in as_json] == ["1.50"] * 7
    assert as_json[0]["answers"][0]["text"] == "Hull" and as_json[1]["answers"] == []
    assert as_json[6]["error"].startswith("no text: it is null")
    assert_same(annotations(found.to_pylist()), annotations(as_json))
    assert pa.types.is_float32(found.schema.field("categories").type.field("fire").type)


def test_json_to_parquet(joint, tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"id": 1, "text": BURNED, "a": None, "b": 1, "c": {"x": 1}, "d": 1, "hypotheses": ["It."]},
        {"id": 2, "text": SAILED, "b": 2.5, "c": "plain", "d": True},
        {"id": 3, "text": 5, "e": False},
    ]
    write_jsonl(tmp_path / "in.jsonl", rows)
    run(joint, tmp_path / "in.jsonl", tmp_path / "out", format="parquet", docs_per_part=2)
    run(joint, tmp_path / "in.jsonl", tmp_path / "json", docs_per_part=2)
    tables = [parquet.read_table(path) for path in parts(tmp_path / "out")]
    assert tables[0].schema.equals(tables[1].schema)
    found = [row for table in tables for row in table.to_pylist()]
    assert [row["id"] for row in found] == [1, 2, 3]
    assert [row["text"] for row in found] == [BURNED, SAILED, "5"]
    assert [row["b"] for row in found] == [1.0, 2.5, None]
    assert [row["c"] for row in found] == ['{"x": 1}', "plain", None]
    assert [row["d"] for row in found] == ["1", "true", None]
    assert [row["e"] for row in found] == [None, None, False]
    assert_same(annotations(found), annotations(read(tmp_path / "json")))


def test_types():
    types = Types()
    types.add({"a": None, "b": 1, "c": 2**70, "d": 1.5})
    types.add({"a": "x", "b": None, "d": 2})
    assert types.found == {"a": "string", "b": "int64", "c": "string", "d": "double"}


# --- properties


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf8"))), st.integers(1, 4), st.booleans())
def test_parts_make_up_the_lines(tmp_path_factory, texts, size, as_text):
    folder = tmp_path_factory.mktemp("lines")
    name = "in.txt" if as_text else "in.jsonl"
    lines = texts if as_text else [json.dumps({"text": text}) for text in texts]
    content = "\n".join([*lines, ""]).encode()
    (folder / name).write_bytes(content)
    file = SourceFile(name, folder / name, "text" if as_text else "jsonl")
    whole = [document.text for document in read_documents(file, "text")]
    expected = [line.removesuffix(b"\n").rstrip(b"\r").decode() for line in io.BytesIO(content)]
    if expected and as_text:
        expected[0] = expected[0].removeprefix("\ufeff")
    assert whole == (expected if as_text else texts)
    try:
        parted = documents(folder / name, folder / "out", size)
    except ValueError as error:
        assert not texts or "UTF-16" in str(error)
    else:
        assert [document.text for document in parted] == whole


@settings(deadline=None)
@given(st.binary())
def test_lines_of_any_length(content):
    read, before = [], source.MAX_LINE
    source.MAX_LINE = 5
    try:
        lines = list(read_lines(io.BytesIO(content), read.append))
    finally:
        source.MAX_LINE = before
    assert b"".join(read) == content
    assert sum(size for size, _ in lines) == len(content)
    expected = list(io.BytesIO(content))
    assert [size for size, _ in lines] == [len(line) for line in expected]
    assert [line for _, line in lines] == [line if len(line) <= 5 else None for line in expected]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0, 10, BATCH_CHARS // 2, BATCH_CHARS + 1]), max_size=30),
    st.sets(st.integers(0, 30)),
)
def test_batches(sizes, alone):
    made = [Document(str(i), {}, "x" * size) for i, size in enumerate(sizes)]
    batches = list(make_batches(made, alone.__contains__))
    assert [document for _, batch in batches for document in batch] == made
    assert [first for first, batch in batches] == [int(batch[0].where) for _, batch in batches]
    for first, batch in batches:
        size = sum(len(document.text) for document in batch)
        assert len(batch) == 1 or (size <= BATCH_CHARS and len(batch) <= BATCH_DOCS)
        assert len(batch) == 1 or alone.isdisjoint(range(first, first + len(batch)))


def test_tables(tmp_path):
    """A stray quote costs one row; the others have their places, from any row on."""
    (tmp_path / "a.csv").write_text('sep=;\nid;review\n1;Good; \n2;"a\nb; c"\n3;Bad\n')
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(b"review\tid\nFine\t4\n"))
    for size in (1, 2, 100):
        found = documents(tmp_path, tmp_path / "out", size)
        assert [document.text for document in found] == [None, "a\nb; c", "Bad", "Fine"]
        assert "wrong number of columns: 3 instead of 2; a cell" in found[0].error
        assert "needs quotes around it (a.csv:3)" in found[0].error
        assert found[1].columns == {"id": "2", "review": "a\nb; c"}
        assert [document.where for document in found[1:]] == ["a.csv:4", "a.csv:6", "b.tsv.gz:2"]
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="c.csv has no column 'text': the columns are a, b"):
        documents(tmp_path, tmp_path / "out", 1)


def test_the_text_column_is_that_of_the_file_not_of_its_first_row(tmp_path):
    rows = [{"content": "<p>raw</p>"}, {"content": "<p>raw</p>", "text": "raw"}]
    write_jsonl(tmp_path / "in.jsonl", rows)
    assert [one.text for one in documents(tmp_path / "in.jsonl", tmp_path / "out", 2)] == [
        None,
        "raw",
    ]
    write_jsonl(tmp_path / "in.jsonl", [{"content": "a"}, {"review": "b"}])
    with pytest.raises(ValueError, match="has no column 'text'.*content, review.*--text-column"):
        documents(tmp_path / "in.jsonl", tmp_path / "out", 2)


def test_columns_that_no_head_reads_are_the_users(make_nlp, tmp_path):
    make_nlp("textcat").to_disk(tmp_path / "nlp")
    write_jsonl(tmp_path / "in.jsonl", [{"text": SAILED, "choices": 3, "questions": "none"}])
    run(tmp_path / "nlp", tmp_path / "in.jsonl", tmp_path / "out")
    (row,) = read(tmp_path / "out")
    assert row["error"] is None and (row["choices"], row["questions"]) == (3, "none")


def test_second_texts_in_a_table(joint, tmp_path):
    (tmp_path / "in.csv").write_text(f'text,questions\n{BURNED},"[""Where?""]"\n{SAILED},\n')
    run(joint, tmp_path / "in.csv", tmp_path / "out")
    first, second = read(tmp_path / "out")
    assert first["answers"][0]["text"] == "Hull" and first["error"] is None
    assert second["answers"] == [] and second["error"] is None
