"""Numbers for texts, from Hugging Face and back with equal values."""

import json

import numpy as np
import pytest
import torch
from checkpoints import TEXTS
from hf_models import SEQUENCES, load, run, save
from regression_cases import DATA, build, make_examples, values

from spacy_bert_heads import from_hf, to_hf


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
@pytest.mark.parametrize("labels", [["LABEL_0"], ["rating", "length", "pace"]])
def test_in_and_out_with_equal_values(family, labels, tmp_path):
    problem = {} if len(labels) == 1 else {"problem_type": "regression"}
    folder = save(tmp_path / "hf", SEQUENCES, labels, family=family, **problem)
    nlp = from_hf(folder)
    assert nlp.pipe_names == ["bert_encoder", "bert_regression"]
    head = nlp.get_pipe("bert_regression")
    assert head.labels == tuple(labels)
    model, tokenizer = load(folder, SEQUENCES)
    expected = torch.cat([run(model, tokenizer, text).logits for text in TEXTS[:4]])
    assert float(expected.std(0).min()) > 1e-3
    found = head.predict([nlp.make_doc(text) for text in TEXTS[:4]])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for doc, row in zip(nlp.pipe(TEXTS[:4]), expected.tolist(), strict=True):
        assert doc._.regression == pytest.approx(dict(zip(labels, row, strict=True)), abs=1e-5)
        assert not doc.cats

    to_hf(nlp, "bert_regression", tmp_path / "out")
    back, tokenizer = load(str(tmp_path / "out"), SEQUENCES)
    assert back.config.problem_type == "regression"
    assert back.config.id2label == dict(enumerate(labels))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    again = from_hf(str(tmp_path / "out"))
    assert again.pipe_names == nlp.pipe_names
    assert "`regression" not in (tmp_path / "out" / "README.md").read_text()  # no scores


def test_what_was_trained_here_is_hugging_faces(checkpoint, tmp_path):
    nlp = build(checkpoint)
    to_hf(nlp, "bert_regression", tmp_path / "out")
    model, tokenizer = load(str(tmp_path / "out"), SEQUENCES)
    texts = [text for text, _ in DATA]
    for text, found in zip(texts, values(nlp, texts), strict=True):
        logits = run(model, tokenizer, text).logits[0].tolist()
        assert logits == pytest.approx([found["length"], found["rating"]], abs=1e-4)
    inputs = tokenizer(texts[:1], return_tensors="pt")
    gold = torch.tensor([[DATA[0][1]["length"], DATA[0][1]["rating"]]])
    (example,) = make_examples(nlp, DATA[:1])
    head = nlp.get_pipe("bert_regression")
    expected = model(**inputs, labels=gold).loss.detach()  # it is of the same kind
    loss, _ = head.get_loss([example], head.predict([example.predicted]))
    assert loss == pytest.approx(float(expected), rel=1e-4)


def test_a_single_logit_is_never_a_category_by_softmax(tmp_path):
    folder = save(tmp_path / "hf", SEQUENCES, ["LABEL_0"])
    with pytest.raises(ValueError, match="has one class, 'LABEL_0'"):
        from_hf(folder, task="textcat")
    assert from_hf(folder, labels=["rating"]).get_pipe("bert_regression").labels == ("rating",)
    assert "bert_textcat_multilabel" in from_hf(folder, task="textcat_multilabel").pipe_names
    file = tmp_path / "hf" / "config.json"
    odd = json.loads(file.read_text()) | {"problem_type": "single_label_classification"}
    file.write_text(json.dumps(odd))
    # transformers 5 rejects it, with a reason of its own.
    with pytest.raises(
        ValueError,
        match="fits no head. Set the task: nli or regression or similarity or|num_labels",
    ):
        from_hf(folder)


def test_two_checkpoints_with_one_label(tmp_path):
    one, other = (save(tmp_path / str(i), SEQUENCES, ["LABEL_0"], seed=i) for i in range(2))
    with pytest.raises(ValueError, match="would overwrite what bert_regression writes"):
        from_hf(one, other)
    third = save(tmp_path / "third", SEQUENCES, ["rating"], seed=2)
    assert set(from_hf(one, third)(TEXTS[0])._.regression) == {"LABEL_0", "rating"}
