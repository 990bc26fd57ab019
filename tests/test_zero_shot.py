"""Categories by hypotheses have the numbers of Hugging Face's zero-shot pipeline."""

import pytest
import spacy
import torch
import transformers
from checkpoints import TEXTS
from hf_models import SEQUENCES, load, run, save
from pair_examples import make_head

from spacy_bert_heads import from_hf

TEMPLATE = "A text on {}."
CATEGORIES = {name: TEMPLATE.format(name) for name in ("fire", "a boat", "New York")}
DOCS = [*TEXTS[:3], "Hull"]
ORDERS = [
    ["contradiction", "neutral", "entailment"],
    ["ENTAILMENT", "neutral", "contradiction"],
    ["not_entailment", "entailment"],
]


@pytest.fixture(scope="module", params=ORDERS, ids=lambda order: order[0])
def checkpoint(request, tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("hf") / "nli", SEQUENCES, request.param)


def load_with(folder: str, tmp_path, softmax: str | None, categories=CATEGORIES):
    from_hf(folder).to_disk(tmp_path)
    config = {"components.bert_nli.categories": categories}
    if softmax is not None:
        config["components.bert_nli.category_softmax"] = softmax
    return spacy.load(tmp_path, config=config)


@pytest.mark.parametrize("names", [["fire", "a boat", "New York"], ["fire"]])
@pytest.mark.parametrize("softmax, multi_label", [("contradiction", True), ("categories", False)])
def test_categories_are_hugging_faces(checkpoint, tmp_path, names, softmax, multi_label):
    categories = {name: CATEGORIES[name] for name in names}
    nlp = load_with(checkpoint, tmp_path, softmax, categories)
    theirs = transformers.pipeline("zero-shot-classification", checkpoint, device="cpu")
    for doc in nlp.pipe(DOCS):
        found = theirs(doc.text, names, hypothesis_template=TEMPLATE, multi_label=multi_label)
        expected = dict(zip(found["labels"], found["scores"], strict=True))
        assert doc.cats == pytest.approx(expected, abs=1e-5)
        assert all(type(score) is float for score in doc.cats.values())
        if softmax == "categories" and len(names) > 1:
            assert sum(doc.cats.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("softmax", [None, "labels"])
def test_the_default_is_entailment_among_all_labels(checkpoint, tmp_path, softmax):
    nlp = load_with(checkpoint, tmp_path, softmax)
    assert nlp.get_pipe("bert_nli").category_softmax == "labels"
    model, tokenizer = load(checkpoint, SEQUENCES)
    entailment = [label.lower() for label in nlp.get_pipe("bert_nli").labels].index("entailment")
    for doc in nlp.pipe(DOCS):
        for name, hypothesis in CATEGORIES.items():
            probabilities = run(model, tokenizer, doc.text, hypothesis).logits.softmax(-1)
            assert doc.cats[name] == pytest.approx(float(probabilities[0, entailment]), abs=1e-5)


def test_contradiction_goes_by_name(tmp_path):
    """Hugging Face takes the first label for it, whatever it is called."""
    labels = ["neutral", "entailment", "contradiction"]
    folder = save(tmp_path / "hf", SEQUENCES, labels)
    nlp = load_with(folder, tmp_path / "nlp", "contradiction")
    model, tokenizer = load(folder, SEQUENCES)
    doc = nlp(DOCS[0])
    for name, hypothesis in CATEGORIES.items():
        logits = run(model, tokenizer, doc.text, hypothesis).logits[0, [1, 2]]
        assert doc.cats[name] == pytest.approx(float(logits.softmax(-1)[0]), abs=1e-5)


def test_own_hypotheses_are_as_before(checkpoint, tmp_path):
    """Verdicts are the same whatever the categories' probabilities are among."""
    verdicts = []
    for softmax in ("labels", "contradiction", "categories"):
        nlp = load_with(checkpoint, tmp_path, softmax)
        doc = nlp.make_doc(DOCS[0])
        doc._.hypotheses = ["It burned.", "It rained."]
        verdicts.append(nlp(doc)._.nli)
        assert set(doc.cats) == set(CATEGORIES)
    assert verdicts[0] == verdicts[1] == verdicts[2]


def test_logits_of_all_sizes():
    """Where probabilities of entailment and contradiction are both 0 in float32, they still have
    their ratio."""
    head = make_head("nli", categories={"x": "X.", "y": "Y."})
    for label in ("contradiction", "neutral", "entailment"):
        head.add_label(label)
    logits = torch.tensor([[0.0, 500.0, 1.0], [2.0, 500.0, 0.0]])
    for softmax, second in (("contradiction", 0.119203), ("categories", 0.268941)):
        scores = head._category_scores(logits, softmax).tolist()
        assert scores == pytest.approx([0.731059, second], abs=1e-5)


def test_a_softmax_that_there_is_not():
    with pytest.raises(ValueError, match="bert_nli is 'all'; choose .*labels, contradiction, cat"):
        make_head("nli", category_softmax="all")


def test_contradiction_is_needed_where_it_is_weighed(tmp_path):
    folder = save(tmp_path / "hf", SEQUENCES, ["entailment", "perhaps", "no"])
    with pytest.raises(ValueError, match="none of its labels is called contradiction: entailment"):
        load_with(folder, tmp_path / "nlp", "contradiction")("Hull")
    assert load_with(folder, tmp_path / "nlp", "labels")("Hull").cats
