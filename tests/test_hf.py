"""Hugging Face in and out: the same logits, the same predictions, nothing lost on the way back."""

import json
import shlex
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
import transformers
from checkpoints import FAMILIES, TEXTS, make_checkpoint
from safetensors.torch import load_file, save_file
from spacy.cli.train import train
from spacy.tokens import Doc, DocBin
from test_heads import first_pieces
from typer.testing import CliRunner

import spacy_bert_heads
from spacy_bert_heads import from_hf, to_hf
from spacy_bert_heads.cli import bert_app
from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.encoder.model import shim_of
from spacy_bert_heads.heads.decoding import decode
from spacy_bert_heads.heads.outputs import TokenLogits
from spacy_bert_heads.heads.tags import read_tags
from spacy_bert_heads.types import Pairs

TOKENS = transformers.AutoModelForTokenClassification
SEQUENCES = transformers.AutoModelForSequenceClassification
ANSWERS = transformers.AutoModelForQuestionAnswering
PLACES = ["B-PLACE", "O", "I-DATE", "B-DATE", "I-PLACE"]
MOODS = ["good", "bad", "meh"]
VERDICTS = ["Neutral", "entailment", "CONTRADICTION"]
ENDS = ["LABEL_0", "LABEL_1"]


def save(folder: Path, auto_class: type, labels: list[str], **settings) -> str:
    settings["id2label"] = dict(enumerate(labels))
    settings["label2id"] = {label: i for i, label in enumerate(labels)}
    return make_checkpoint(folder, auto_class=auto_class, **settings)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Some Docs of a real data set, by language: real("wnut17", "en"). Where the data sets are not
    beside the project, its own reports, which are English."""
    project = Path(__file__).parent.parent
    data = project.parent / "shared" / "data"
    files = {
        "wnut17": "ner_wnut17/test.conll",
        "sst2": "textcat_sst2/test.txt",
        "sick": "nli_sick/SICK_trial.txt",
        "xquad": "qa_xquad/xquad.{}.json",
    }
    folder = tmp_path_factory.mktemp("real")

    def read(name: str, lang: str = "en", n: int = 12) -> list[Doc]:
        path = folder / f"{name}-{lang}.spacy"
        source = data / files[name].format(lang)
        if not data.is_dir():
            if lang != "en":
                pytest.skip("the real data sets are not beside the project (../shared/data)")
            source = project / "assets" / "train.jsonl"
        if not path.exists():
            convert(source, path, lang=lang)
        nlp = spacy.blank(lang)
        docs = list(islice(DocBin().from_disk(path).get_docs(nlp.vocab), n))
        if not data.is_dir() and name != "xquad":  # sentences
            for i, report in enumerate(docs):
                docs[i] = nlp.make_doc(report.text[:60])
                docs[i]._.hypotheses = report._.hypotheses
        return docs

    return read


def load(folder: str, auto_class: type):
    model = auto_class.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def run(model, tokenizer, *texts: str):
    """Hugging Face's output for a text or a pair."""
    inputs = tokenizer(*([text] for text in texts), return_tensors="pt")
    if not getattr(model.config, "type_vocab_size", 0):
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**inputs)


def token_logits(model, tokenizer, doc: Doc) -> np.ndarray:
    logits = run(model, tokenizer, doc.text).logits[0]
    return logits[first_pieces(tokenizer, doc)].numpy()


def best_answer(model, tokenizer, question: str, context: str, **windows) -> str:
    """The best answer over all windows, by hand, from Hugging Face's logits. It begins in the
    window where its first piece has the most context on its shorter side (BERT's run_squad.py)."""
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        **windows,
    )
    step = encoded.sequence_ids(0).count(1) - windows["stride"]
    contexts: dict[int, list[tuple[int, int]]] = {}  # of each piece of the context, its windows
    spans = []
    for i, ids in enumerate(encoded["input_ids"]):
        inputs = {"input_ids": torch.tensor([ids])}
        if "token_type_ids" in encoded and getattr(model.config, "type_vocab_size", 0):
            inputs["token_type_ids"] = torch.tensor([encoded["token_type_ids"][i]])
        with torch.no_grad():
            output = model(**inputs)
        places = [j for j, part in enumerate(encoded.sequence_ids(i)) if part == 1]
        offsets = encoded["offset_mapping"][i]
        # A piece of a byte or of white space may have no characters of its own: it is passed over.
        whole = [j for j in places if offsets[j][0] < offsets[j][1]]
        for number, first in enumerate(whole):
            piece = i * step + first - places[0]
            # Of windows that are equally good the first one.
            context_size = min(first - places[0], places[-1] - first)
            contexts.setdefault(piece, []).append((context_size, -i))
            for last in whole[number : number + 30]:
                text = context[offsets[first][0] : offsets[last][1]].strip()
                score = float(output.start_logits[0, first] + output.end_logits[0, last])
                spans += [(score, text, i, piece)] if text else []
    return max(one for one in spans if max(contexts[one[3]])[1] == -one[2])[1]


# --- logits


@pytest.mark.parametrize("family", FAMILIES)
def test_token_logits(family, tmp_path, real):
    folder = save(tmp_path / "hf", TOKENS, PLACES, family=family)
    nlp = from_hf(folder)
    head = nlp.get_pipe("bert_ner")
    assert head.tags == ["O", "B-PLACE", "I-PLACE", "B-DATE", "I-DATE"]
    model, tokenizer = load(folder, TOKENS)
    docs = [nlp.make_doc(doc.text) for doc in real("wnut17")]
    docs = [doc for doc in docs if len(tokenizer(doc.text)["input_ids"]) <= 96]
    assert len(docs) > 3
    expected = np.concatenate([token_logits(model, tokenizer, doc) for doc in docs])
    order = [PLACES.index(tag) for tag in head.tags]
    np.testing.assert_allclose(head.predict(docs).logits, expected[:, order], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_sequence_and_pair_logits(family, tmp_path, real):
    folder = save(tmp_path / "moods", SEQUENCES, MOODS, family=family)
    nlp = from_hf(folder)
    assert nlp.get_pipe("bert_textcat").labels == ("good", "bad", "meh")
    model, tokenizer = load(folder, SEQUENCES)
    texts = [doc.text for doc in real("sst2") if len(tokenizer(doc.text)["input_ids"]) <= 128]
    expected = torch.cat([run(model, tokenizer, text).logits for text in texts])
    assert float(expected.std(0).min()) > 1e-3
    found = nlp.get_pipe("bert_textcat").predict([nlp.make_doc(text) for text in texts])
    np.testing.assert_allclose(found, expected, atol=1e-4)

    folder = save(tmp_path / "verdicts", SEQUENCES, VERDICTS, family=family)
    nlp = from_hf(folder)
    head = nlp.get_pipe("bert_nli")
    assert head.labels == tuple(VERDICTS)
    model, tokenizer = load(folder, SEQUENCES)
    pairs = [(doc.text, text) for doc in real("sick") for text in doc._.hypotheses]
    pairs = [pair for pair in pairs if len(tokenizer(*pair)["input_ids"]) <= 128]
    expected = torch.cat([run(model, tokenizer, *pair).logits for pair in pairs])
    docs = [nlp.make_doc(premise) for premise, _ in pairs]
    found = head.model.predict(Pairs(docs, [[text] for _, text in pairs], doc_first=True))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("lang", ["en", "de", "zh"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "deberta-v2", "modernbert"])
def test_answers_over_all_windows(family, lang, tmp_path, real):
    folder = save(tmp_path / "hf", ANSWERS, ENDS, family=family)
    nlp = from_hf(folder, lang=lang)
    head, encoder = nlp.get_pipe("bert_qa"), nlp.get_pipe("bert_encoder")
    encoder.model.attrs["window"], encoder.model.attrs["stride"] = 120, 60
    model, tokenizer = load(folder, ANSWERS)
    n_windows = []
    for source in real("xquad", lang, n=3):
        doc = nlp.make_doc(source.text[: 240 if lang == "zh" else 300])
        lengths = [len(tokenizer(text)["input_ids"]) for text in source._.questions]
        shortest = np.argsort(lengths, kind="stable")[:1]
        assert min(lengths) < 55
        doc._.questions = [source._.questions[i] for i in shortest]
        doc = nlp(doc)
        for question, answer in zip(doc._.questions, doc._.answers, strict=True):
            # Windows over pairs overlap as those over single texts, but no more than by half.
            room = 120 - len(tokenizer([question], [""])["input_ids"][0])
            overlap = min(118 - 60, room // 2)
            windows = {"max_length": 120, "stride": overlap}
            expected = best_answer(model, tokenizer, question, doc.text, **windows)
            assert answer["text"] == expected != ""
            pairs = Pairs([doc], [[question]], doc_first=False)
            n_windows.append(int(head.model.predict(pairs).sequences.windows[0]))
    if lang != "zh" or FAMILIES[family] != "unigram":  # for which it is one unknown piece
        assert max(n_windows) > 1


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "electra", "mpnet"])
def test_answer_logits(family, tmp_path, real):
    folder = save(tmp_path / "hf", ANSWERS, ENDS, family=family)
    nlp = from_hf(folder)
    head = nlp.get_pipe("bert_qa")
    model, tokenizer = load(folder, ANSWERS)
    context, question = real("xquad")[0].text[:80], "Who gave up points?"
    found = head.model.predict(Pairs([nlp.make_doc(context)], [[question]], doc_first=False))
    output = run(model, tokenizer, question, context)
    expected = torch.stack([output.start_logits[0], output.end_logits[0]], dim=1)
    np.testing.assert_allclose(found.logits, expected, atol=1e-4)


@pytest.fixture(scope="module")
def tuned(minilm, data, real, tmp_path_factory) -> str:
    """MiniLM really fine-tuned on SST-2 by Hugging Face's own class, for a few steps."""
    folder = tmp_path_factory.mktemp("tuned")
    torch.manual_seed(0)
    names = {0: "negative", 1: "positive"}
    model = SEQUENCES.from_pretrained(minilm, num_labels=2, id2label=names)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    rows = [doc for doc in real("sst2", n=1000) if len(doc) < 20][:192]
    rows = [(doc.text, list(doc.cats.values())) for doc in rows]
    positive = list(real("sst2")[0].cats).index("1")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    model.train()
    for start in range(0, 192, 16):
        batch = rows[start : start + 16]
        inputs = tokenizer([text for text, _ in batch], return_tensors="pt", padding=True)
        gold = torch.tensor([int(values[positive]) for _, values in batch])
        model(**inputs, labels=gold).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_really_fine_tuned_bert(tuned, real, tmp_path):
    nlp = from_hf(tuned)
    model, tokenizer = load(tuned, SEQUENCES)
    docs = real("sst2", n=300)[200:]
    found = nlp.get_pipe("bert_textcat").predict([nlp.make_doc(doc.text) for doc in docs])
    expected = torch.cat([run(model, tokenizer, doc.text).logits for doc in docs])
    np.testing.assert_allclose(found, expected, atol=1e-4)

    pipe = transformers.pipeline("text-classification", model=tuned, top_k=None)
    for doc, scores in zip(
        nlp.pipe([doc.text for doc in docs[:20]]), pipe([d.text for d in docs[:20]]), strict=True
    ):
        assert doc.cats == pytest.approx({one["label"]: one["score"] for one in scores}, abs=1e-4)

    to_hf(nlp, "bert_textcat", tmp_path / "back")
    before, after = (load_file(Path(f) / "model.safetensors") for f in (tuned, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- predictions


def test_entities_are_the_pipelines(tmp_path):
    folder = save(tmp_path / "hf", TOKENS, PLACES)
    nlp = from_hf(folder)
    assert nlp.get_pipe("bert_ner").cfg["scheme"] == "IOB"
    # Without punctuation, at which its words end and ours don't.
    texts = ["a fire broke out in berlin", "anna met barack obama and the crew of hanne lind"]
    pipe = transformers.pipeline("token-classification", folder, aggregation_strategy="first")
    n_found = 0
    for text in texts:
        expected = [(one["start"], one["end"], one["entity_group"]) for one in pipe(text)]
        doc = nlp(text)
        assert [(e.start_char, e.end_char, e.label_) for e in doc.ents] == expected
        n_found += len(expected)
    assert n_found > 3


def test_verdicts_are_the_pipelines(tmp_path):
    folder = save(tmp_path / "hf", SEQUENCES, VERDICTS)
    nlp = from_hf(folder)
    pipe = transformers.pipeline("text-classification", folder, top_k=None)
    doc = nlp.make_doc(TEXTS[0])
    doc._.hypotheses = ["The boat sank.", "Nobody swims"]
    doc = nlp(doc)
    for text, verdict in zip(doc._.hypotheses, doc._.nli, strict=True):
        expected = {o["label"]: o["score"] for o in pipe({"text": doc.text, "text_pair": text})}
        assert verdict["scores"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.skipif(
    transformers.__version__.startswith("5"), reason="transformers 5 has no such pipeline"
)
def test_answers_are_the_pipelines(tmp_path, real):
    folder = save(tmp_path / "hf", ANSWERS, ENDS)
    nlp = from_hf(folder)
    pipe = transformers.pipeline("question-answering", folder)
    for source in real("xquad", n=6):
        doc = nlp.make_doc(source.text[:90])
        doc._.questions = [min(source._.questions, key=len)[:30]]
        answer = nlp(doc)._.answers[0]
        expected = pipe(
            question=doc._.questions[0],
            context=doc.text,
            max_answer_len=30,
            max_seq_len=128,
            align_to_words=False,
        )
        assert (answer["start_char"], answer["end_char"]) == (expected["start"], expected["end"])


def test_tags_and_many_labels(tmp_path):
    folder = save(tmp_path / "tags", TOKENS, ["NN", "VB", "DT"])
    nlp = from_hf(folder)
    model, tokenizer = load(folder, TOKENS)
    doc = nlp(TEXTS[3])
    best = token_logits(model, tokenizer, doc).argmax(1)
    assert [token.tag_ for token in doc] == [["NN", "VB", "DT"][i] for i in best]
    folder = save(tmp_path / "pos", TOKENS, ["NOUN", "VERB"])
    assert {token.pos_ for token in from_hf(folder)(TEXTS[3])} <= {"NOUN", "VERB"}

    problem = "multi_label_classification"
    folder = save(tmp_path / "many", SEQUENCES, MOODS, problem_type=problem)
    nlp = from_hf(folder)
    model, tokenizer = load(folder, SEQUENCES)
    expected = run(model, tokenizer, TEXTS[0]).logits[0].sigmoid().tolist()
    found = nlp(TEXTS[0]).cats
    assert nlp.pipe_names == ["bert_encoder", "bert_textcat_multilabel"]
    assert found == pytest.approx(dict(zip(MOODS, expected, strict=True)), abs=1e-5)


# --- names of classes


@pytest.mark.parametrize(
    "names, scheme, labels, classes",
    [
        (["B-PER", "O", "I-PER"], "IOB", ["PER"], [1, 0, 2]),
        (["O", "I-LOC", "I-PER"], "IO", ["LOC", "PER"], [0, 1, 2]),
        (["PER", "LOC", "O"], "IO", ["PER", "LOC"], [2, 0, 1]),
        (["O", "S-X", "E-X", "B-X", "I-X"], "BILOU", ["X"], [0, 3, 4, 2, 1]),
        (["O", "S-X", "E-X", "B-X", "M-X"], "BILOU", ["X"], [0, 3, 4, 2, 1]),
        (["O", "S-X", "B-X", "I-X"], "IOBES", ["X"], [0, 2, 3, -1, 1]),
        (["O", "B-X", "I-X", "E-X"], "IOBES", ["X"], [0, 1, 2, 3, -1]),
        (["B", "I", "O"], "IOB", ["ENTITY"], [2, 0, 1]),
        (["O", "E-MAIL", "NAME"], "IO", ["E-MAIL", "NAME"], [0, 1, 2]),
        (["O", "B_E-MAIL", "I_E-MAIL", "NAME"], "IOB", ["E-MAIL", "NAME"], [0, 1, 2, -1, 3]),
        (["O", "B-PER", "I-PER", "B-DATE"], "IOB", ["PER", "DATE"], [0, 1, 2, 3, -1]),
    ],
)
def test_tags_are_read_by_name(names, scheme, labels, classes):
    assert read_tags(names) == (scheme, labels, classes)


def test_one_tag_by_two_names():
    with pytest.raises(ValueError, match="'I-PER' and 'PER' are the same tag"):
        read_tags(["O", "PER", "I-PER", "B-PER"])


@pytest.mark.parametrize(
    "tags, path, strict, expected",
    [
        # An entity may begin with I; another label begins another one, and so does another Doc.
        (["O", "B-X", "I-X", "B-Y", "I-Y"], [2, 2, 0, 4, 2, 2], False, "0-2X 3-4Y 4-5X 0-1X"),
        (["O", "I-X", "I-Y"], [1, 1, 2, 0, 1, 0], False, "0-2X 2-3Y 4-5X"),
        (["O", "B-X", "I-X"], [1, 2, 2, 1, 0, 1], True, "0-3X 3-4X 0-1X"),
        # Without a tag for the end, without one for a single token, and after an end.
        (["O", "B-X", "I-X", "L-X", "U-X"], [1, 2, 2, 0, 4, 4], False, "0-3X 4-5X 0-1X"),
        (["O", "B-X", "I-X", "L-X", "U-X"], [1, 0, 1, 2, 3, 2], False, "0-1X 2-5X 0-1X"),
        (["O", "B-X", "I-X", "L-X", "U-X"], [1, 3, 2, 4, 3, 0], False, "0-2X 2-3X 3-4X 4-5X"),
    ],
)
def test_entities_by_hand(tags, path, strict, expected):
    logits = np.full((6, len(tags)), -30.0)
    logits[np.arange(6), path] = 0.0
    output = TokenLogits(torch.from_numpy(logits), np.ones(6, dtype=bool), np.asarray([5, 1]))
    spans = decode(output, tags, strict=strict)
    found = zip(spans.start, spans.end, spans.label, strict=True)
    assert " ".join(f"{a}-{b}{'XY'[label]}" for a, b, label in found) == expected
    assert spans.score == pytest.approx(1.0)


def test_a_tag_that_the_checkpoint_lacks_never_wins(tmp_path):
    folder = save(tmp_path / "hf", TOKENS, ["O", "B-X", "I-X", "B-Y"])
    nlp = from_hf(folder)
    head = nlp.get_pipe("bert_ner")
    scores = head.predict([nlp.make_doc(TEXTS[0])])
    assert (scores.logits[:, head.tags.index("I-Y")] == -1e4).all()


def test_verdicts_go_by_name(tmp_path):
    """Checkpoints disagree about the order of the classes."""
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        folder = tmp_path / "".join(map(str, order))
        save(folder, SEQUENCES, [VERDICTS[i] for i in order])
        weights = load_file(folder / "model.safetensors")
        for name in ("classifier.weight", "classifier.bias"):
            weights[name] = weights[name][order].contiguous()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        nlp = from_hf(str(folder))
        doc = nlp.make_doc(TEXTS[0])
        doc._.hypotheses = ["The boat sank."]
        found.append(nlp(doc)._.nli[0])
    assert list(found[1]["scores"]) == ["CONTRADICTION", "Neutral", "entailment"]
    assert found[0]["scores"] == pytest.approx(found[1]["scores"], abs=1e-6)


def test_labels_and_tasks_can_be_given(tmp_path):
    folder = save(tmp_path / "hf", SEQUENCES, ["LABEL_0", "LABEL_1", "LABEL_2"])
    assert from_hf(folder).pipe_names == ["bert_encoder", "bert_textcat"]
    nlp = from_hf(folder, labels=["contradiction", "neutral", "entailment"])
    assert nlp.get_pipe("bert_nli").labels == ("contradiction", "neutral", "entailment")
    nlp = from_hf(folder, task="textcat_multilabel")
    assert nlp.pipe_names == ["bert_encoder", "bert_textcat_multilabel"]
    with pytest.raises(ValueError, match="has 3 classes, but 2 labels"):
        from_hf(folder, labels=["yes", "no"])
    with pytest.raises(ValueError, match="belong to one checkpoint"):
        from_hf(folder, folder, task="nli")
    with pytest.raises(ValueError, match="Unknown task 'ner_'"):
        from_hf(folder, task="ner_")
    with pytest.raises(ValueError, match="for text-classification: it can't become a bert_ner"):
        from_hf(folder, task="ner")
    with pytest.raises(ValueError, match='No class is "O"'):
        from_hf(save(tmp_path / "tags", TOKENS, ["NN", "VB"]), task="ner")


# --- several heads


def test_pipelines_are_joined_by_sourcing(tmp_path):
    """A head reads the encoder that it comes with, under whatever name."""
    pipelines = [
        from_hf(save(tmp_path / "ner", TOKENS, PLACES, seed=1)),
        from_hf(save(tmp_path / "moods", SEQUENCES, MOODS, seed=2)),
    ]
    expected = pipelines[1](TEXTS[0]).cats
    for i, nlp in enumerate(pipelines):
        nlp.to_disk(tmp_path / str(i))
    one, other = (spacy.load(tmp_path / str(i)) for i in range(2))
    one.add_pipe("bert_encoder", source=other, name="second")
    one.add_pipe("bert_textcat", source=other)
    assert one(TEXTS[0]).cats == pytest.approx(expected)


def test_several_checkpoints_have_an_encoder_each_or_share_one(tmp_path):
    ner = save(tmp_path / "ner", TOKENS, PLACES)
    moods = save(tmp_path / "moods", SEQUENCES, MOODS, seed=1)
    nlp = from_hf(ner, moods)
    assert nlp.pipe_names == ["bert_encoder", "bert_ner", "bert_encoder_2", "bert_textcat"]
    single = from_hf(moods)(TEXTS[1])
    assert nlp(TEXTS[1]).cats == pytest.approx(single.cats, abs=1e-6)

    # The encoder of one with the head of another.
    shared = tmp_path / "shared"
    shutil.copytree(moods, shared)
    model, other = SEQUENCES.from_pretrained(moods), TOKENS.from_pretrained(ner)
    model.base_model.load_state_dict(other.base_model.state_dict(), strict=False)
    model.save_pretrained(shared)
    nlp = from_hf(ner, str(shared))
    assert nlp.pipe_names == ["bert_encoder", "bert_ner", "bert_textcat"]
    assert nlp(TEXTS[1]).cats == pytest.approx(from_hf(str(shared))(TEXTS[1]).cats, abs=1e-6)


@pytest.mark.parametrize(
    "auto_class, labels, other, works",
    [
        (SEQUENCES, MOODS, MOODS, False),
        (SEQUENCES, MOODS, ["fire", "storm"], True),
        (SEQUENCES, VERDICTS, VERDICTS, False),
        (ANSWERS, ENDS, ENDS, False),
        (TOKENS, ["NN", "VB"], ["NN", "VB"], False),
        (TOKENS, PLACES, ["O", "B-VESSEL", "I-VESSEL"], True),
    ],
)
def test_no_head_overwrites_another(auto_class, labels, other, works, tmp_path):
    folders = [
        save(tmp_path / str(i), auto_class, names, seed=i)
        for i, names in enumerate((labels, other))
    ]
    if works:
        nlp = from_hf(*folders)
        assert len(nlp.pipe_names) == 4
        nlp(TEXTS[0])
    else:
        with pytest.raises(ValueError, match="would overwrite what bert_"):
            from_hf(*folders)


@pytest.mark.parametrize(
    "names, message",
    [({"0": 0, "1": 1}, None), ({1: "a", 2: "b"}, "numbers its classes 1, 2, not from 0")],
)
def test_odd_names_of_classes(names, message, tmp_path):
    folder = Path(save(tmp_path / "hf", SEQUENCES, ["a", "b"]))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": names}))
    if message is None:
        assert from_hf(str(folder)).get_pipe("bert_textcat").labels == ("0", "1")
    else:
        with pytest.raises(ValueError, match=message):
            from_hf(str(folder))


def test_types_are_given_where_the_tokenizer_gives_them(tmp_path):
    folder = Path(save(tmp_path / "hf", SEQUENCES, VERDICTS))
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "model_input_names": ["input_ids", "attention_mask"]}))
    nlp = from_hf(str(folder))
    model, tokenizer = load(str(folder), SEQUENCES)
    expected = run(model, tokenizer, TEXTS[0], "The boat sank.").logits
    pairs = Pairs([nlp.make_doc(TEXTS[0])], [["The boat sank."]], doc_first=True)
    np.testing.assert_allclose(nlp.get_pipe("bert_nli").model.predict(pairs), expected, atol=1e-5)


def test_a_single_type_is_never_exceeded(tmp_path):
    folder = save(tmp_path / "hf", SEQUENCES, VERDICTS, family="xlm-roberta", type_vocab_size=1)
    nlp = from_hf(folder)
    doc = nlp.make_doc(TEXTS[0])
    doc._.hypotheses = ["The boat sank."]
    assert sum(nlp(doc)._.nli[0]["scores"].values()) == pytest.approx(1.0)


# --- files, and further training


def test_a_pipeline_is_whole_without_the_checkpoint(tmp_path):
    folder = save(tmp_path / "hf", TOKENS, PLACES, family="electra")
    nlp = from_hf(folder)
    expected = [(e.text, e.label_) for e in nlp(TEXTS[2]).ents]
    nlp.to_disk(tmp_path / "pipeline")
    shutil.rmtree(folder)
    again = spacy.load(tmp_path / "pipeline")
    assert [(e.text, e.label_) for e in again(TEXTS[2]).ents] == expected
    window = again.get_pipe("bert_encoder").model.attrs["window"]
    assert window == 128  # the checkpoint's positions


def test_the_tokenizers_longest_sequence_is_kept(tmp_path):
    folder = Path(save(tmp_path / "hf", TOKENS, PLACES))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["model_max_length"] = 40
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    attrs = from_hf(str(folder)).get_pipe("bert_encoder").model.attrs
    assert (attrs["window"], attrs["stride"]) == (40, 30)


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
@pytest.mark.parametrize(
    "auto_class, labels", [(TOKENS, PLACES), (SEQUENCES, VERDICTS), (ANSWERS, ENDS)]
)
def test_in_and_out_and_in_is_lossless(family, auto_class, labels, tmp_path):
    folder = save(tmp_path / "hf", auto_class, labels, family=family)
    nlp = from_hf(folder)
    head = nlp.pipe_names[1]
    to_hf(nlp, head, tmp_path / "out")
    again = from_hf(str(tmp_path / "out"))
    assert again.pipe_names == nlp.pipe_names
    its_own = {"encoder": again.get_pipe("bert_encoder").id}
    assert again.get_pipe(head).cfg == nlp.get_pipe(head).cfg | its_own
    for name in again.pipe_names:
        ours, theirs = (shim_of(p.get_pipe(name).model).module for p in (nlp, again))
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for key, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[key]), key
    _, tokenizer = load(folder, auto_class)
    _, back = load(str(tmp_path / "out"), auto_class)
    assert tokenizer(TEXTS).input_ids == back(TEXTS).input_ids
    info = auto_class.from_pretrained(tmp_path / "out", output_loading_info=True)[1]
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_half_precision_on_request(tmp_path):
    nlp = from_hf(save(tmp_path / "hf", SEQUENCES, MOODS))
    to_hf(nlp, "bert_textcat", tmp_path / "half", precision="fp16")
    dtypes = {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()}
    assert dtypes == {torch.float16}
    assert nlp.get_pipe("bert_encoder").model.shims[0].module.encoder.dtype == torch.float32
    again = from_hf(str(tmp_path / "half"))
    to_hf(again, "bert_textcat", tmp_path / "whole")  # is not rounded, whatever it came from
    dtypes = {t.dtype for t in load_file(tmp_path / "whole" / "model.safetensors").values()}
    assert dtypes == {torch.float32}
    found = from_hf(str(tmp_path / "half"))(TEXTS[0]).cats
    assert found == pytest.approx(nlp(TEXTS[0]).cats, abs=1e-2)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_heads_trained_here_are_hugging_faces(family, tmp_path, make_nlp):
    """Not only what came from there goes back."""
    name = make_checkpoint(tmp_path / "encoder", family=family)
    nlp = make_nlp("ner", "textcat", "tagger", name=name)
    for head, auto_class in (("bert_ner", TOKENS), ("bert_textcat", SEQUENCES)):
        to_hf(nlp, head, tmp_path / head)
        model, tokenizer = load(str(tmp_path / head), auto_class)
        doc = nlp.make_doc(TEXTS[2])
        found = nlp.get_pipe(head).predict([doc])
        if head == "bert_ner":
            found, expected = found.logits, token_logits(model, tokenizer, doc)
        else:
            expected = run(model, tokenizer, doc.text).logits
        np.testing.assert_allclose(found, expected, atol=1e-4)
    to_hf(nlp, "bert_encoder", tmp_path / "alone")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "alone").state_dict()
    ours = shim_of(nlp.get_pipe("bert_encoder").model).module.encoder.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_what_hugging_face_has_no_class_for(tmp_path, make_nlp):
    nlp = make_nlp()
    nlp.add_pipe("bert_textcat", config={"model": {"pooling": "mean"}})
    with pytest.raises(ValueError, match=r"pooling = 'mean'. Train it with pooling = \"pooler\""):
        nlp.get_pipe("bert_textcat").add_label("a")
        nlp.get_pipe("bert_textcat").add_label("b")
        nlp.initialize()
        to_hf(nlp, "bert_textcat", tmp_path)
    nlp.add_pipe("sentencizer")
    with pytest.raises(ValueError, match="no component of spacy_bert_heads"):
        to_hf(nlp, "sentencizer", tmp_path)
    with pytest.raises(ValueError, match="has no 'ner'. It has: bert_encoder"):
        to_hf(nlp, "ner", tmp_path)
    with pytest.raises(ValueError, match="Unknown precision 'int4'"):
        to_hf(nlp, "bert_textcat", tmp_path, precision="int4")


@pytest.mark.parametrize(
    "auto_class, labels, message",
    [
        (transformers.AutoModel, ENDS, "without a head for tokens"),
        (transformers.AutoModelForMaskedLM, ENDS, "without a head for tokens"),
        (SEQUENCES, ["LABEL_0"], "There is no head for numbers"),
        (TOKENS, ["O", "O", "B-X"], "Two classes of .* have one name"),
    ],
)
def test_what_can_not_be_taken(auto_class, labels, message, tmp_path):
    folder = save(tmp_path / "hf", auto_class, labels)
    with pytest.raises(ValueError, match=message):
        from_hf(folder)


def test_a_head_that_was_never_trained(tmp_path):
    folder = make_checkpoint(tmp_path / "hf")
    with pytest.raises(ValueError, match="no trained BertForSequenceClassification"):
        from_hf(folder, task="textcat")


def test_what_was_loaded_is_trained_further_and_handed_back(tmp_path):
    """The whole road, as the commands take it."""

    def bert(*words: str) -> str:
        result = CliRunner().invoke(bert_app, list(words))
        assert result.exit_code == 0, result.output
        return result.output

    folder = save(tmp_path / "hf", TOKENS, PLACES)
    pipeline, config = str(tmp_path / "pipeline"), str(tmp_path / "config.cfg")
    said = bert("from-hf", folder, pipeline)
    assert "bert_encoder, bert_ner" in said
    assert "PLACE, DATE" in said
    nlp = spacy.blank("en")
    doc = nlp("Anna met Barack in Berlin")
    doc.set_ents([doc.char_span(19, 25, label="PLACE")])
    data = tmp_path / "data.spacy"
    DocBin(docs=[doc] * 8).to_disk(data)
    bert("init-config", config, "--source", pipeline, "--train", str(data), "--dev", str(data))
    overrides = {
        "training.max_steps": 60,
        "training.optimizer.learn_rate.initial_rate": 0.003,
        "training.eval_frequency": 20,
    }
    train(Path(config), tmp_path / "out", overrides=overrides)
    found = spacy.load(tmp_path / "out" / "model-best")("Anna met Barack in Berlin").ents
    assert [(ent.text, ent.label_) for ent in found] == [("Berlin", "PLACE")]

    bert("to-hf", str(tmp_path / "out" / "model-best"), "bert_ner", str(tmp_path / "back"))
    pipe = transformers.pipeline(
        "token-classification", str(tmp_path / "back"), aggregation_strategy="first"
    )
    (entity,) = pipe("Anna met Barack in Berlin")
    assert (entity["word"], entity["entity_group"]) == ("berlin", "PLACE")
    card = (tmp_path / "back" / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "`PLACE`, `DATE`" in card
    assert "| `ents_f` | 1.0000 |" in card
    assert "learning rate: 0.003" in card


def test_the_lines_of_the_readme(tmp_path, monkeypatch):
    """Each road between the worlds, as it is written there."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf8")
    table = readme.split("| you have … | type … |")[1].split("\n\n")[0]
    lines = [line.split("| `")[1].removesuffix("` |") for line in table.splitlines()[2:]]
    assert len(lines) == 9
    monkeypatch.chdir(tmp_path)
    save(Path("my-ner"), TOKENS, PLACES)
    save(Path("my-sentiment"), SEQUENCES, MOODS)
    save(Path("my-nli"), SEQUENCES, ["LABEL_0", "LABEL_1", "LABEL_2"])
    for name in ("train", "dev"):
        DocBin(docs=[spacy.blank("en")("A text")]).to_disk(f"{name}.spacy")
    variables = {"spacy_bert_heads": spacy_bert_heads}
    for line in lines:
        if line.startswith("python -m spacy bert "):
            words = shlex.split(line.removeprefix("python -m spacy bert "))
            result = CliRunner().invoke(bert_app, words)
            assert result.exit_code == 0, f"{line}\n{result.output}"
        else:
            exec(line, variables)
    assert spacy.load("my-pipeline").get_pipe("bert_nli").labels[0] == "entailment"
    assert load_file("my-checkpoint/model.safetensors")["classifier.bias"].dtype == torch.float16
