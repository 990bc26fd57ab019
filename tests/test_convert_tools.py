"""Exports of annotation tools and hubs: exact annotations of small files."""

import json
from typing import Any

import pytest
from conversion import answered, jsonl, judged, load, read, run, seen

from spacy_bert_heads.data.convert import convert

pytestmark = pytest.mark.usefixtures("share_blank_pipelines")


def drug(**more: Any) -> dict[str, Any]:
    return {"start": 5, "end": 10, "label": "DRUG", **more}


PRODIGY_NER = [
    {"text": "Took Xanax.", "tokens": [{"text": "Took"}], "spans": [drug()], "answer": "accept"},
    {"text": "Nothing.", "tokens": [], "answer": "accept"},
    {"text": "Wrong.", "tokens": [], "spans": [], "answer": "reject"},
    {"text": "Unsure.", "tokens": [], "answer": "ignore"},
]
ROWS = [{"text": "one", "a": 1, "b": 0}, {"text": "two", "a": 1, "b": 1}]
ONE_HOT = [("one", None, {"a": 1.0, "b": 0.0}), ("two", None, {"a": 1.0, "b": 1.0})]
TASK = {
    "id": 1,
    "data": {"text": "Obama in Paris"},
    "annotations": [
        {
            "result": [
                {"type": "labels", "value": {"start": 0, "end": 5, "labels": ["PER"]}},
                {"type": "choices", "value": {"choices": ["news"]}, "from_name": "kind"},
                {"type": "relation", "from_id": "a"},
            ]
        }
    ],
}
EMPTY = {"id": 2, "data": {"text": "Hi"}, "annotations": [{"result": []}]}
OBAMA = ("Obama in Paris", [("Obama", "PER")], {"news": 1.0})


@pytest.mark.parametrize(
    "name, content, options, expected",
    [
        # Prodigy
        (
            "a.jsonl",
            jsonl(*PRODIGY_NER),
            {},
            [("Took Xanax.", [("Xanax", "DRUG")], {}), ("Nothing.", [], {})],
        ),
        (
            "a.jsonl",
            jsonl(
                {"text": "Took Xanax.", "spans": [drug()], "_view_id": "ner", "answer": "accept"},
                {"text": "Took Xanax.", "spans": [drug()], "_view_id": "ner", "answer": "reject"},
            ),
            {},
            [("Took Xanax.", [("Xanax", "DRUG")], {}), ("Took Xanax.", [("Xanax", "!DRUG")], {})],
        ),
        (
            "a.jsonl",
            jsonl(
                {"text": "one", "label": "DOCS", "answer": "accept"},
                {"text": "two", "label": "DOCS", "answer": "reject"},
                {"text": "three", "label": "BUG", "answer": "accept"},
            ),
            {},
            [
                ("one", None, {"DOCS": 1.0}),
                ("two", None, {"DOCS": 0.0}),
                ("three", None, {"BUG": 1.0}),
            ],
        ),
        (
            "a.jsonl",
            jsonl(
                {
                    "text": "x",
                    "options": [{"id": "a"}, {"id": "b"}],
                    "accept": ["b"],
                    "answer": "accept",
                },
                {
                    "text": "y",
                    "options": [{"id": "a"}, {"id": "b"}],
                    "accept": [],
                    "answer": "accept",
                },
            ),
            {},
            [("x", None, {"a": 0.0, "b": 1.0}), ("y", None, {"a": 0.0, "b": 0.0})],
        ),
        (
            "a.jsonl",
            jsonl(
                {"text": "x yz", "label": "A", "spans": [[0, 1, "A"]], "_view_id": "classification"}
                | {"answer": "accept"},
                {"text": "z", "cats": {"A": 0.5}, "tokens": [], "answer": "accept"},
            ),
            {},
            [("x yz", None, {"A": 1.0}), ("z", None, {"A": 0.5})],
        ),
        # doccano
        (
            "a.jsonl",
            jsonl(
                {"id": 1, "text": "EU rejects", "label": [[0, 2, "ORG"]]},
                {"id": 2, "text": "no", "label": []},
            ),
            {},
            [("EU rejects", [("EU", "ORG")], {}), ("no", [], {})],
        ),
        (
            "a.jsonl",
            jsonl(
                {
                    "text": "EU rejects",
                    "entities": [{"id": 0, "label": "ORG", "start_offset": 0, "end_offset": 2}],
                    "relations": [{"from_id": 0}],
                }
            ),
            {},
            [("EU rejects", [("EU", "ORG")], {})],
        ),
        (
            "a.json",
            json.dumps([{"text": "a", "label": ["x"]}, {"text": "b", "label": ["y", "x"]}]),
            {},
            [("a", None, {"x": 1.0, "y": 0.0}), ("b", None, {"x": 1.0, "y": 1.0})],
        ),
        # Label Studio: JSON, JSON-MIN, CONLL2003
        ("a.json", json.dumps([TASK, EMPTY]), {}, [OBAMA, ("Hi", [], {"news": 0.0})]),
        (
            "a.json",
            json.dumps(
                [
                    {
                        "text": "Obama in Paris",
                        "label": [{"start": 0, "end": 5, "text": "Obama", "labels": ["PER"]}],
                        "annotation_id": 1,
                    },
                    {"text": "Hi", "annotation_id": 2},
                ]
            ),
            {},
            [("Obama in Paris", [("Obama", "PER")], {}), ("Hi", [], {})],
        ),
        (
            "a.conll",
            "-DOCSTART- -X- O\nObama -X- _ B-PER\nis -X- _ O\n\n",
            {},
            [("Obama is", [("Obama", "PER")], {})],
        ),
        # spaCy's TRAIN_DATA
        (
            "a.json",
            '[["Uber blew", {"entities": [[0, 4, "ORG"]]}]]',
            {},
            [("Uber blew", [("Uber", "ORG")], {})],
        ),
        (
            "a.py",
            "import spacy\nTRAIN_DATA = [\n"
            "    ('Uber blew', {'entities': [(0, 4, 'ORG')], 'cats': {'x': 1.0}})\n]\n",
            {},
            [("Uber blew", [("Uber", "ORG")], {"x": 1.0})],
        ),
        (
            "a.json",
            '{"classes": ["X"], "annotations": [["Uber blew", {"entities": [[0, 4, "X"]]}], null]}',
            {},
            [("Uber blew", [("Uber", "X")], {})],
        ),
        # rows of `datasets`
        (
            "a.jsonl",
            jsonl({"id": "0", "tokens": ["EU", "rejects"], "ner_tags": [3, 0]}),
            {"labels": ("O", "B-PER", "I-PER", "B-ORG")},
            [("EU rejects", [("EU", "ORG")], {})],
        ),
        (
            "a.jsonl",
            jsonl({"text": "x", "label": 1}, {"text": "y", "label": 0}),
            {"labels": ("bad", "good")},
            [("x", None, {"bad": 0.0, "good": 1.0}), ("y", None, {"bad": 1.0, "good": 0.0})],
        ),
        (
            "a.jsonl",
            jsonl({"tokens": ["EU", "is"], "tags": ["ORG", "O"]}),
            {},
            [("EU is", [("EU", "ORG")], {})],
        ),
        # tables
        ("a.csv", "text,a,b\none,1,0\ntwo,1,1\n", {"label_columns": ("a", "b")}, ONE_HOT),
        ("a.jsonl", jsonl(*ROWS), {"label_columns": ("a", "b")}, ONE_HOT),
        (
            "a.csv",
            'text,labels\none,a\ntwo,"b, a"\n',
            {"label_separator": ","},
            [ONE_HOT[0], ONE_HOT[1]],
        ),
        ("a.csv", "text,labels\none,\"['a']\"\ntwo,\"['a' 'b']\"\n", {}, ONE_HOT),
        (
            "a.csv",
            'text,spans\nEU rejects,"[{""start"": 0, ""end"": 2, ""label"": ""ORG""}]"\nno,\n',
            {},
            [("EU rejects", [("EU", "ORG")], {}), ("no", [], {})],
        ),
        (
            "a.tsv",
            "x1\ta\tone\nx2\tb\ttwo\n",
            {"text_column": "3", "label_column": "2"},
            [("one", None, {"a": 1.0, "b": 0.0}), ("two", None, {"a": 0.0, "b": 1.0})],
        ),
        (
            "a.csv",
            "label,x\none,a\n",
            {"text_column": "label", "label_column": "x"},
            [("one", None, {"a": 1.0})],
        ),
        # Only a header names columns by number: a label of the first row may be one too.
        (
            "a.csv",
            '"3","x","one"\n"4","y","two"\n',
            {"text_column": "3", "label_column": "1"},
            [("one", None, {"3": 1.0, "4": 0.0}), ("two", None, {"3": 0.0, "4": 1.0})],
        ),
        ("a.csv", "id,data,label\n1,one,a\n", {}, [("one", None, {"a": 1.0})]),  # doccano
        (
            "a.json",
            '{"features": [{"name": "text"}], "rows": [{"row_idx": 0, "row": {"text": "one", '
            '"label": "a"}}]}',
            {},
            [("one", None, {"a": 1.0})],
        ),
        # columns of tokens
        (
            "a.csv",
            "tokens,tags\n\"['Anna' ',' 'x']\",[1 0 0]\n\"['y', 'z'\",[0 0]\n"
            "z,\"[np.int64(0)]\"\n['z'],[np.int64(0)]\n",
            {"labels": ("O", "B-PER")},
            [("Anna , x", [("Anna", "PER")], {}), ("z", [], {})],
        ),
        (
            "a.conll",
            "0 Anna B-PER\n1 left O\n\n2 Hi O\n3 you O\n",
            {},
            [("Anna left", [("Anna", "PER")], {}), ("Hi you", [], {})],
        ),
        ("a.conll", "1 B-X\n2 O\n", {}, [("1 2", [("1", "X")], {})]),
        ("a.txt", "O\tat\nB-X\tHull\nI-X\tPub\n", {}, [("at Hull Pub", [("Hull Pub", "X")], {})]),
        ("a.conll", "at O\nHull B\nPub I\n", {}, [("at Hull Pub", [("Hull Pub", "ENTITY")], {})]),
        ("a.conll", "at O\nHull B_X\nPub I_X\n", {}, [("at Hull Pub", [("Hull Pub", "X")], {})]),
        (
            "a.conll",
            "#begin document (a); part 000\na 0 Anna NNP (1)\na 1 left VBD -\n\n#end document\n",
            {"token_column": "3", "tag_column": "4"},
            [("Anna left", None, {})],
        ),
        (
            "a.tsv",
            "#\thttp://x.de\n1\tJesu\tB-PER\tO\n2\tkam\tO\tB-LOC\n\n",
            {},
            [("Jesu kam", [("Jesu", "PER")], {})],
        ),
        (
            "a.conll",
            "Anna Anna NE I-NC B-PER\ngeht gehen VVFIN I-VC O\n",
            {},
            [("Anna geht", [("Anna", "PER")], {})],
        ),
        (
            "a.conll",
            "EU ORG\nis O\nNew LOC\nYork LOC\n",
            {},
            [("EU is New York", [("EU", "ORG"), ("New York", "LOC")], {})],
        ),
        (
            "a.conll",
            "B-PER NE Anna\nO V geht\n",
            {"token_column": "3", "tag_column": "1"},
            [("Anna geht", [("Anna", "PER")], {})],
        ),
        (
            "a.conll",
            "李 B-PER\n明 M-PER\n华 E-PER\n去 O\n",
            {},
            [("李 明 华 去", [("李 明 华", "PER")], {})],
        ),
        # CLUENER
        (
            "a.json",
            jsonl(
                {"text": "Anna here", "label": {"name": {"Anna": [[0, 3]]}}},
                {"text": "x", "label": {}},
            ),
            {},
            [("Anna here", [("Anna", "name")], {}), ("x", [], {})],
        ),
    ],
)
def test_what_a_file_meant(tmp_path, name, content, options, expected):
    docs, _ = run(tmp_path, name, content, **options)
    assert [seen(doc) for doc in docs] == expected


def test_binary_entities_say_nothing_of_the_rest(tmp_path):
    (doc,), report = run(
        tmp_path, "a.jsonl", jsonl({"text": "Took Xanax.", "spans": [drug()], "answer": "reject"})
    )
    assert [token.ent_iob_ for token in doc] == ["", "B", ""]
    assert report.labels == {"!DRUG": 1}


def test_prodigy_report(tmp_path):
    docs, report = run(tmp_path, "a.jsonl", jsonl(*PRODIGY_NER))
    assert (report.read, report.kept, report.kinds) == (4, 2, {"entities": 2})
    assert report.reasons == {"rejected in Prodigy": 1, "ignored in Prodigy": 1}
    assert report.lines()[:2] == ["2 of 4 records (jsonl)", "entities: 2 of 2 documents"]
    assert report.unread == {"tokens": 1}


@pytest.mark.parametrize("content", ["Hi\thi\tINTJ\n", "Hi INTJ\n"])
def test_tags_that_are_no_entities(content):
    (doc,) = read("conll", [content])
    assert [token.tag_ for token in doc] == ["INTJ"] and not doc.has_annotation("ENT_IOB")


def test_conllu(tmp_path):
    lines = [
        "# text = Zum Hafen.",
        "1-2\tZum\t_\t_\t_\t_\t_\t_\t_\t_",
        "1\tZu\tzu\tADP\tAPPR\t_\t3\tcase\t_\t_",
        "2\tdem\tder\tDET\tART\tCase=Dat\t3\tdet\t_\t_",
        "3\tHafen\tHafen\tNOUN\tNN\tCase=Dat\t0\troot\t_\tSpaceAfter=No",
        "3.1\tx\tx\tNOUN\tNN\t_\t_\t_\t_\t_",
        "4\t.\t.\tPUNCT\t_\t_\t3\tpunct\t_\t_",
    ]
    (doc,), report = run(tmp_path, "a.conllu", "\n".join(lines) + "\n\n")
    assert doc.text == "Zum Hafen."
    assert [(t.pos_, t.tag_, str(t.morph)) for t in doc] == [
        ("", "", ""),
        ("NOUN", "NN", "Case=Dat"),
        ("PUNCT", "", ""),
    ]
    assert report.notes.counts == {"multiword tokens, left without tags": 1}
    assert report.kinds == {"tags": 1}


def test_brat(tmp_path):
    text = "Anna and Ben Lind\nleft."
    ann = (
        "T1\tPER 0 4\tAnna\nT2\tPER 0 4;13 17\tAnna Lind\nT3\tPER 9 22\tBen Lind left\n"
        "R1\tKnows Arg1:T1 Arg2:T3\n"
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(text)
    (tmp_path / "in" / "a.ann").write_text(ann)
    (tmp_path / "in" / "annotation.conf").write_text("[entities]\nPER\n")
    report = convert(tmp_path / "in", tmp_path / "out.spacy")
    (doc,) = load(tmp_path / "out.spacy")
    assert seen(doc) == (text, [("Anna and Ben Lind", "PER")], {})
    assert (report.format, report.unit, report.read) == ("brat", "documents", 1)
    assert report.notes.counts == {
        "discontinuous entities, read from the first to the last character": 1,
        "entities skipped, overlapping a longer one": 2,
        "annotations of brat that were not read": 1,
    }


def test_flat_squad_and_pairs(tmp_path):
    row = {"id": "1", "title": "t", "context": "Paris is in France.", "question": "Where?"}
    there = {"answers": {"text": ["France", "FRANCE!"], "answer_start": [12, -1]}}
    none = {"question": "Who?", "answers": {"text": [], "answer_start": []}}
    (doc,), report = run(tmp_path, "a.jsonl", jsonl(row | there, row | none))
    assert answered(doc) == [("Where?", [(12, "France")]), ("Who?", [])]
    assert (report.read, report.kept, report.docs) == (2, 2, 1)
    assert report.notes.counts == {"answers skipped, answer not found in the context": 1}
    names = {"premise_column": "text", "hypothesis_column": "text_b", "labels": ("yes", "no")}
    (doc,), _ = run(tmp_path, "a.jsonl", jsonl({"text": "A", "text_b": "B", "label": 1}), **names)
    assert judged(doc) == ("A", [("B", "no")])
