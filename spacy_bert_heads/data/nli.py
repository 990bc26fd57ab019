"""Natural language inference: pairs of a premise and a hypothesis, as SNLI, MNLI, SICK and GLUE
distribute them."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from spacy.tokens import Doc

from .annotations import make_doc, read_verdict
from .records import Refused, Settings, attempt, check_text, join_names, read_json
from .tables import find_columns, read_table, split_plain, split_quoted

MAX_HYPOTHESES = 32  # of one Doc


class Pair(NamedTuple):
    """A premise, and a hypothesis in the form that `read_hypotheses` takes."""

    line: int
    premise: str
    hypothesis: dict[str, str]


def read_nli_table(
    lines: Iterable[str], settings: Settings, *, delimiter: str, quoted: bool
) -> Iterator[Doc | Refused]:
    """Read a table of pairs with a header. SICK's and GLUE's are not quoted. The label's column may
    also be named `entailment_judgment` and the like."""
    rows = split_quoted(lines, delimiter) if quoted else split_plain(lines, delimiter)

    def read_pairs() -> Iterator[Pair | Refused]:
        for row in read_table(rows, settings.pair_names()):
            if isinstance(row, Refused):
                yield row
            else:
                yield attempt(row.line, make_pair, row.line, row.cells, settings)

    return group_pairs(read_pairs(), settings)


def read_nli_jsonl(lines: Iterable[str], settings: Settings) -> Iterator[Doc | Refused]:
    """Read one pair per line, as SNLI's and MNLI's `sentence1`, `sentence2`, `gold_label`."""

    def read_pair(number: int, line: str) -> Pair:
        record = read_json(line)
        names = settings.pair_names()
        keys = list(record)
        columns = find_columns(keys, names)
        if min(columns) < 0:
            raise ValueError(f"no keys for {join_names(names)}: {keys}")
        return make_pair(number, [record[keys[column]] for column in columns], settings)

    pairs = (
        attempt(number, read_pair, number, line)
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    return group_pairs(pairs, settings)


def make_pair(line: int, values: list[Any], settings: Settings) -> Pair:
    """Check a premise, a hypothesis and a label. Raises ValueError if one is missing."""
    premise, hypothesis, label = values
    premise = check_text("premise", premise, longest=settings.nlp.max_length)
    hypothesis = check_text("hypothesis", hypothesis)
    return Pair(line, premise, {"text": hypothesis, "label": read_verdict(label)})


def group_pairs(pairs: Iterable[Pair | Refused], settings: Settings) -> Iterator[Doc | Refused]:
    """Make one Doc of consecutive pairs with the same premise, at most MAX_HYPOTHESES of them, so
    that its text is stored once. A rejected pair among them does not end the group."""
    group: list[Pair] = []
    for pair in chain(pairs, [None]):
        if isinstance(pair, Refused):
            yield pair
            continue
        full = len(group) == MAX_HYPOTHESES
        if group and (full or pair is None or pair.premise != group[0].premise):
            line, premise, _ = group[0]
            hypotheses = [pair.hypothesis for pair in group]
            yield attempt(line, make_doc, premise, settings, hypotheses=hypotheses)
            group = []
        if pair is not None:
            group.append(pair)


def holds_pairs(header: list[str], settings: Settings) -> bool:
    """Tell pairs of texts from single texts by the names of columns or keys."""
    premise, hypothesis, _ = find_columns(header, settings.pair_names())
    return min(premise, hypothesis) >= 0 and settings.text_column not in header
