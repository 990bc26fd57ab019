"""A score is the same in memory and after loading, whatever training found out."""

import warnings

import pytest
import spacy
from pair_examples import DATA, build, make_example, make_examples, train
from spacy.util import load_model_from_config

LONG = "a b c d e f g h i " * 5  # more than half of a window of 64
RIGHT = {"qa": ("Anna", "boat"), "nli": ("neutral", "entailment")}
NAMES = {"qa": "questions", "nli": "hypotheses"}
FIGURES = {"qa": "qa_exact", "nli": "nli_acc"}


def data_of(head: str) -> list[tuple[str, dict]]:
    """Two pairs that can be learned and one that can't be read."""
    one, other = RIGHT[head]
    name = NAMES[head]
    return [
        ("Anna left", {name: {"Who?": one}}),
        ("A boat", {name: {"It?": other, LONG: other}}),
    ]


@pytest.mark.parametrize("head", ["qa", "nli"])
@pytest.mark.filterwarnings("ignore:.*(does not learn|leaves a pair out)")
def test_a_pair_that_is_too_long_counts_as_wrong(folders, tmp_path, head):
    data = data_of(head)
    nlp = build(folders("bert"), head, data=data)
    pipe = nlp.get_pipe(f"bert_{head}")
    train(nlp, data, steps=40, rate=1e-2)
    only_long = [("A boat", {NAMES[head]: {LONG: RIGHT[head][1]}})]
    train(nlp, only_long, steps=1)
    assert pipe.has_gold(make_example(nlp, *only_long[0]))
    nlp.evaluate(make_examples(nlp, data))  # sets the threshold of answers
    nlp.to_disk(tmp_path)
    for one in (
        nlp,
        spacy.load(tmp_path),
        load_model_from_config(nlp.config).from_bytes(nlp.to_bytes()),
    ):
        figure = one.evaluate(make_examples(one, data))[FIGURES[head]]
        assert figure == pytest.approx(2 / 3)
        assert one.evaluate(make_examples(one, only_long))[FIGURES[head]] == 0


@pytest.mark.parametrize("head", ["qa", "nli"])
def test_the_same_text_twice_in_one_reference(folders, head):
    """Each entry is compared with what was predicted for the text."""
    one, other = RIGHT[head]
    nlp = build(folders("bert"), head, data=DATA)
    example = make_example(nlp, "Anna left A boat", {NAMES[head]: {"Who?": one, "Why?": other}})
    for doc in (example.reference, example.predicted):
        doc._.set(NAMES[head], ["Who?", "Who?"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = nlp.evaluate([example])
    assert scores[FIGURES[head]] in (0.0, 0.5)  # not both: they contradict each other
    nlp.update([example], losses=(losses := {}))
    assert losses[f"bert_{head}"] > 0
