"""Check the annotations for a head: Docs and labels, entities, categories. Each function checks one
kind of fault, in one corpus unless it compares two."""

from __future__ import annotations

from collections import Counter

from spacy.training import Example

from ..heads.categories import distribution_of, may_have
from ..heads.head import BertHead
from ..heads.ner import BertNER
from ..heads.pair_head import BertPairHead
from ..heads.seq2seq import BertSeq2Seq, targets_of
from ..heads.textcat import BertTextCat
from .findings import Finding, Reading, Split, count_of, faults
from .pairs import entries_of

FEW = 10  # examples of a label


def is_annotated(head: BertHead, example: Example) -> bool:
    """Check whether an example is annotated for the head, correctly or not."""
    try:
        return head.has_gold(example)
    except ValueError:  # gold entries that don't match their texts: `check_entries` reports that
        return True


def count_labels(head: BertHead, split: Split) -> Counter[str]:
    """Count the examples of each label: entities, tokens, Docs of a category, verdicts."""
    counts: Counter[str] = Counter()
    for example in split.examples:
        if isinstance(head, BertTextCat):
            cats = own_categories(head, example)
            counts.update({label: int(value > 0.5) for label, value in cats.items()})
        elif isinstance(head, BertPairHead):
            entries = [entry for _, entry in entries_of(head, example)]
            counts.update(e["label"] for e in entries if isinstance(e, dict) and e.get("label"))
        else:
            counts.update(head.labels_of(example))
    return counts


def own_categories(head: BertTextCat, example: Example) -> dict[str, float]:
    """Return the gold categories of an example without those of the pipeline's other text
    classifiers."""
    cats = example.reference.cats
    return {label: value for label, value in cats.items() if may_have(head, label)}


def check_annotated(head: BertHead, split: Split, reading: Reading | None) -> list[Finding]:
    """Check whether a corpus has no annotations for the head, so it can't be trained or scored."""
    if not split.examples or any(is_annotated(head, example) for example in split.examples):
        return []
    in_train = split.name == "train"
    lost = "it can't be trained" if in_train else "training can't score it"
    return [
        Finding(
            "not_annotated",
            "error" if in_train else "warning",
            split.name,
            len(split.examples),
            f"no Doc is annotated for {head.name}, so {lost}",
            f"Set annotated data with --paths.{split.name}, or remove {head.name} from the "
            "pipeline",
        )
    ]


def check_labels(head: BertHead, train: Split, dev: Split) -> list[Finding]:
    """Find labels with few examples in train, labels that only one corpus has, and labels that a
    trained head doesn't have."""
    counts = count_labels(head, train)
    # `+` leaves out categories that are only annotated as not holding.
    in_train, in_dev = +counts, +count_labels(head, dev)
    # If a corpus has no annotations at all, `check_annotated` reports it.
    only_train = {label: n for label, n in in_train.items() if in_dev and label not in in_dev}
    only_dev = {label: n for label, n in in_dev.items() if in_train and label not in in_train}
    few = {label: n for label, n in counts.items() if n < FEW and label not in only_dev}
    unknown = {
        label: n for label, n in in_train.items() if head.labels and label not in head.labels
    }
    forms = Counter(map(plain, in_train))
    similar = {label: n for label, n in in_train.items() if forms[plain(label)] > 1}
    rows = [
        (
            ("few_examples", "train", few),
            f"with fewer than {FEW} examples",
            "Annotate more texts with it, or remove the label",
        ),
        (
            ("label_only_in_dev", "dev", only_dev),
            "not in train, so it can't be predicted",
            "Annotate it in train, or split the data again",
        ),
        (
            ("label_only_in_train", "train", only_train),
            "not in dev, so it isn't scored",
            "Annotate it in dev, or split the data again",
        ),
        (
            ("unknown_label", "train", unknown),
            f"that the trained {head.name} doesn't have and won't learn",
            f"Add it: nlp.get_pipe('{head.name}').add_label(…), then save and train further",
        ),
        (
            ("similar_labels", "train", similar),
            "that differ only in case or blanks",
            "Write them in the same way, if they mean the same",
        ),
    ]
    return [
        Finding(
            check,
            "warning",
            where,
            len(labels),
            f"{count_of(len(labels), 'label')} {reason}",
            fix,
            [
                f"{label if label.isprintable() else repr(label)} ({labels[label]:,})"
                for label in sorted(labels, key=lambda x: labels[x])
            ],
        )
        for (check, where, labels), reason, fix in rows
        if labels
    ]


def plain(label: str) -> str:
    """Return a label without differences of case and blanks."""
    return " ".join(label.casefold().split())


def check_contradictions(head: BertTextCat, split: Split, reading: Reading | None) -> list[Finding]:
    """Find texts that occur several times, with different categories."""
    given: dict[str, list[dict[str, float]]] = {}
    for example in split.examples:
        if cats := own_categories(head, example):
            given.setdefault(example.reference.text, []).append(cats)
    texts = []
    for text, rows in given.items():
        held = {label for row in rows for label, value in row.items() if value > 0.5}
        differs = any(row.get(label, 1.0) <= 0.5 for label in held for row in rows)
        several = len(held) > 1 and not head.multi_label
        if len(rows) > 1 and (several or differs):
            texts.append(text)
    return faults(
        "contradiction",
        "warning",
        split.name,
        texts,
        f"{count_of(len(texts), 'text')} with different categories in several Docs",
        "Keep the right one of them",
    )


def check_entity_borders(head: BertNER, split: Split, reading: Reading | None) -> list[Finding]:
    """Find entities that start or end with white space, or consist only of it."""
    texts = [ent.text for eg in split.examples for ent in eg.reference.ents]
    texts = [text for text in texts if text != text.strip()]
    return faults(
        "entity_spaces",
        "error",
        split.name,
        texts,
        f"{count_of(len(texts), 'entity', 'entities')} with white space at a border",
        "Move the offsets so that the entity starts and ends with a word",
    )


def check_entity_tokens(head: BertNER, split: Split, reading: Reading | None) -> list[Finding]:
    """Find entities that are not aligned with the tokens of the pipeline's tokenizer."""
    texts = [
        ent.text
        for example in split.examples
        for ent in example.reference.ents
        if ent.text == ent.text.strip() and not example.get_aligned_spans_y2x([ent])
    ]
    return faults(
        "entity_tokens",
        "warning",
        split.name,
        texts,
        f"{count_of(len(texts), 'entity', 'entities')} not made of whole tokens, skipped",
        "Convert the data with the tokenizer of the pipeline (`bert convert --lang`), move the "
        "offsets, or change [nlp.tokenizer]",
    )


def check_category_values(
    head: BertTextCat, split: Split, reading: Reading | None
) -> list[Finding]:
    """Find category values other than 0 and 1: an error outside of this range, a warning
    between."""
    values = [
        (f"{label} {value:g}", 0 < value < 1)
        for example in split.examples
        for label, value in own_categories(head, example).items()
        if value not in (0, 1)
    ]
    fix = "Set 1.0 for a category that applies and 0.0 for one that doesn't"
    found = []
    for level, within, where in (
        ("error", False, "outside of 0 to 1"),
        ("warning", True, "between 0 and 1"),
    ):
        rows = [value for value, is_within in values if is_within == within]
        message = f"{count_of(len(rows), 'value')} of categories {where}"
        found += faults("category_value", level, split.name, rows, message, fix)
    return found


def check_exclusive(head: BertTextCat, split: Split, reading: Reading | None) -> list[Finding]:
    """Find Docs that don't have exactly one positive category, for a head that chooses one."""
    rows = [(eg.reference.text, own_categories(head, eg)) for eg in split.examples]
    several = [text for text, cats in rows if sum(v > 0.5 for v in cats.values()) > 1]
    none = [text for text, cats in rows if cats and not distribution_of(cats)]
    return [
        *faults(
            "several_categories",
            "error",
            split.name,
            several,
            f"{count_of(len(several), 'Doc')} with several categories; {head.name} chooses one",
            "Keep one of them, or use bert_textcat_multilabel",
        ),
        *faults(
            "no_category",
            "warning",
            split.name,
            none,
            f"{count_of(len(none), 'Doc')} without a positive category, skipped in training",
            "Set one to 1.0, add a category for all others, or use bert_textcat_multilabel",
        ),
    ]


def check_targets(head: BertHead, split: Split, reading: Reading | None) -> list[Finding]:
    """Find targets of a `bert_seq2seq` that are longer than its `max_length`."""
    assert isinstance(head, BertSeq2Seq)
    texts = [text for eg in split.examples for text in targets_of(eg.reference)]
    if reading is None or not texts:
        return []
    lengths = (reading.tokenizer(texts).lengths + 1).tolist()  # with the end of the text
    cut = [text for text, n in zip(texts, lengths, strict=True) if n > head.max_length]
    return faults(
        "target_too_long",
        "warning",
        split.name,
        cut,
        f"{count_of(len(cut), 'target')} with more than {head.max_length - 1} wordpieces: the rest "
        "is not learned, and can't be written",
        f"Set max_length = {max(lengths)} in [components.{head.name}]",
    )
