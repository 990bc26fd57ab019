"""Heads that read pairs compute what Hugging Face's do."""

import numpy as np
import pytest
import torch
import transformers
from checkpoints import FAMILIES, TEXTS
from letter_pairs import greedy
from pair_examples import ask, build, module_of, predict_pairs

from spacy_bert_heads.text.pairs import Pairs

QUESTIONS = ["Why did it burn?", "Who can't swim", "船"]
CONTEXTS = [TEXTS[0], TEXTS[1], "A fire", ""]


def encode(tokenizer, first: str, second: str) -> dict[str, torch.Tensor]:
    # In a list, for an empty text alone is no text at all to it.
    return tokenizer([first], [second], return_tensors="pt")


@pytest.mark.parametrize("family", ["bert", "albert", "roberta", "xlm-roberta"])
def test_nli_logits_are_hugging_faces(folders, family):
    nlp = build(folders(family), "nli", window=120, stride=60)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        folders(family), num_labels=3
    ).eval()
    ours = module_of(nlp, "nli")
    if "roberta" in family:  # a dense layer of the head's own in place of the pooler
        ours.dense.linear.load_state_dict(theirs.classifier.dense.state_dict())
        ours.classifier.load_state_dict(theirs.classifier.out_proj.state_dict())
    else:  # the pooler is the checkpoint's already
        ours.classifier.load_state_dict(theirs.classifier.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders(family))
    with torch.no_grad():
        expected = [
            theirs(**encode(tokenizer, context, text)).logits
            for context in CONTEXTS
            for text in QUESTIONS
        ]
    expected = torch.cat(expected)
    assert float(expected.std(dim=0).min()) > 0.01
    pairs = Pairs([nlp.make_doc(text) for text in CONTEXTS], [QUESTIONS] * 4, doc_first=True)
    found = predict_pairs(nlp.get_pipe("bert_nli"), pairs)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    docs = [ask(nlp, text, hypotheses=QUESTIONS) for text in CONTEXTS]
    labels = ["contradiction", "entailment", "neutral"]
    verdicts = [verdict for doc in docs for verdict in doc._.nli]
    for verdict, row in zip(verdicts, expected.softmax(1).tolist(), strict=True):
        assert verdict["scores"] == pytest.approx(dict(zip(labels, row, strict=True)), abs=1e-5)
        assert verdict["label"] == labels[int(np.argmax(row))]


def test_nli_averages_the_logits_of_windows(folders):
    nlp = build(folders("bert"), "nli", window=48, stride=30)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        folders("bert"), num_labels=3
    ).eval()
    module_of(nlp, "nli").classifier.load_state_dict(theirs.classifier.state_dict())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders("bert"))
    context, expected = " ".join(TEXTS), []
    for text in QUESTIONS:
        windows = tokenizer(
            context,
            text,
            truncation="only_first",
            max_length=48,
            stride=48 - 2 - 30,
            return_overflowing_tokens=True,
        )
        assert len(windows["input_ids"]) > 3
        logits = []
        for ids, types in zip(windows["input_ids"], windows["token_type_ids"], strict=True):
            with torch.no_grad():
                inputs = {"input_ids": ids, "token_type_ids": types}
                logits.append(theirs(**{k: torch.tensor([v]) for k, v in inputs.items()}).logits)
        expected.append(torch.cat(logits).mean(0))
    pairs = Pairs([nlp.make_doc(context)], [QUESTIONS], doc_first=True)
    found = predict_pairs(nlp.get_pipe("bert_nli"), pairs)
    np.testing.assert_allclose(found, torch.stack(expected), atol=1e-5)


def qa_beside(folder: str, **settings):
    """A pipeline, Hugging Face's model with the same weights, and its tokenizer."""
    nlp = build(folder, "qa", **settings)
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    module_of(nlp, "qa").classifier.load_state_dict(theirs.qa_outputs.state_dict())
    return nlp, theirs, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", [one for one in FAMILIES if one != "modernbert"])
def test_qa_logits_are_hugging_faces(folders, family):
    nlp, theirs, tokenizer = qa_beside(folders(family), window=120, stride=60)
    expected = []
    for context in CONTEXTS:
        for text in QUESTIONS:
            inputs = encode(tokenizer, text, context)
            if not getattr(theirs.config, "type_vocab_size", 0):
                inputs.pop("token_type_ids", None)
            with torch.no_grad():
                output = theirs(**inputs)
            expected.append(torch.stack([output.start_logits[0], output.end_logits[0]], dim=1))
    expected = torch.cat(expected)
    assert float(expected.std(dim=0).min()) > 0.01
    pairs = Pairs([nlp.make_doc(text) for text in CONTEXTS], [QUESTIONS] * 4, doc_first=False)
    found = predict_pairs(nlp.get_pipe("bert_qa"), pairs)
    np.testing.assert_allclose(found.logits, expected, atol=1e-5)


def spans_by_hand(theirs, tokenizer, question, context, *, window, overlap, max_length):
    """The logit of no answer, and that of every span, over all windows of Hugging Face's."""
    windows = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=window,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    nulls, parts = [], []
    for i in range(len(windows["input_ids"])):
        inputs = {key: torch.tensor([windows[key][i]]) for key in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            output = theirs(**inputs)
        start, end = output.start_logits[0].tolist(), output.end_logits[0].tolist()
        nulls.append(start[0] + end[0])
        inside = [j for j, of in enumerate(windows.sequence_ids(i)) if of == 1]
        parts.append([(*windows["offset_mapping"][i][j], start[j], end[j]) for j in inside])
    best: dict[tuple[int, int], tuple[int, float]] = {}  # by the span: its context, its logit
    for part in parts:
        for j, first in enumerate(part):
            for k, last in enumerate(part[j : j + max_length], j):
                span, context_here = (first[0], last[1]), min(j, len(part) - 1 - k)
                if span not in best or context_here > best[span][0]:
                    best[span] = context_here, first[2] + last[3]
    return len(parts), min(nulls), [(logit, *span) for span, (_, logit) in best.items()]


@pytest.mark.parametrize("window, stride, at_least", [(120, 100, 1), (48, 36, 3), (30, 28, 5)])
def test_answers_over_all_windows_by_hand(folders, window, stride, at_least):
    settings = {"max_answer_length": 7, "alternatives": 3, "no_answer_threshold": 1.0}
    settings["alignment"] = "char"
    nlp, theirs, tokenizer = qa_beside(folders("bert"), window=window, stride=stride, **settings)
    context = " ".join(TEXTS)
    doc = ask(nlp, context, questions=QUESTIONS)
    assert doc._.questions == QUESTIONS
    group = doc.spans["answers"]
    for i, (question, answer) in enumerate(zip(QUESTIONS, doc._.answers, strict=True)):
        room = window - 3 - len(tokenizer(question, add_special_tokens=False)["input_ids"])
        count, null, spans = spans_by_hand(
            theirs,
            tokenizer,
            question,
            context,
            window=window,
            overlap=max(min(window - 2 - stride, room // 2), 7 - 1),
            max_length=7,
        )
        assert count >= at_least
        chosen = greedy(spans, 4)
        total = np.logaddexp.reduce([null, *(logit for logit, *_ in spans)])
        found = [answer, *answer["alternatives"]]
        assert [(one["start_char"], one["end_char"]) for one in found] == [s[1:] for s in chosen]
        scores = [np.exp(logit - total) for logit, *_ in chosen]
        assert [one["score"] for one in found] == pytest.approx(scores, rel=1e-3)
        none = np.exp(null - np.logaddexp(null, chosen[0][0]))
        assert answer["no_answer_score"] == pytest.approx(none, rel=1e-3)
        for one in found:
            assert one["text"] == context[one["start_char"] : one["end_char"]] != ""
            tokens = doc[one["start"] : one["end"]]
            assert tokens.start_char <= one["start_char"] < one["end_char"] <= tokens.end_char
        assert (group[i].start, group[i].end) == (answer["start"], answer["end"])
        assert group[i].label_ == f"Q{i + 1}"
        assert group.attrs["scores"][i] == answer["score"]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
def test_an_answer_is_given_up_to_the_threshold(folders, threshold):
    nlp = build(folders("bert"), "qa", no_answer_threshold=threshold, alternatives=1)
    module_of(nlp, "qa").classifier.weight.data.mul_(4)  # probabilities of all sizes
    given_one = set()
    for text in (*CONTEXTS[:3], "Anna left", "Hull burned"):
        doc = ask(nlp, text, questions=QUESTIONS)
        for answer in doc._.answers:
            has_one = answer["no_answer_score"] <= threshold
            given_one.add(has_one)
            assert bool(answer["text"]) == has_one
            if not has_one:
                assert (answer["start_char"], answer["end_char"]) == (0, 0)
                assert (answer["start"], answer["end"]) == (0, 0)
                assert answer["score"] == answer["no_answer_score"]
                assert answer["alternatives"][0]["text"]
        assert len(doc.spans["answers"]) == sum(bool(one["text"]) for one in doc._.answers)
    assert given_one == {0.0: {False}, 1.0: {True}}.get(threshold, {True, False})
