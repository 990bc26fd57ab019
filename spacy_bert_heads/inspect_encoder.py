"""What an encoder has learned, as numbers: a word's states by layer, the layers that heads read,
documents in two dimensions. `pictures.py` draws them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import spacy
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from spacy.language import Language
from spacy.matcher import PhraseMatcher
from spacy.tokens import Doc, Span
from spacy.util import filter_spans
from thinc.api import Model

from .corpora import BertCorpus
from .encoder.component import BertEncoder
from .encoder.features import mix_of
from .encoder.listener import BertListener, checkpoint_behind
from .encoder.loading import Bert, load_checkpoint
from .encoder.model import bert_of, run
from .evaluate import is_pipeline
from .heads.layers import mean_by_group
from .sequences import make_sequences
from .types import DocSequences, Sequences

Floats1d = NDArray[np.float64]
Floats2d = NDArray[np.float64]
Floats3d = NDArray[np.float64]

MAX_BATCH_TOKENS = 4096  # wordpieces that are run at once, padding included
BATCH_DOCS = 256  # Docs whose states are held at once
MAX_OCCURRENCES = 20  # rows of a matrix that a person reads
NEAREST_ROWS = 1024  # rows of the matrix of all distances that are held at once
METHODS = ("pca", "tsne")


class Source(NamedTuple):
    """An encoder, and how it reads Docs."""

    name: str  # as it was asked for
    nlp: Language  # the tokenizer
    bert: Bert
    window: int
    stride: int

    @property
    def depth(self) -> int:
        """RETURNS (int): Its layers; that of the embeddings, 0, is not counted."""
        return self.bert.n_layers

    def read(self, docs: Sequence[Doc]) -> DocSequences:
        """docs (Sequence[Doc]): Docs of any length.
        RETURNS (DocSequences): Their windows.
        """
        return make_sequences(docs, self.bert.wordpieces, window=self.window, stride=self.stride)


def open_source(name: str, *, encoder: str | None = None, lang: str = "en") -> Source:
    """Load an encoder to look into.

    name (str): A pipeline's folder or package, or a checkpoint's folder or hub name.
    encoder (Optional[str]): Which encoder of a pipeline that has several.
    lang (str): The language of the tokenizer that goes with a checkpoint.
    RETURNS (Source): The encoder.
    RAISES (ValueError): If it can't be loaded, or it is not clear which encoder is meant.
    """
    if is_pipeline(name):
        nlp = spacy.load(name)
        found = {key: one for key, one in nlp.components if isinstance(one, BertEncoder)}
        if encoder is None and len(found) == 1:
            (encoder,) = found
        if encoder is None or encoder not in found:
            has = f"has these encoders: {', '.join(found)}" if found else "has no bert_encoder"
            raise ValueError(f"'{name}' {has}. Name one of its own: --encoder NAME.")
        model = found[encoder].model
        return Source(name, nlp, bert_of(model), model.attrs["window"], model.attrs["stride"])
    if encoder is not None:
        raise ValueError(f"'{name}' is no pipeline but a checkpoint: leave --encoder out.")
    bert = load_checkpoint(name)
    window = min(256, bert.max_window)
    return Source(name, spacy.blank(lang), bert, window, max(window * 3 // 4, 1))


def encode_layers(bert: Bert, sequences: Sequences, layers: Sequence[int]) -> torch.Tensor:
    """Run sequences, and keep the states of some layers.

    bert (Bert): The checkpoint.
    sequences (Sequences): The sequences.
    layers (Sequence[int]): Which layers: 0 for the embeddings, the encoder's depth for the last.
    RETURNS (Tensor): (n_slots, n_layers, width), float32.
    """
    with torch.no_grad():
        states = run(bert, sequences, MAX_BATCH_TOKENS, tuple(layers), keep_graph=False)
    return states.unflatten(1, (len(layers), bert.width))


# --- one word in many sentences


class WordView(NamedTuple):
    """How alike the states of one word are where it occurs, layer by layer."""

    source: str
    word: str
    occurrences: list[Span]
    # Cosines of all pairs, from the embeddings to the last layer (depth + 1, n, n).
    cosines: Floats3d

    @property
    def self_similarity(self) -> Floats1d:
        """RETURNS (Floats1d): The mean cosine of two different occurrences at each layer
        (Ethayarajh 2019, section 3.3) (depth + 1,)."""
        n = len(self.occurrences)
        return (self.cosines.sum((1, 2)) - np.trace(self.cosines, axis1=1, axis2=2)) / (n * (n - 1))


def compare_word(source: Source, word: str, texts: Sequence[str]) -> WordView:
    """Compare the states of a word in all texts, layer by layer.

    source (Source): The encoder.
    word (str): The word, in upper or lower case; it may be several tokens.
    texts (Sequence[str]): The texts.
    RETURNS (WordView): An entry for each occurrence; its vector is the mean of the states of all
        its wordpieces.
    RAISES (ValueError): If a text doesn't have the word, or there are not two occurrences, or too
        many to show.
    """
    docs = [source.nlp.make_doc(text) for text in texts]
    found = find_word(source.nlp, word, docs)
    missing = [text for text, spans in zip(texts, found, strict=True) if not spans]
    if missing:
        others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise ValueError(
            f"The word '{word}' is not in the text '{missing[0]}'{others}. It is looked for as a "
            "whole, in upper or lower case. Leave the text out, or write the word as it has it."
        )
    occurrences = [span for spans in found for span in spans]
    if not 2 <= len(occurrences) <= MAX_OCCURRENCES:
        raise ValueError(
            f"The word '{word}' occurs {len(occurrences)} times in {len(texts)} texts. Give texts "
            f"with 2 to {MAX_OCCURRENCES} occurrences."
        )
    sequences = source.read(docs)
    states = encode_layers(source.bert, sequences, range(source.depth + 1))
    first_token = np.cumsum(sequences.tokens) - sequences.tokens
    first_row = np.append(0, np.cumsum(sequences.pieces))
    vectors = []
    for first, spans in zip(first_token.tolist(), found, strict=True):
        for span in spans:
            begin, end = first_row[first + span.start], first_row[first + span.end]
            # Two tokens of a word may share a piece, which counts once.
            rows = np.unique(sequences.rows[begin:end])
            if not len(rows):
                raise ValueError(f"The word '{word}' has no wordpieces. Look at another one.")
            vectors.append(states[torch.from_numpy(rows).to(states.device)].double().mean(0))
    normed = F.normalize(torch.stack(vectors, dim=1), dim=-1)  # (depth + 1, n, width)
    cosines = (normed @ normed.transpose(1, 2)).cpu().numpy()
    return WordView(source.name, word, occurrences, cosines)


def find_word(nlp: Language, word: str, docs: Sequence[Doc]) -> list[list[Span]]:
    """Find a word, in upper or lower case, as tokens.

    nlp (Language): The tokenizer.
    word (str): One token or several.
    docs (Sequence[Doc]): The Docs.
    RETURNS (List[List[Span]]): Where it occurs in each.
    RAISES (ValueError): If it is empty.
    """
    pattern = nlp.make_doc(word.strip())
    if not len(pattern):
        raise ValueError("The word is empty. Give one that occurs in the texts.")
    matcher = PhraseMatcher(nlp.vocab, attr="LOWER")
    matcher.add("word", [pattern])
    return [filter_spans(cast(list[Span], matcher(doc, as_spans=True))) for doc in docs]


# --- the layers that heads read


class LayerWeights(NamedTuple):
    """What a head makes of the encoder's layers."""

    head: str
    layers: tuple[int, ...]  # that it reads
    weights: Floats1d  # (n_layers,), they sum to 1
    scale: float
    depth: int  # the encoder's last layer

    @property
    def centre(self) -> float:
        """RETURNS (float): The mean layer, by weight: the centre of gravity of Tenney et al. (2019,
        section 3)."""
        return float(self.weights @ np.asarray(self.layers))


def read_weights(name: str) -> list[LayerWeights]:
    """Read off how heads weight the encoder's layers (Peters et al. 2018, equation 1).

    name (str): A pipeline's folder or package.
    RETURNS (List[LayerWeights]): An entry for each head with learned weights.
    RAISES (ValueError): If there is no pipeline, or none of its heads has any.
    """
    if not is_pipeline(name):
        raise ValueError(
            f"There is no pipeline '{name}', neither a folder with a config.cfg nor an installed "
            "package. Layer weights belong to heads, which a checkpoint doesn't have."
        )
    nlp = spacy.load(name)
    found = []
    for head, component in nlp.components:
        model = getattr(component, "model", None)
        for node in model.walk() if isinstance(model, Model) else ():
            if node.name == "layer_features" and node.shims:
                mix, source = mix_of(node), node.layers[0]
                bert = checkpoint_behind(source)
                assert bert is not None
                reads = source.reads if isinstance(source, BertListener) else source.attrs["layers"]
                weights = mix.weights.detach().double().softmax(0).cpu().numpy()
                layers, scale = bert.layer_numbers(reads), float(mix.scale.detach())
                found.append(LayerWeights(head, layers, weights, scale, bert.n_layers))
    if not found:
        raise ValueError(
            f"No head of '{name}' has learned layer weights ({', '.join(nlp.component_names)}). "
            'Set layers = "all" and combine = "weighted" in a head\'s model.tok2vec, and train it.'
        )
    return found


# --- documents in two dimensions


class MapView(NamedTuple):
    """Documents as an encoder sees them."""

    source: str
    layer: int
    depth: int
    points: Floats2d  # (n_docs, 2)
    axes: tuple[str, str]  # what the two dimensions are
    accuracy: float  # of the nearest neighbour
    chance: float  # the same if states said nothing


class Labelled(NamedTuple):
    """Documents of which each has a category."""

    docs: list[Doc]
    categories: list[str]
    left_out: int  # documents without one


def read_labelled(data: Path, *, by: str | None = None, limit: int = 1000) -> Labelled:
    """Read documents with their categories.

    data (Path): A `.spacy` file, or a folder of them.
    by (Optional[str]): Tell apart where this label holds and where not; else by the one label that
        holds.
    limit (int): The most documents, chosen at random but the same every time; 0 for all.
    RETURNS (Labelled): The documents, in their order.
    RAISES (ValueError): If there is no such file, fewer than two categories, or several labels hold
        at once.
    """
    references = [example.reference for example in BertCorpus(data)(spacy.blank("xx"))]
    labels = Counter(label for doc in references for label in doc.cats)
    known = ", ".join(labels) or "none at all"
    if by is not None and by not in labels:
        raise ValueError(f"No document of '{data}' has the label '{by}'. They have {known}.")
    docs, categories = [], []
    for doc in references:
        held = [label for label, value in doc.cats.items() if value >= 0.5]
        if by is not None:
            held = [by if by in held else f"not {by}"] if by in doc.cats else []
        if len(held) > 1:
            raise ValueError(
                f"Several labels hold of a document ({', '.join(held)}): '{doc.text[:80]}'. Name "
                "one to tell documents apart by: --by LABEL."
            )
        if held:
            docs.append(doc)
            categories += held
    if len(set(categories)) < 2:
        raise ValueError(
            f"The documents of '{data}' have to be of two categories at least, in doc.cats. "
            f"Labels: {known}; documents with one: {len(docs)} of {len(references)}."
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
    """Lay documents out in two dimensions.

    source (Source): The encoder.
    labelled (Labelled): The documents.
    layer (int): Whose states: 0 for the embeddings, 1 for the first layer, -1 for the last.
    method (str): "pca", or "tsne" (van der Maaten & Hinton 2008), which keeps neighbours together
        and distorts distances.
    RETURNS (MapView): The map.
    RAISES (ValueError): If there is no such layer or method.
    RAISES (ImportError): If "tsne" is asked for without scikit-learn.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method '{method}'. Choose one of: {', '.join(METHODS)}.")
    if not -source.depth - 1 <= layer <= source.depth:
        raise ValueError(
            f"There is no layer {layer}: '{source.name}' has 0, the embeddings, to {source.depth}, "
            f"and -1, the last, to {-source.depth - 1}."
        )
    (layer,) = source.bert.layer_numbers([layer])
    reduce = pca if method == "pca" else tsne
    vectors = encode_documents(source, labelled.docs, layer)
    points, axes = reduce(vectors)
    accuracy, chance = nearest_neighbour_accuracy(vectors, labelled.categories)
    return MapView(source.name, layer, source.depth, points, axes, accuracy, chance)


def encode_documents(source: Source, docs: Sequence[Doc], layer: int) -> Floats2d:
    """source (Source): The encoder.
    docs (Sequence[Doc]): Docs of any length.
    layer (int): Which layer.
    RETURNS (Floats2d): The mean of each Doc's states (n_docs, width), special tokens counted and
        windows averaged, as a category head with `pooling = "mean"` has it.
    """
    parts = []
    for start in range(0, len(docs), BATCH_DOCS):
        sequences = source.read(docs[start : start + BATCH_DOCS])
        states = encode_layers(source.bert, sequences, [layer])[:, 0]
        means = mean_by_group(mean_by_group(states, sequences.lengths), sequences.windows)
        parts.append(means.double().cpu().numpy())
    return np.concatenate(parts)


def pca(vectors: Floats2d) -> tuple[Floats2d, tuple[str, str]]:
    """Project on the two directions of the greatest variance (Pearson 1901).

    vectors (Floats2d): (n, width).
    RETURNS (Tuple[Floats2d, Tuple[str, str]]): Coordinates (n, 2), the same at every call, and what
        to call the axes.
    """
    left, values, right = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    # A component has no sign of its own; its largest weight is made positive.
    signs = np.sign(right[np.arange(2), np.abs(right[:2]).argmax(1)])
    first, second = values[:2] ** 2 / (values**2).sum()
    names = f"1st component, {first:.0%} of variance", f"2nd component, {second:.0%} of variance"
    return left[:, :2] * values[:2] * signs, names


def tsne(vectors: Floats2d) -> tuple[Floats2d, tuple[str, str]]:
    """As `pca`, by t-SNE.

    vectors (Floats2d): (n, width).
    RETURNS (Tuple[Floats2d, Tuple[str, str]]): As above.
    RAISES (ImportError): If scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            "t-SNE needs scikit-learn: pip install scikit-learn. PCA needs nothing."
        ) from error
    perplexity = min(30.0, (len(vectors) - 1) / 3)  # 30 is the method's own default
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)
    return points.astype(np.float64), ("t-SNE, 1st dimension", "t-SNE, 2nd dimension")


def nearest_neighbour_accuracy(vectors: Floats2d, categories: Sequence[str]) -> tuple[float, float]:
    """Say how well categories are apart, in all dimensions: the share of documents whose nearest
    other document has the same category (Cover & Hart 1967), by Euclidean distance.

    vectors (Floats2d): (n, width).
    categories (Sequence[str]): Of each (n,).
    RETURNS (Tuple[float, float]): The share, and what it is if the neighbour is any other document.
    """
    numbers = np.unique(list(categories), return_inverse=True)[1]
    # Centred, lest the squares that are subtracted be large.
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
