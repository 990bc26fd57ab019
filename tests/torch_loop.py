"""A plain torch loop that trains what spaCy trains."""

import copy

import torch
import transformers
from thinc.api import Adam, warmup_linear

from spacy_bert_heads.encoder.model import shim_of

DATA = [
    (
        "Anna left Skagen",
        {"entities": [(0, 4, "VESSEL"), (10, 16, "PLACE")], "cats": {"a": 1, "b": 0}},
    ),
    ("It burned in Hull", {"entities": [(13, 17, "PLACE")], "cats": {"a": 0, "b": 1}}),
    (
        "A pump on the Anna broke off Skagen",
        {"entities": [(14, 18, "VESSEL")], "cats": {"a": 1, "b": 0}},
    ),
    ("Nobody saw the fire", {"entities": [], "cats": {"a": 0, "b": 1}}),
    ("The crew left by lifeboat", {"entities": []}),
    ("She was carrying timber", {"cats": {"a": 1, "b": 0}}),
    ("Hull lost Anna", {"entities": [(0, 4, "PLACE"), (10, 14, "VESSEL")]}),
    ("Off Skagen she lost a pump", {"entities": [(4, 10, "PLACE")]}),
]
BATCHES = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 2, 5, 7], [4, 6]]  # the last one has no categories
STEPS = 20
HEADS = ("bert_ner", "bert_textcat")


def make_optimizer():
    # A large epsilon: gradients that are zero but for rounding must not be blown up to full steps.
    return Adam(warmup_linear(1e-3, 4, 40), L2=0.01, eps=1e-4, grad_clip=1.0, use_averages=False)


def parameters(nlp) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.detach().clone()
        for name in ("bert_encoder", *HEADS)
        for key, value in shim_of(nlp.get_pipe(name).model).module.named_parameters()
    }


class TorchLoop:
    """The same model and data in torch alone."""

    def __init__(self, nlp, checkpoint: str, frozen: tuple[str, ...] = ()) -> None:
        self.encoder = transformers.AutoModel.from_pretrained(checkpoint)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self.heads = {
            name: copy.deepcopy(shim_of(nlp.get_pipe(name).model).module) for name in HEADS
        }
        self.tags = nlp.get_pipe("bert_ner").tags
        self.cats = nlp.get_pipe("bert_textcat").labels
        modules = {"bert_encoder": self.encoder, **self.heads}
        self.optimizers = {}
        for name, module in modules.items():
            if name not in frozen:
                groups = [
                    {
                        "params": [p for p in module.parameters() if p.ndim > 1],
                        "weight_decay": 0.01,
                    },
                    {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
                ]
                self.optimizers[name] = torch.optim.AdamW(groups, eps=1e-4)
        self.frozen = frozen
        # 1 for a component that is not in these.
        self.factors: dict[str, float] = {}
        self.grad_factors: dict[str, float] = {}
        self.rates = warmup_linear(1e-3, 4, 40)

    def backward(self, examples) -> None:
        texts = [eg.reference.text for eg in examples]
        batch = self.tokenizer(texts, return_tensors="pt", padding=True)
        states = self.encoder(**batch).last_hidden_state
        losses = []
        if "bert_ner" not in self.frozen:
            factor = self.grad_factors.get("bert_ner", 1.0)
            scaled = factor * states + (1 - factor) * states.detach()
            losses.append(self.ner_loss(examples, batch, scaled))
        if "bert_textcat" not in self.frozen:
            losses.append(self.textcat_loss(examples, states))
        losses = [loss for loss in losses if loss is not None]
        if losses:
            sum(losses).backward()

    def ner_loss(self, examples, batch, states):
        rows, targets = [], []
        for i, eg in enumerate(examples):
            if not eg.reference.has_annotation("ENT_IOB"):
                continue
            for token in eg.reference:
                rows.append(states[i, batch.char_to_token(i, token.idx)])
                tag = "O" if token.ent_iob_ == "O" else f"{token.ent_iob_}-{token.ent_type_}"
                targets.append(self.tags.index(tag))
        if not rows:
            return None
        logits = self.heads["bert_ner"].classifier(torch.stack(rows))
        return torch.nn.functional.cross_entropy(logits, torch.tensor(targets))

    def textcat_loss(self, examples, states):
        rows = [i for i, eg in enumerate(examples) if eg.reference.cats]
        if not rows:
            return None
        head = self.heads["bert_textcat"]
        logits = head.classifier(head.dense(states[rows, 0]))
        gold = [
            max(range(len(self.cats)), key=lambda c: examples[i].reference.cats[self.cats[c]])
            for i in rows
        ]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(gold))

    def step(self) -> None:
        rate = next(self.rates)
        for name, optimizer in self.optimizers.items():
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            for group in optimizer.param_groups:
                group["lr"] = rate * self.factors.get(name, 1.0)
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        for module in (self.encoder, *self.heads.values()):
            module.zero_grad()

    def parameters(self) -> dict[str, torch.Tensor]:
        modules = {"bert_encoder.model": self.encoder, **self.heads}
        return {
            f"{name}.{key}": value
            for name, module in modules.items()
            for key, value in module.named_parameters()
        }
