"""Project documents to two dimensions, and measure how well their categories are separated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import spacy
from spacy.tokens import Doc

from ..data.reader import BertCorpus
from ..heads.modules import mean_by_group
from .source import Floats2d, Floats3d, Source, encode_layers

BATCH_DOCS = 256  # Docs with hidden states in memory at the same time
NEAREST_ROWS = 1024  # rows of the distance matrix in memory at the same time
METHODS = ("pca", "tsne")


class MapView(NamedTuple):
    """Hold documents projected from an encoder's hidden states."""

    source: str
    layer: int
    depth: int
    points: Floats2d  # (n_docs, 2)
    axes: tuple[str, str]  # titles of the two dimensions
    accuracy: float  # of the nearest neighbour
    chance: float  # the same for a random neighbour


class Labelled(NamedTuple):
    """Hold documents with one category each."""

    docs: list[Doc]
    categories: list[str]
    left_out: int  # documents without a category


def read_labelled(data: Path, *, by: str | None = None, limit: int = 1000) -> Labelled:
    """Read documents with their categories from a `.spacy` file, or a folder of them.

    The category is the only positive label, or with `by` whether that label is positive. If there
    are more than `limit` documents, a random sample is returned, the same at every call and in the
    order of the file; 0 returns all. Raises ValueError if the file doesn't exist, there are fewer
    than two categories, or a document has several positive labels.
    """
    if limit == 1:
        raise ValueError(
            "limit is 1, but a map needs two documents. Set it to 2 or more, or to 0 for all."
        )
    references = [example.reference for example in BertCorpus(data)(spacy.blank("xx"))]
    labels = Counter(label for doc in references for label in doc.cats)
    known = ", ".join(labels) or "none at all"
    if by is not None and by not in labels:
        raise ValueError(f"No document of '{data}' has the label '{by}'. Choose from: {known}.")
    docs, categories = [], []
    for doc in references:
        held = [label for label, value in doc.cats.items() if value >= 0.5]
        if by is not None:
            held = [by if by in held else f"not {by}"] if by in doc.cats else []
        if len(held) > 1:
            raise ValueError(
                f"A document has several labels ({', '.join(held)}): '{doc.text[:80]}'. Choose one "
                "with --by LABEL."
            )
        if held:
            docs.append(doc)
            categories += held
    if len(set(categories)) < 2:
        raise ValueError(
            f"The documents of '{data}' have fewer than two categories in doc.cats. Use other "
            f"data. Labels: {known}; documents with one: {len(docs)} of {len(references)}."
        )
    left_out = len(references) - len(docs)
    if 0 < limit < len(docs):
        chosen = np.sort(np.random.default_rng(0).choice(len(docs), limit, replace=False))
        docs, categories = [docs[i] for i in chosen], [categories[i] for i in chosen]
    return Labelled(docs, categories, left_out)


def map_documents(
    source: Source,
    labelled: Labelled,
    *,
    layer: int = -1,
    method: str = "pca",
) -> MapView:
    """Project documents to two dimensions.

    Layer 0 is the embeddings, -1 the last layer. `method` is "pca", or "tsne" (van der Maaten
    & Hinton 2008), which preserves neighbourhoods but not distances. Raises ValueError for an
    unknown layer or method, and ImportError for "tsne" without scikit-learn.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method '{method}'. Choose one of: {', '.join(METHODS)}.")
    if not -source.depth - 1 <= layer <= source.depth:
        raise ValueError(
            f"There is no layer {layer}. '{source.name}' has the layers 0 (embeddings) to "
            f"{source.depth}, or -1 (the last) to {-source.depth - 1}."
        )
    (layer,) = source.encoder.checkpoint.layer_numbers([layer])
    reduce = pca if method == "pca" else tsne
    vectors = encode_documents(source, labelled.docs, [layer])[:, 0]
    points, axes = reduce(vectors)
    accuracy, chance = nearest_neighbour_accuracy(vectors, labelled.categories)
    return MapView(source.name, layer, source.depth, points, axes, accuracy, chance)


def encode_documents(source: Source, docs: Sequence[Doc], layers: Sequence[int]) -> Floats3d:
    """Return the mean hidden states of each Doc (num_docs, num_layers, hidden_size), as in a
    category head with `pooling = "mean"`: special tokens included, windows averaged."""
    parts = []
    for start in range(0, len(docs), BATCH_DOCS):
        batch = source.pack(docs[start : start + BATCH_DOCS])
        hidden_states = encode_layers(source.encoder, batch, layers).flatten(1)
        means = mean_by_group(mean_by_group(hidden_states, batch.seqlens), batch.num_windows)
        parts.append(means.unflatten(1, (len(layers), -1)).double().cpu().numpy())
    return np.concatenate(parts)


def pca(vectors: Floats2d) -> tuple[Floats2d, tuple[str, str]]:
    """Project vectors (n, width) on the two directions of greatest variance (Pearson 1901).

    Returns coordinates (n, 2), the same at every call, and titles for the axes.
    """
    left, values, right = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    # The sign of a component is arbitrary: make its largest weight positive.
    signs = np.sign(right[np.arange(2), np.abs(right[:2]).argmax(1)])
    first, second = values[:2] ** 2 / (values**2).sum()
    names = f"1st component, {first:.0%} of variance", f"2nd component, {second:.0%} of variance"
    return left[:, :2] * values[:2] * signs, names


def tsne(vectors: Floats2d) -> tuple[Floats2d, tuple[str, str]]:
    """Project vectors (n, width) with t-SNE; see `pca`. Raises ImportError if scikit-learn is not
    installed."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            "t-SNE needs scikit-learn. Install it (pip install scikit-learn), or use pca."
        ) from error
    perplexity = min(30.0, (len(vectors) - 1) / 3)  # 30 is scikit-learn's default
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)
    return points.astype(np.float64), ("t-SNE, 1st dimension", "t-SNE, 2nd dimension")


def nearest_neighbour_accuracy(vectors: Floats2d, categories: Sequence[str]) -> tuple[float, float]:
    """Measure how well categories are separated in all dimensions: the share of documents whose
    nearest other document, by Euclidean distance, has the same category (Cover & Hart 1967).

    `vectors` is (n, width). Returns that share, and its expectation for a random other document.
    """
    numbers = np.unique(list(categories), return_inverse=True)[1]
    # Centred for numerical accuracy of the distances below.
    vectors = vectors - vectors.mean(0)
    squares = (vectors**2).sum(1)
    n, right = len(vectors), 0
    for start in range(0, n, NEAREST_ROWS):
        rows = np.arange(start, min(start + NEAREST_ROWS, n))
        distances = squares - 2 * vectors[rows] @ vectors.T
        distances[np.arange(len(rows)), rows] = np.inf
        right += int((numbers[distances.argmin(1)] == numbers[rows]).sum())
    counts = np.bincount(numbers)
    return right / n, float((counts * (counts - 1)).sum() / (n * (n - 1)))
