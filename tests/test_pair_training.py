"""Heads that read pairs learn as in a plain torch loop, and keep what they learn."""

import pytest
import spacy
import torch
import transformers
from checkpoints import TEXTS
from pair_examples import DATA, ask, build, make_examples, module_of, train, weights_of
from spacy.util import load_model_from_config
from torch.nn import functional as F
from torch_loop import DATA as JOINT_DATA
from torch_loop import STEPS, TorchLoop, make_optimizer

from spacy_bert_heads.encoder.model import shim_of

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
