"""How far two languages are from each other in an encoder, layer by layer, by texts that are
translations of each other (Pires et al. 2019, section 5; Libovický et al. 2019, section 3)."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from spacy.tokens import DocBin
from wasabi import table

from spacy_bert_heads.inspection.map import encode_documents
from spacy_bert_heads.inspection.source import Floats2d, Source, open_source


def main(
    encoder: Annotated[str, typer.Argument(help="A pipeline, or a checkpoint")],
    first: Annotated[Path, typer.Argument(help="Texts, a .spacy file")],
    second: Annotated[Path, typer.Argument(help="Their translations, in the same order")],
    langs: Annotated[str, typer.Option(help="The languages of both")] = "en,de",
) -> None:
    """Print, for each layer, how well a text finds its translation: the mean reciprocal rank of the
    right one among all, by the cosine of mean hidden states, as they are and with each language's
    mean subtracted; and how far these means are apart, in standard deviations of the texts.

    If the middle column is much higher than the first, what tells the languages apart is little
    more than a shift.
    """
    sides = [
        read(open_source(encoder, lang=lang), path)
        for lang, path in zip(langs.split(","), (first, second), strict=True)
    ]
    if len(sides[0][0]) != len(sides[1][0]):
        numbers = " and ".join(str(len(layers[0])) for layers in sides)
        raise SystemExit(f"{first} and {second} have {numbers} texts. Give translations in order.")
    rows = [
        (
            str(layer),
            f"{mean_reciprocal_rank(a, b):.3f}",
            f"{mean_reciprocal_rank(a - a.mean(0), b - b.mean(0)):.3f}",
            f"{shift(a, b):.2f}",
        )
        for layer, (a, b) in enumerate(zip(*sides, strict=True))
    ]
    header = ("layer", "MRR", "MRR, centred", "shift")
    print(f"{len(sides[0][0])} texts; by chance the MRR is {chance(len(sides[0][0])):.3f}")
    print(table(rows, header=header, divider=True, aligns=("r", "r", "r", "r")))


def read(source: Source, path: Path) -> list[Floats2d]:
    """Give the texts' mean hidden states (n_texts, width) of each layer; layer 0 is that of the
    embeddings."""
    docs = list(DocBin().from_disk(path).get_docs(source.nlp.vocab))
    found = encode_documents(source, docs, range(source.depth + 1))
    return list(found.swapaxes(0, 1))


def mean_reciprocal_rank(queries: Floats2d, targets: Floats2d) -> float:
    """Find target i by query i, by the cosine. Ties count against it."""
    a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (queries, targets))
    cosines = a @ b.T
    ranks = (cosines >= cosines.diagonal()[:, None]).sum(1)
    return float((1 / ranks).mean())


def chance(num_texts: int) -> float:
    """The expected reciprocal rank in a random order."""
    return float((1 / np.arange(1, num_texts + 1)).mean())


def shift(first: Floats2d, second: Floats2d) -> float:
    """The distance of two languages' means, divided by the root mean square distance of a text from
    the mean of its language."""
    spreads = [((side - side.mean(0)) ** 2).sum(1).mean() for side in (first, second)]
    return float(np.linalg.norm(first.mean(0) - second.mean(0)) / np.sqrt(np.mean(spreads)))


if __name__ == "__main__":
    typer.run(main)
