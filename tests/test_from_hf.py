"""What comes from Hugging Face has the same logits and the same predictions."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch
import transformers
from checkpoints import FAMILIES, TEXTS
from hf_models import (
    ANSWERS,
    ENDS,
    MOODS,
    PLACES,
    SEQUENCES,
    TOKENS,
    VERDICTS,
    load,
    run,
    save,
    token_logits,
)
from safetensors.torch import load_file
from spacy.tokens import Doc, DocBin

from spacy_bert_heads import from_hf, to_hf
from spacy_bert_heads.data.convert import convert
from spacy_bert_heads.text.pairs import Pairs


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


def best_answer(model, tokenizer, question: str, context: str, **windows) -> str:
    """The best answer over all windows, by hand, from Hugging Face's logits. It is read in the
    window where its shorter side has the most context."""
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        **windows,
    )
    step = encoded.sequence_ids(0).count(1) - windows["stride"]
    best: dict[tuple[int, int], tuple[int, float, str]] = {}  # by the span's pieces
    for i, ids in enumerate(encoded["input_ids"]):
        inputs = {"input_ids": torch.tensor([ids])}
        if "token_type_ids" in encoded and getattr(model.config, "type_vocab_size", 0):
            inputs["token_type_ids"] = torch.tensor([encoded["token_type_ids"][i]])
        with torch.no_grad():
            output = model(**inputs)
        places = [j for j, part in enumerate(encoded.sequence_ids(i)) if part == 1]
        offsets = encoded["offset_mapping"][i]
        # A piece of a byte or of white space may have no characters of its own: it is passed over.
        whole = [j for j in places if context[offsets[j][0] : offsets[j][1]].strip()]
        for first in whole:
            for last in (j for j in whole if first <= j < first + 30):
                text = context[offsets[first][0] : offsets[last][1]].strip()
                score = float(output.start_logits[0, first] + output.end_logits[0, last])
                size = min(first - places[0], places[-1] - last)
                span = i * step + first - places[0], i * step + last - places[0]
                # Of windows that are equally good the first one.
                if span not in best or size > best[span][0]:
                    best[span] = size, score, text
    return max(best.values(), key=lambda one: one[1])[2]


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
    found = head.model.predict(
        head.pack(Pairs(docs, [[text] for _, text in pairs], doc_first=True))
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("lang", ["en", "de", "zh"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "deberta-v2", "modernbert"])
def test_answers_over_all_windows(family, lang, tmp_path, real):
    folder = save(tmp_path / "hf", ANSWERS, ENDS, family=family)
    nlp = from_hf(folder, lang=lang)
    head, encoder = nlp.get_pipe("bert_qa"), nlp.get_pipe("bert_encoder")
    head.alignment = "char"
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
            n_windows.append(int(head.model.predict(head.pack(pairs)).batch.num_windows[0]))
    if lang != "zh" or FAMILIES[family] != "unigram":  # for which it is one unknown piece
        assert max(n_windows) > 1


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "electra", "mpnet"])
def test_answer_logits(family, tmp_path, real):
    folder = save(tmp_path / "hf", ANSWERS, ENDS, family=family)
    nlp = from_hf(folder)
    head = nlp.get_pipe("bert_qa")
    model, tokenizer = load(folder, ANSWERS)
    context, question = real("xquad")[0].text[:80], "Who gave up points?"
    found = head.model.predict(
        head.pack(Pairs([nlp.make_doc(context)], [[question]], doc_first=False))
    )
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
    nlp.get_pipe("bert_qa").alignment = "char"
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
