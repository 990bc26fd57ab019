"""Documents in two dimensions: vectors by Hugging Face's, figures by scikit-learn's."""

import sys

import numpy as np
import pytest
import torch
from inspected import SENTENCES, write_docs
from sklearn.decomposition import PCA
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from transformers import AutoModel, AutoTokenizer

from spacy_bert_heads.inspection.map import (
    Labelled,
    encode_documents,
    map_documents,
    nearest_neighbour_accuracy,
    pca,
    read_labelled,
)
from spacy_bert_heads.inspection.source import open_source


def test_categories_of_documents(tmp_path):
    rows = [("a", {"x": 1.0, "y": 0.0}), ("b", {"x": 0.0, "y": 1.0}), ("c", {"x": 0.0, "y": 0.0})]
    rows += [("d", {}), ("e", {"x": 0.9, "y": 0.2})]
    file = write_docs(tmp_path / "a.spacy", rows)
    found = read_labelled(file)
    assert [doc.text for doc in found.docs] == ["a", "b", "e"]
    assert (found.categories, found.left_out) == (["x", "y", "x"], 2)
    assert read_labelled(file, by="y").categories == ["not y", "y", "not y", "not y"]
    with pytest.raises(ValueError, match="No document of .* has the label 'z'. Choose from: x, y"):
        read_labelled(file, by="z")
    both = write_docs(tmp_path / "b.spacy", [*rows, ("f", {"x": 1.0, "y": 1.0})])
    with pytest.raises(ValueError, match=r"A document has several labels \(x, y\): 'f'.* --by"):
        read_labelled(both)
    assert read_labelled(both, by="y").categories[-1] == "y"
    alone = write_docs(tmp_path / "c.spacy", rows[:1])
    with pytest.raises(
        ValueError, match="fewer than two categories.*x, y; documents with one: 1 of"
    ):
        read_labelled(alone)
    with pytest.raises(ValueError, match="There is no"):
        read_labelled(tmp_path / "nowhere.spacy")


def test_a_limit_takes_the_same_documents_of_the_whole_file(tmp_path):
    rows = [(f"t{i}", {"x": float(i < 50), "y": float(i >= 50)}) for i in range(100)]
    file = write_docs(tmp_path / "a.spacy", rows)
    first, again = read_labelled(file, limit=30), read_labelled(file, limit=30)
    texts = [doc.text for doc in first.docs]
    assert texts == [doc.text for doc in again.docs] and len(set(texts)) == 30
    assert texts == sorted(texts, key=lambda text: int(text[1:]))
    assert first.categories == ["x" if int(text[1:]) < 50 else "y" for text in texts]
    assert set(first.categories) == {"x", "y"}  # though the file is sorted by category
    assert len(read_labelled(file, limit=0).docs) == 100


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_documents_vector_is_the_mean_of_its_states(checkpoint, layer):
    source = open_source(checkpoint)
    texts = ["Anna swam.", *SENTENCES]
    vectors = encode_documents(source, [source.nlp.make_doc(text) for text in texts], [layer])[:, 0]
    tokenizer, model = (
        AutoTokenizer.from_pretrained(checkpoint),
        AutoModel.from_pretrained(checkpoint),
    )
    for text, found in zip(texts, vectors, strict=True):
        with torch.no_grad():
            inputs = tokenizer(text, return_tensors="pt")
            states = model.eval()(**inputs, output_hidden_states=True).hidden_states[layer][0]
        np.testing.assert_allclose(found, states.mean(0).numpy(), atol=1e-5)


def test_coordinates_are_sklearns():
    vectors = np.random.default_rng(0).normal(size=(40, 8)) * np.arange(1, 9) + 5
    points, names = pca(vectors)
    reference = PCA(n_components=2)
    expected = reference.fit_transform(vectors)
    signs = np.sign((points * expected).sum(0))
    np.testing.assert_allclose(points, expected * signs, atol=1e-8)
    shares = [f"{share:.0%} of variance" for share in reference.explained_variance_ratio_]
    assert [name.split(", ")[1] for name in names] == shares
    # The sign is a choice, and doesn't turn with the order of the documents.
    np.testing.assert_allclose(pca(vectors[::-1])[0], points[::-1], atol=1e-8)


def test_nearest_neighbours_are_sklearns(monkeypatch):
    rng = np.random.default_rng(1)
    categories = rng.choice(["x", "y", "z"], 90, p=[0.5, 0.3, 0.2])
    vectors = rng.normal(size=(90, 5)) + 100 + (categories == "x")[:, None]
    model = KNeighborsClassifier(n_neighbors=1)
    expected = cross_val_score(model, vectors, categories, cv=LeaveOneOut()).mean()
    accuracy, chance = nearest_neighbour_accuracy(vectors, categories.tolist())
    assert accuracy == pytest.approx(expected) and 0.4 < accuracy < 0.9
    same = (categories[:, None] == categories) & ~np.eye(90, dtype=bool)
    assert chance == pytest.approx(same.sum() / (90 * 89))
    monkeypatch.setattr("spacy_bert_heads.inspection.map.NEAREST_ROWS", 7)
    assert nearest_neighbour_accuracy(vectors, categories.tolist()) == (accuracy, chance)


def test_layers_and_methods_of_a_map(checkpoint, monkeypatch):
    source = open_source(checkpoint)
    docs = [source.nlp.make_doc(f"Anna swam {'a ' * i}") for i in range(12)]
    labelled = Labelled(docs, ["x", "y"] * 6, 0)
    last, first = map_documents(source, labelled), map_documents(source, labelled, layer=0)
    assert (last.layer, first.layer, last.depth) == (2, 0, 2)
    vectors = encode_documents(source, docs, [2])[:, 0]
    np.testing.assert_allclose(last.points, pca(vectors)[0], atol=1e-6)
    assert (last.accuracy, last.chance) == nearest_neighbour_accuracy(vectors, ["x", "y"] * 6)
    by_tsne = map_documents(source, labelled, method="tsne")
    assert by_tsne.points.shape == (12, 2) and np.ptp(by_tsne.points) > 0
    assert by_tsne.accuracy == last.accuracy  # of all dimensions
    assert map_documents(source, labelled, layer=-3).layer == 0
    for wrong in (3, -4):
        with pytest.raises(ValueError, match=f"There is no layer {wrong}. .* to 2, .* to -3"):
            map_documents(source, labelled, layer=wrong)
    with pytest.raises(ValueError, match="Unknown method 'umap'. Choose one of: pca, tsne"):
        map_documents(source, labelled, method="umap")
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match=r"pip install scikit-learn"):
        map_documents(source, labelled, method="tsne")
