"""What a prediction rests on, beside integrated gradients by Hugging Face's own code."""

from functools import partial

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from commands import run
from conftest import make_examples
from joint import SAILED
from small_pipelines import build
from transformers import AutoModel, AutoTokenizer

from spacy_bert_heads.encoder.model import pack, shim_of
from spacy_bert_heads.heads.entities import write_entities
from spacy_bert_heads.inspection.explain import explain
from spacy_bert_heads.inspection.explain_view import MAX_PANELS, draw_explanations, mark
from spacy_bert_heads.inspection.targets import _answer, targets_of
from spacy_bert_heads.text.pairs import Pairs

TEXT = "Anna Grete left Skagen on Tuesday"


def annotated(nlp, text: str = SAILED):
    doc = nlp.make_doc(text)
    doc._.questions, doc._.hypotheses = ["Who left?", "What burned?"], ["She left."]
    return nlp(doc)


def test_all_heads_and_completeness(nlp):
    """What the words add adds up to what the text says more than the masked one."""
    doc = annotated(nlp)
    found = explain(nlp, doc, steps=20)
    kinds = {one.component for one in found}
    assert kinds == {"bert_ner", "bert_textcat", "bert_nli", "bert_qa"}
    assert sum(one.component == "bert_ner" for one in found) == len(doc.ents) > 1
    for one in found:
        assert abs(one.error) < 0.01 * max(1.0, abs(one.score - one.baseline)), one.title
        assert "".join(one.words) == doc.text
        assert len(one.values) == len(doc)
    asked = {one.component: "".join(one.asked) for one in found}
    assert asked["bert_nli"] == "She left." and asked["bert_ner"] == ""
    # A head that was sure is far from one that reads nothing.
    assert max(abs(one.score - one.baseline) for one in found) > 2


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_values_are_those_of_hugging_faces_model(family, tmp_path):
    folder = make_checkpoint(tmp_path / family, family=family)
    nlp = build(folder, "textcat")
    head = nlp.get_pipe("bert_textcat")
    doc = nlp(TEXT)
    (found,) = explain(nlp, doc, steps=8)

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    inputs = tokenizer(TEXT, return_tensors="pt", return_special_tokens_mask=True)
    special = inputs.pop("special_tokens_mask")[0].bool()
    ids = inputs.pop("input_ids")
    table = model.eval().get_input_embeddings()
    blank = torch.where(special, ids[0], tokenizer.mask_token_id)[None]
    embedded, masked = table(ids).detach(), table(blank).detach()
    module, label = shim_of(head.model).module, int(np.argmax([doc.cats[x] for x in head.labels]))
    batch = pack(nlp.get_pipe("bert_encoder").model, [doc])

    def score(point: torch.Tensor) -> torch.Tensor:
        states = model(inputs_embeds=point, **inputs).last_hidden_state[0]
        logits = module(states, batch)[0]
        return logits[label] - torch.cat([logits[:label], logits[label + 1 :]]).logsumexp(0)

    nodes, weights = np.polynomial.legendre.leggauss(8)
    total = torch.zeros_like(embedded)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        point = (masked + float(node) * (embedded - masked)).requires_grad_()
        total += float(weight) * torch.autograd.grad(score(point), point)[0]
    values = ((embedded - masked) * total).sum(-1)[0].numpy()
    offsets = tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"]
    expected = np.zeros(len(doc))
    own = zip(values, offsets, special.tolist(), strict=True)
    for value, start in ((value, start) for value, (start, _), not_own in own if not not_own):
        start += TEXT[start] == " "
        expected[[t.i for t in doc if t.idx <= start < t.idx + len(t)]] += value
    np.testing.assert_allclose(found.values, expected, atol=1e-5)
    assert np.abs(expected).max() > 1e-4
    assert found.score == pytest.approx(score(embedded).item(), abs=1e-5)
    assert found.baseline == pytest.approx(score(masked).item(), abs=1e-5)


def test_a_long_text_and_several_layers(checkpoint):
    nlp = build(checkpoint, "textcat_multilabel", settings=None, window=16, stride=8)
    doc = nlp(f"{TEXT} ! " * 6)
    (found, *_) = explain(nlp, doc, steps=20)
    assert abs(found.error) < 1e-3 and np.count_nonzero(found.values) == len(doc)


@pytest.mark.parametrize("kind", ["textcat", "textcat_multilabel"])
def test_log_odds_are_those_of_the_calibrated_probability(checkpoint, kind):
    nlp = build(checkpoint, kind, settings=None)
    head = nlp.get_pipe(f"bert_{kind}")
    head.cfg["temperature"] = 2.5
    doc = nlp(TEXT)
    (found, *_) = explain(nlp, doc, steps=2)
    (p,) = [p for label, p in doc.cats.items() if found.title.startswith(f"category {label},")]
    assert found.score == pytest.approx(np.log(p / (1 - p)), abs=1e-5)
    head.cfg["temperature"] = 1.0
    assert explain(nlp, nlp(TEXT), steps=2)[0].score == pytest.approx(2.5 * found.score, abs=1e-5)


def test_nothing_is_changed_by_looking(nlp):
    before = annotated(nlp)
    explain(nlp, before, steps=2)
    after = annotated(nlp)
    assert after.cats == before.cats and after._.ent_scores == before._.ent_scores
    encoder = shim_of(nlp.get_pipe("bert_encoder").model).module
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert not encoder.model.get_input_embeddings()._forward_hooks


def test_the_command(joint, tmp_path):
    asked = ("-q", "Who left?", "--heads", "bert_qa,bert_textcat")
    result = run("inspect", "explain", joint, SAILED, *asked, "-o", tmp_path / "why")
    assert result.exit_code == 0, result.output
    assert "bert_qa: “Who left?”" in result.output
    assert (tmp_path / "why.png").stat().st_size > 10_000
    page = (tmp_path / "why.html").read_text(encoding="utf8")
    assert "bert_textcat: category" in page and '<span style="background:rgba(' in page

    result = run("inspect", "explain", joint, "", "--heads", "bert_ner", "-o", tmp_path / "why")
    assert result.exit_code == 1
    assert "There is no entity, category, verdict or answer of bert_ner to explain" in result.output


def test_words_are_text_in_a_page():
    marked = mark(["<b> ", "x"], np.asarray([-1.0, 0.5]), 1.0)
    assert marked == (
        '<span style="background:rgba(213,94,0,0.60)" title="-1.000">&lt;b&gt;</span> '
        '<span style="background:rgba(0,114,178,0.30)" title="+0.500">x</span>'
    )


def test_a_panel_for_each(nlp):
    found = explain(nlp, annotated(nlp), steps=2)
    figure = draw_explanations((found * 3)[:MAX_PANELS], "title")
    assert sum(axes.get_visible() for axes in figure.axes) == MAX_PANELS == 6
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == pytest.approx(list(found[0].values))


def test_an_entity_is_explained_by_the_head_that_found_it(checkpoint):
    nlp = build(checkpoint, "ner", settings=None)
    nlp.add_pipe("bert_ner", name="other")
    nlp.initialize(lambda: make_examples(nlp))
    doc = nlp.make_doc(TEXT)
    label = nlp.get_pipe("other").labels[0]
    write_entities(doc, [(3, 4, nlp.vocab.strings[label], 0.9)], component="other", spans_key=None)
    found = {head: [*targets_of(nlp.get_pipe(head), doc)] for head in ("bert_ner", "other")}
    assert not found["bert_ner"]
    assert [target.title for target in found["other"]] == [f"entity “Skagen” {label}, 0.90"]


def test_start_and_end_of_an_answer_are_of_one_window(checkpoint):
    """Whatever the answer, both are wordpieces of its text, and of the same window."""
    settings = {"max_answer_length": 10}
    nlp = build(checkpoint, "qa", settings=settings, window=32, stride=20)
    head = nlp.get_pipe("bert_qa")
    doc = nlp.make_doc("the crew left Hull and the crew left Skagen on Tuesday again " * 3)
    batch = head.pack(Pairs(docs=[doc], texts=[["Who left?"]], doc_first=False)).batch
    assert batch.num_windows[0] > 2
    window_of = np.repeat(np.arange(len(batch.seqlens)), batch.seqlens)
    for first in range(len(doc) - 3):
        start, end = doc[first].idx, doc[first + 2].idx + len(doc[first + 2])
        score = partial(_answer, start, end, batch=batch)
        rows = torch.zeros(len(batch.input_ids), 2, requires_grad=True)
        (gradient,) = torch.autograd.grad(score(rows), rows)
        places = gradient.argmax(0).tolist()  # log-odds grow with these logits
        assert window_of[places[0]] == window_of[places[1]]
        assert doc.text[batch.offsets.starts[places[0]] :].startswith(doc.text[start : start + 1])
        assert batch.offsets.starts[places[0]] == start and batch.offsets.ends[places[1]] == end
