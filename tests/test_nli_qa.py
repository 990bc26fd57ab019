"""Heads that read pairs: what they compute beside Hugging Face, what they learn, the threshold."""

import warnings
from functools import cache

import numpy as np
import pytest
import spacy
import torch
import transformers
from checkpoints import FAMILIES, TEXTS, make_checkpoint, note_sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from losses import assert_same_loss, get_loss, in_torch
from spacy.training import Example
from spacy.util import load_model_from_config
from test_pairs import TEN, greedy, official, pairs_of
from test_sequences import letters
from test_training import DATA as JOINT_DATA
from test_training import STEPS, TorchLoop, make_optimizer
from thinc.api import Adam
from torch.nn import functional as F

from spacy_bert_heads.encoder.model import bert_of, shim_of
from spacy_bert_heads.heads.outputs import SpanLogits
from spacy_bert_heads.pairs import INPUTS, make_answer, make_verdict
from spacy_bert_heads.sequences import make_pair_sequences, set_targets
from spacy_bert_heads.types import Pairs

LANG = "xx"  # English has 1,500 exceptions for its tokenizer to learn, each time
NLP = spacy.blank(LANG)
# Of each text the questions with their answers ("" for none) and the hypotheses with their labels;
# None is not annotated.
DATA = [
    (
        "Anna left Skagen on Tuesday",
        {
            "questions": {"Who left?": "Anna", "Where from?": "Skagen", "Why?": ""},
            "hypotheses": {"She left": "entailment", "It burned": "neutral"},
            "entities": [(0, 4, "VESSEL"), (10, 16, "PLACE")],
            "cats": {"voyage": 1.0, "fire": 0.0},
        },
    ),
    (
        "The boat burned in Hull",
        {
            "questions": {"Where from?": "", "What burned?": "The boat", "Why?": ""},
            "hypotheses": {"It burned": "entailment", "Nothing burned": "contradiction"},
            "entities": [(19, 23, "PLACE")],
            "cats": {"voyage": 0.0, "fire": 1.0},
        },
    ),
    ("Hull", {"questions": {"Why?": ""}, "hypotheses": {"It burned": "neutral"}}),
]


def make_example(nlp, text: str, gold: dict) -> Example:
    usual = {key: gold[key] for key in ("entities", "cats") if key in gold}
    example = Example.from_dict(nlp.make_doc(text), usual)
    doc = example.reference
    for name, output in (("questions", "answers"), ("hypotheses", "nli")):
        asked = gold.get(name, {})
        for one in (doc, example.predicted):
            one._.set(name, list(asked))
        entries = [entry_of(doc, name, entry) for entry in asked.values()]
        doc._.set(output, entries)
    return example


def entry_of(doc, name: str, entry) -> dict | None:
    """A gold entry; of an answer its text (the first in the Doc) or its characters."""
    if entry is None:
        return None
    if name == "hypotheses":
        return make_verdict(entry)
    if isinstance(entry, tuple):
        return make_answer(doc, *entry)
    start = doc.text.index(entry)
    return make_answer(doc, start, start + len(entry)) if entry else make_answer(doc)


def make_examples(nlp, data=DATA) -> list[Example]:
    return [make_example(nlp, text, gold) for text, gold in data]


def build(name: str, *heads: str, data=DATA, window: int = 64, stride: int = 48, **config):
    nlp = spacy.blank(LANG)
    encoder = {"name": name, "window": window, "stride": stride}
    nlp.add_pipe("bert_encoder", config={"model": encoder})
    for head in heads:
        nlp.add_pipe(f"bert_{head}", config=config)
    torch.manual_seed(0)
    nlp.initialize(lambda: make_examples(nlp, data))
    return nlp


def train(nlp, data=DATA, *, steps: int, rate: float = 3e-3):
    optimizer = Adam(rate, use_averages=False)
    examples = make_examples(nlp, data)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")  # a random BERT needs it
        for _ in range(steps):
            nlp.update(examples, sgd=optimizer)
        nlp.get_pipe("bert_encoder").predict([])  # takes the last step
    return nlp


def module_of(nlp, head: str) -> torch.nn.Module:
    return shim_of(nlp.get_pipe(f"bert_{head}").model).module


def weights_of(nlp) -> torch.Tensor:
    modules = [shim_of(pipe.model).module for _, pipe in nlp.pipeline]
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


def ask(nlp, text: str, **inputs: list[str]):
    doc = nlp.make_doc(text)
    for name, texts in inputs.items():
        doc._.set(name, texts)
    return nlp(doc)


# --- beside Hugging Face


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("pairs")
    return cache(lambda family: make_checkpoint(base / family, family=family))


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
    found = nlp.get_pipe("bert_nli").model.predict(pairs)
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
    found = nlp.get_pipe("bert_nli").model.predict(pairs)
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
    found = nlp.get_pipe("bert_qa").model.predict(pairs)
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
    best: dict[int, tuple[int, int]] = {}  # by the piece: its context, its window
    for n, part in enumerate(parts):
        for j, (begin, *_) in enumerate(part):
            context_here = min(j, len(part) - 1 - j)
            if begin not in best or context_here > best[begin][0]:
                best[begin] = context_here, n
    spans = [
        (first[2] + last[3], first[0], last[1])
        for n, part in enumerate(parts)
        for j, first in enumerate(part)
        if best[first[0]][1] == n
        for last in part[j : j + max_length]
    ]
    return len(parts), min(nulls), spans


@pytest.mark.parametrize("window, stride, at_least", [(120, 100, 1), (48, 36, 3), (30, 28, 5)])
def test_answers_over_all_windows_by_hand(folders, window, stride, at_least):
    settings = {"max_answer_length": 7, "alternatives": 3, "no_answer_threshold": 1.0}
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
            overlap=min(window - 2 - stride, room // 2),
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


# --- losses


def make_head(kind: str, **config):
    return NLP.create_pipe(f"bert_{kind}", config=config)


def qa_loss(x, rows, window: int, stride: int):
    """Cross-entropy over context and [CLS] of every window, by the text alone."""
    losses, slot = [], 0
    asked = [(text, *item) for text, questions in rows for item in questions.items()]
    for text, question, answer in asked:
        offsets = letters().tokenizer.encode(text, add_special_tokens=False).offsets
        n, room = len(question), window - 3 - len(question)
        step = room - min(window - 2 - stride, room // 2)
        starts = range(0, max(len(offsets) - room, 0) + step, step)
        begin, end = answer or (0, 0)
        wanted = [i for i, (a, b) in enumerate(offsets) if a < end and b > begin]
        parts = [range(start, min(start + room, len(offsets))) for start in starts]
        holds = [bool(wanted) and {*wanted} <= {*part} for part in parts]
        for part, here in zip(parts, holds, strict=True):
            candidates = [slot, *range(slot + n + 2, slot + n + 2 + len(part))]
            slot += n + 3 + len(part)
            if answer is None or (begin < end and not any(holds)):
                continue
            targets = [1 + i - part[0] for i in (wanted[0], wanted[-1])] if here else [0, 0]
            for column, target in enumerate(targets):
                loss = F.cross_entropy(x[candidates, column][None], torch.tensor([target]))
                losses.append(loss)
    assert slot == len(x)
    return sum(losses) / len(losses) if losses else None


QA_ROWS = [
    (TEN, {"yz": (4, 9), "z": (0, 0), "x": (18, 19), "xyz": (0, 19)}),  # the last is too long
    ("k lm", {"a": (2, 4), "b": (3, 4), "c": (0, 4)}),
    ("", {"a": (0, 0)}),
    ("abcd ef", {"x": (1, 3), "y": (3, 6), "z": (4, 5)}),  # the last is but a space
]


def scores_of(rows, *, window: int, stride: int, seed: int = 0) -> tuple[list[Example], SpanLogits]:
    pairs = pairs_of(*((text, list(questions)) for text, questions in rows))
    sequences = make_pair_sequences(pairs, letters(), window=window, stride=stride)
    logits = np.random.default_rng(seed).normal(size=(len(sequences.ids), 2)) * 3
    examples = [make_example(NLP, text, {"questions": qs}) for text, qs in rows]
    sequences = set_targets(sequences, make_head("qa").gold_answers(examples))
    return examples, SpanLogits(torch.from_numpy(logits.astype(np.float32)), sequences)


@pytest.mark.parametrize("window, stride", [(40, 30), (10, 6), (10, 8), (14, 4)])
def test_qa_loss_is_torchs(window, stride):
    examples, scores = scores_of(QA_ROWS, window=window, stride=stride)
    found = get_loss(make_head("qa"), examples, scores)
    expected = in_torch(lambda x: qa_loss(x, QA_ROWS, window, stride), scores.logits)
    assert_same_loss(found, expected)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text("abc ", max_size=24).map(lambda text: " ".join(text.split())),
            st.dictionaries(
                st.text("xyz", min_size=1, max_size=4),
                st.tuples(st.floats(0, 1), st.floats(0, 1)),
                max_size=3,
            ),
        ),
        max_size=3,
    ),
    window=st.integers(9, 16),
    stride=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_qa_loss_is_torchs_for_any_answers(rows, window, stride, seed):
    placed = []
    for text, questions in rows:
        size = len(text)
        spans = {q: sorted((round(a * size), round(b * size))) for q, (a, b) in questions.items()}
        placed.append((text, {q: (a, b) if a < b else (0, 0) for q, (a, b) in spans.items()}))
    examples, scores = scores_of(placed, window=window, stride=stride, seed=seed)
    loss, gradient = get_loss(make_head("qa"), examples, scores)
    if qa_loss(scores.logits, placed, window, stride) is None:
        assert loss == 0.0 and not gradient.any()
    else:
        expected = in_torch(lambda x: qa_loss(x, placed, window, stride), scores.logits)
        assert_same_loss((loss, gradient), expected)


def test_qa_loss_by_hand():
    # [CLS] x [SEP] a b [SEP]: three candidates
    examples, scores = scores_of([("a b", {"x": (2, 3)})], window=12, stride=6)
    logits = np.zeros((6, 2), dtype="f")
    loss, gradient = get_loss(
        make_head("qa"), examples, SpanLogits(torch.from_numpy(logits), scores.sequences)
    )
    assert loss == pytest.approx(np.log(3))
    sixth = 1 / 6
    expected = [[sixth] * 2, [0, 0], [0, 0], [sixth] * 2, [sixth - 0.5] * 2, [0, 0]]
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_qa_loss_survives_large_logits():
    examples, scores = scores_of([("a b", {"x": (2, 3)})], window=12, stride=6)
    logits = np.zeros((6, 2), dtype="f")
    logits[3] = 10_000
    logits[1] = 90_000  # of the question: no candidate
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, gradient = get_loss(
            make_head("qa"), examples, SpanLogits(torch.from_numpy(logits), scores.sequences)
        )
    assert loss == 10_000
    assert gradient.tolist() == [[0, 0]] * 3 + [[0.5, 0.5], [-0.5, -0.5], [0, 0]]


@pytest.mark.parametrize("weights", [None, {"B": 2.5}, {"A": 0.5, "B": 0.0, "C": 3.0}])
def test_nli_loss_is_torchs(weights):
    nli = make_head("nli", class_weights=weights)
    for label in "ABC":
        nli.add_label(label)
    hypotheses = [{"a": "A", "b": None, "c": "C"}, {}, {"a": "B"}, {"a": "X", "b": "B", "c": "A"}]
    examples = [make_example(NLP, "a", {"hypotheses": one}) for one in hypotheses]
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) * 3
    gold = torch.tensor([0, 2, 1, -1, 1, 0])  # without the None, which is not read at all
    by_class = torch.tensor([(weights or {}).get(label, 1.0) for label in "ABC"]).double()
    with pytest.warns(UserWarning, match="bert_nli has no label 'X'") as caught:
        found = get_loss(nli, examples, logits)
    assert len(caught) == 1
    expected = in_torch(lambda x: F.cross_entropy(x, gold, by_class, ignore_index=-1), logits)
    assert_same_loss(found, expected)


# --- training beside torch


class PairLoop(TorchLoop):
    """Entities and categories, and the same model's pairs, in torch alone."""

    def __init__(self, nlp, checkpoint: str) -> None:
        super().__init__(nlp, checkpoint)
        self.labels = nlp.get_pipe("bert_nli").labels
        nli, qa = (
            transformers.BertForSequenceClassification.from_pretrained(checkpoint, num_labels=3),
            transformers.BertForQuestionAnswering.from_pretrained(checkpoint),
        )
        for name, theirs in (("nli", nli), ("qa", qa)):
            theirs.bert = self.encoder  # one encoder for all
            ours = module_of(nlp, name)
            if name == "qa":
                theirs.qa_outputs.load_state_dict(ours.classifier.state_dict())
                head = torch.nn.ModuleDict({"classifier": theirs.qa_outputs})
            else:
                # A pooler of its own: Hugging Face's model would share it with the encoder.
                dense = torch.nn.ModuleDict({"linear": torch.nn.Linear(32, 32)})
                dense.load_state_dict(ours.dense.state_dict())
                theirs.classifier.load_state_dict(ours.classifier.state_dict())
                head = torch.nn.ModuleDict({"dense": dense, "classifier": theirs.classifier})
            self.heads[f"bert_{name}"] = head
            groups = [
                {"params": [p for p in head.parameters() if p.ndim > 1], "weight_decay": 0.01},
                {"params": [p for p in head.parameters() if p.ndim < 2], "weight_decay": 0.0},
            ]
            self.optimizers[f"bert_{name}"] = torch.optim.AdamW(groups, eps=1e-4)
        self.qa = qa

    def backward(self, examples) -> None:
        super().backward(examples)
        hypotheses, labels, questions, places = [], [], [], []
        for eg in examples:
            doc = eg.reference
            for text, entry in zip(doc._.hypotheses, doc._.nli, strict=True):
                if entry is not None:
                    hypotheses.append((doc.text, text))
                    labels.append(self.labels.index(entry["label"]))
            for text, entry in zip(doc._.questions, doc._.answers, strict=True):
                if entry is not None:
                    questions.append((text, doc.text))
                    places.append((entry["start_char"], entry["end_char"]))
        if hypotheses:
            self.nli_loss(hypotheses, labels).backward()
        if questions:
            self.qa_loss(questions, places).backward()

    def nli_loss(self, pairs, labels):
        batch = self.tokenizer(*zip(*pairs, strict=True), return_tensors="pt", padding=True)
        head = self.heads["bert_nli"]
        states = self.encoder(**batch).last_hidden_state[:, 0]
        logits = head["classifier"](torch.tanh(head["dense"]["linear"](states)))
        return F.cross_entropy(logits, torch.tensor(labels))

    def qa_loss(self, pairs, places):
        batch = self.tokenizer(*zip(*pairs, strict=True), return_tensors="pt", padding=True)
        output = self.qa(**batch)
        # Neither the question nor special tokens but [CLS] can be the answer.
        out = [[of != 1 for of in batch.sequence_ids(i)] for i in range(len(pairs))]
        out = torch.tensor(out)
        out[:, 0] = False
        firsts = [batch.char_to_token(i, a, 1) if b else 0 for i, (a, b) in enumerate(places)]
        lasts = [batch.char_to_token(i, b - 1, 1) if b else 0 for i, (_, b) in enumerate(places)]
        start = output.start_logits.masked_fill(out, -torch.inf)
        end = output.end_logits.masked_fill(out, -torch.inf)
        losses = F.cross_entropy(start, torch.tensor(firsts))
        return (losses + F.cross_entropy(end, torch.tensor(lasts))) / 2


ASKED = [
    {"questions": {"Who left?": "Anna", "Where from?": "Skagen", "Why?": None}},
    {"questions": {"Why?": ""}, "hypotheses": {"It burned": "entailment", "Anna": None}},
    {"hypotheses": {"It broke": "entailment", "Nothing broke": "contradiction"}},
    {},
    {"questions": {"Who left?": "The crew"}, "hypotheses": {"A fire": "neutral"}},
    {"questions": {"What?": "timber", "Who?": "She"}},
    {"hypotheses": {"Hull": None}},
    {"questions": {"Who?": "she", "Why?": ""}, "hypotheses": {"She left": "neutral"}},
]
BATCHES = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 2, 5, 7], [3, 6]]  # the last one asks nothing


@pytest.mark.filterwarnings("ignore:A learning rate")
def test_update_of_a_joint_pipeline_equals_torch(folders):
    data = [
        (text, {**gold, **asked}) for (text, gold), asked in zip(JOINT_DATA, ASKED, strict=True)
    ]
    nlp = build(folders("bert"), "ner", "textcat", "nli", "qa", data=data)
    loop, start = PairLoop(nlp, folders("bert")), weights_of(nlp)
    optimizer, examples = make_optimizer(), make_examples(nlp, data)
    for step in range(STEPS):
        batch = [examples[i] for i in BATCHES[step % len(BATCHES)]]
        nlp.update(batch, sgd=optimizer)
        optimizer.step_schedules()
        loop.backward(batch)
        loop.step()
    nlp("The last step is taken before a prediction.")
    theirs = loop.parameters()
    compared = 0
    for name, pipe in nlp.pipeline:
        for key, value in shim_of(pipe.model).module.named_parameters():
            torch.testing.assert_close(
                value, theirs.pop(f"{name}.{key}"), atol=2e-5, rtol=1e-4, msg=f"{name}.{key}"
            )
            compared += value.numel()
    assert not theirs
    moved = (weights_of(nlp) != start).sum()
    assert compared == len(start)
    assert moved > compared / 2


# --- overfit, save, load


def by_heart(nlp, heads: tuple[str, ...]) -> None:
    """The pipeline knows DATA."""
    for text, gold in DATA:
        doc = ask(nlp, text, questions=list(gold["questions"]), hypotheses=list(gold["hypotheses"]))
        if "qa" in heads:
            answers = dict(zip(doc._.questions, doc._.answers, strict=True))
            assert {q: answer["text"] for q, answer in answers.items()} == gold["questions"]
        if "nli" in heads:
            verdicts = dict(zip(doc._.hypotheses, doc._.nli, strict=True))
            assert {h: verdict["label"] for h, verdict in verdicts.items()} == gold["hypotheses"]
        if "ner" in heads and "entities" in gold:
            ents = [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents]
            assert ents == gold["entities"]
        if "textcat" in heads and "cats" in gold:
            assert max(doc.cats, key=doc.cats.get) == max(gold["cats"], key=gold["cats"].get)


def results(nlp) -> list:
    found = []
    for text, gold in [*DATA, (" ".join(TEXTS), DATA[0][1]), ("", DATA[0][1])]:
        doc = ask(nlp, text, questions=list(gold["questions"]), hypotheses=list(gold["hypotheses"]))
        spans = {
            key: ([(s.start, s.end, s.label_) for s in group], list(group.attrs["scores"]))
            for key, group in doc.spans.items()
        }
        found.append((doc._.answers, doc._.nli, spans, dict(doc.cats)))
    return found


@pytest.mark.parametrize("heads", [("qa",), ("nli",), ("ner", "textcat", "nli", "qa")])
def test_overfit_and_reload(folders, tmp_path, heads):
    nlp = train(build(folders("bert"), *heads), steps=40)
    by_heart(nlp, heads)
    scores = nlp.evaluate(make_examples(nlp))
    if "qa" in heads:
        assert scores["qa_exact"] == scores["qa_f1"] == 1.0
    if "nli" in heads:
        assert scores["nli_acc"] == scores["nli_macro_f"] == 1.0
    expected = results(nlp)
    assert any(answer for answer, *_ in expected) == ("qa" in heads)
    nlp.to_disk(tmp_path)
    again = spacy.load(tmp_path)
    assert results(again) == expected
    by_heart(again, heads)
    from_bytes = load_model_from_config(nlp.config).from_bytes(nlp.to_bytes())
    assert results(from_bytes) == expected


# --- what costs nothing, what is left out


@pytest.fixture
def count(folders):
    """A pipeline, and the sequences of each forward pass of its encoder."""

    def make(*heads: str, **settings):
        nlp = build(folders("bert"), *heads, **settings)
        calls = note_sequences(bert_of(nlp.get_pipe("bert_encoder").model))
        return nlp, calls

    return make


@pytest.mark.parametrize("head, name", [("qa", "questions"), ("nli", "hypotheses")])
def test_docs_without_second_texts_cost_nothing(count, head, name):
    nlp, calls = count(head)
    output = {"qa": "answers", "nli": "nli"}[head]
    docs = list(nlp.pipe(["Anna left", "", "Hull burned"]))
    assert calls == []
    assert [doc._.get(output) for doc in docs] == [[], [], []]
    docs = [nlp.make_doc(text) for text in ("Anna left", "Hull burned", "Skagen")]
    docs[1]._.set(name, ["Who?", "What?"])
    docs = list(nlp.pipe(docs))
    assert sum(calls) == 2
    assert [len(doc._.get(output)) for doc in docs] == [0, 2, 0]
    calls.clear()
    with_none = [("Anna left", {name: {"Who?": None}}), ("Hull burned", {})]
    start = weights_of(nlp)
    losses = nlp.update(make_examples(nlp, with_none), sgd=Adam(1e-4, use_averages=False))
    assert calls == []
    assert losses[f"bert_{head}"] == 0.0
    assert torch.equal(weights_of(nlp), start)


def test_a_joint_update_reads_each_kind_of_input_once(count):
    nlp, calls = count("ner", "textcat", "nli", "qa")
    nlp.update(make_examples(nlp), sgd=Adam(1e-4, use_averages=False))
    # Two Docs with labels of their own, five hypotheses, seven questions. Buckets don't matter.
    assert sum(calls) == 2 + 5 + 7
    calls.clear()
    nlp.update(
        make_examples(nlp, DATA[:1]), sgd=Adam(1e-4, use_averages=False), exclude=["bert_qa"]
    )
    assert sum(calls) == 1 + 2


LONG = "a b c d e f g h i"  # 9 pieces, in a window of 16


KINDS = pytest.mark.parametrize(
    "head, name, entry, other",
    [("qa", "questions", "Anna", "boat"), ("nli", "hypotheses", "neutral", "entailment")],
)


def plain(name: str, entry: str, other: str) -> list[tuple[str, dict]]:
    return [("Anna left", {name: {"Who?": entry}}), ("A boat", {name: {"It?": other}})]


@KINDS
def test_what_is_not_annotated_changes_nothing(folders, head, name, entry, other):
    data = plain(name, entry, other)
    more = [
        ("Anna left", {name: {"Why?": None, "Who?": entry}}),
        ("Hull", {name: {"Who?": None}}),
        ("A boat", {name: {"It?": other, "Where?": None}}),
    ]
    weights = [
        weights_of(train(build(folders("bert"), head, data=data), one, steps=3))
        for one in (data, more)
    ]
    torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-5)
    untrained = weights_of(build(folders("bert"), head, data=data))
    assert (weights[0] != untrained).sum() > len(untrained) / 2


@KINDS
def test_a_text_that_is_too_long_is_left_out_of_training(folders, head, name, entry, other):
    data = plain(name, entry, other)
    more = [
        ("Anna left", {name: {LONG: entry, "Who?": entry}}),
        ("A boat", {name: {"It?": other}}),
        ("boat", {name: {LONG: other}}),
    ]
    shape = {"window": 16, "stride": 12, "data": data}
    expected = weights_of(train(build(folders("bert"), head, **shape), data, steps=3))
    nlp = build(folders("bert"), head, **shape)
    with pytest.warns(UserWarning, match=f"bert_{head} does not learn.*'{LONG}'") as caught:
        train(nlp, more, steps=3)
    assert len([one for one in caught if "does not learn" in str(one.message)]) == 1
    torch.testing.assert_close(weights_of(nlp), expected, atol=1e-6, rtol=1e-5)


@KINDS
def test_a_batch_of_nothing_but_texts_that_are_too_long(folders, head, name, entry, other):
    data = plain(name, entry, other)
    nlp = build(folders("bert"), head, data=data, window=16, stride=12)
    start = weights_of(nlp)
    with pytest.warns(UserWarning, match="does not learn"):
        train(nlp, [("Anna left", {name: {LONG: entry}})], steps=1)
    assert torch.equal(weights_of(nlp), start)
    train(nlp, data, steps=1)
    assert not torch.equal(weights_of(nlp), start)


@KINDS
def test_a_text_that_is_too_long_is_left_out_of_prediction(folders, head, name, entry, other):
    output = INPUTS[name]
    nlp = build(folders("bert"), head, data=plain(name, entry, other), window=16, stride=12)
    texts = [["Who?", LONG, "It?"], [LONG], ["Why?"]]
    docs = [nlp.make_doc(text) for text in ("Anna left", "A boat", "Hull")]
    for doc, asked in zip(docs, texts, strict=True):
        doc._.set(name, asked)
    with pytest.warns(UserWarning, match=f"bert_{head} leaves a pair out.*'{LONG}'"):
        docs = list(nlp.pipe(docs))
    entries = [doc._.get(output) for doc in docs]
    unread = [[entry is None for entry in some] for some in entries]
    assert unread == [[False, True, False], [True], [False]]
    alone = [ask(nlp, "Anna left", **{name: [text]})._.get(output)[0] for text in ("Who?", "It?")]
    key = "score" if head == "qa" else "scores"
    assert [entries[0][i][key] for i in (0, 2)] == [pytest.approx(e[key], abs=1e-6) for e in alone]


@KINDS
def test_a_text_that_is_too_long_is_wrong_in_evaluation(folders, head, name, entry, other):
    data = plain(name, entry, other)
    nlp = build(folders("bert"), head, data=data, window=16, stride=12)
    train(nlp, data, steps=40, rate=1e-2)
    figure = {"qa": "qa_exact", "nli": "nli_acc"}[head]
    assert nlp.evaluate([make_example(nlp, *row) for row in data])[figure] == 1
    # Without an answer is no better: nothing was read.
    more = [*data, ("Hull", {name: {LONG: "" if head == "qa" else "neutral"}})]
    with pytest.warns(UserWarning, match="leaves a pair out"):
        scores = nlp.evaluate([make_example(nlp, *row) for row in more])
    assert scores[figure] == pytest.approx(2 / 3)


def test_categories_that_are_too_long_are_an_error(folders):
    data = plain("hypotheses", "neutral", "entailment")
    nlp = build(folders("bert"), "nli", data=data, window=16, stride=12, categories={"X": LONG})
    with pytest.raises(ValueError, match=LONG):
        nlp("Anna left")


@KINDS
def test_there_must_be_as_many_entries_as_texts(folders, head, name, entry, other):
    data = plain(name, entry, other)
    nlp = build(folders("bert"), head, data=data)
    example = make_example(nlp, *data[0])
    example.reference._.set(name, ["Who?", "Why?"])
    with pytest.raises(ValueError, match=f"has 1 entries for 2 {name}.*'Anna left"):
        nlp.update([example], sgd=Adam(1e-4, use_averages=False))


# --- the threshold

ANSWERED = [
    ("Anna left Skagen", {"questions": {"Who left?": "Anna", "Where from?": "Skagen"}}),
    ("The boat burned", {"questions": {"What burned?": "The boat"}}),
]


def best_by_hand(nlp, data=DATA) -> float:
    """The best F1 of all thresholds, answering every question to see."""
    rows = []
    for text, gold in data:
        doc = ask(nlp, text, questions=list(gold["questions"]))
        for right, found in zip(gold["questions"].values(), doc._.answers, strict=True):
            span = found if found["text"] else found["alternatives"][0]
            rows.append((found["no_answer_score"], span["text"], right))
    thresholds = sorted({0.0, 1.0, *(row[0] for row in rows)})
    f1 = [
        sum(official([right], text if none <= t else "")[1] for none, text, right in rows)
        for t in thresholds
    ]
    return max(f1) / len(rows)


def threshold_of(nlp) -> float:
    return nlp.get_pipe("bert_qa").no_answer_threshold


def test_where_the_threshold_starts(folders):
    assert threshold_of(build(folders("bert"), "qa")) == 0.5
    assert threshold_of(build(folders("bert"), "qa", data=ANSWERED)) == 1.0
    fixed = build(folders("bert"), "qa", data=ANSWERED, no_answer_threshold=0.25)
    assert threshold_of(fixed) == 0.25


def test_the_first_evaluation_after_an_update_sets_the_threshold(folders, tmp_path):
    nlp = build(folders("bert"), "qa")
    qa, examples = nlp.get_pipe("bert_qa"), make_examples(nlp)
    nlp.evaluate(examples)
    assert threshold_of(nlp) == 0.5  # nothing was learned yet
    train(nlp, steps=12)
    best = best_by_hand(nlp)
    before = nlp.evaluate(examples)["qa_f1"]  # with the threshold that was in force
    tuned = threshold_of(nlp)
    assert tuned != 0.5
    assert qa.cfg["no_answer_threshold"] == tuned
    after = nlp.evaluate(examples)["qa_f1"]
    assert after == pytest.approx(best)
    assert after >= before
    assert threshold_of(nlp) == tuned

    # It is kept with the pipeline, and no evaluation touches it before the next update.
    nlp.to_disk(tmp_path)
    from_bytes = load_model_from_config(nlp.config).from_bytes(nlp.to_bytes())
    for one in (spacy.load(tmp_path), from_bytes, nlp):
        assert threshold_of(one) == pytest.approx(tuned, abs=1e-9)
        assert one.evaluate(make_examples(one))["qa_f1"] == after
        one.evaluate(make_examples(one, ANSWERED))
        assert threshold_of(one) == pytest.approx(tuned, abs=1e-9)
        assert one.get_pipe("bert_qa").cfg["no_answer_threshold"] == threshold_of(one)
    train(nlp, ANSWERED, steps=20)
    nlp.evaluate(make_examples(nlp, ANSWERED))
    assert threshold_of(nlp) == 1.0  # every question has an answer


@pytest.mark.parametrize("threshold", [1 - 1e-9, 1e-9, 0.333333333])
def test_a_threshold_is_kept_to_the_last_digit(folders, tmp_path, threshold):
    nlp = build(folders("bert"), "qa")
    nlp.get_pipe("bert_qa").cfg["no_answer_threshold"] = threshold
    nlp.to_disk(tmp_path)
    assert threshold_of(spacy.load(tmp_path)) == threshold


def test_a_fixed_threshold_stays(folders, tmp_path):
    nlp = build(folders("bert"), "qa", no_answer_threshold=0.25)
    train(nlp, steps=2)
    nlp.evaluate(make_examples(nlp))
    assert threshold_of(nlp) == 0.25
    nlp.to_disk(tmp_path)
    assert threshold_of(spacy.load(tmp_path)) == 0.25


def test_an_evaluation_without_questions_leaves_the_threshold(folders):
    nlp = build(folders("bert"), "qa", data=ANSWERED)
    train(nlp, ANSWERED, steps=1)
    nlp.evaluate(make_examples(nlp, [("Anna left", {})]))
    assert threshold_of(nlp) == 1.0


@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match="must be a probability"):
        make_head("qa", no_answer_threshold=threshold)
