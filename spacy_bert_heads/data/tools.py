"""Read records of annotation tools that need special rules: Prodigy's answers and Label Studio's
tasks. doccano's exports are ordinary rows."""

from typing import Any

from .columns import Cells, find_column, list_columns
from .records import Record, check_list, check_text

ANSWERS = ("accept", "reject", "ignore")
NER_VIEWS = ("ner", "ner_manual", "spans", "spans_manual", "blocks", "relations")
TAG_VIEWS = ("pos", "pos_manual")
CATEGORIES = ("choices", "taxonomy")  # types of Label Studio's controls


# --- Prodigy


def is_prodigy(columns: dict[str, Any]) -> bool:
    """Check whether a record was answered in Prodigy."""
    return columns.get("answer") in ANSWERS


def read_answered(cells: Cells) -> dict[str, Any]:
    """Return the annotations of an answered record: categories from `options` or from a `label`
    that was accepted or rejected, entities from `spans`.

    Prodigy omits `spans` if there are none. A single rejected span is negative (its label gets a
    "!"), and the rest of the text is unannotated. Raises ValueError for a record that was ignored,
    or rejected as a whole.
    """
    answer = cells.take("answer")
    if answer == "ignore":
        raise ValueError("ignored in Prodigy")
    accepted = answer == "accept"
    view = cells.row.cells.get("_view_id")
    if view in TAG_VIEWS:
        raise ValueError(
            "spans of Prodigy are tags, convert them with prodigy data-to-spacy --tagger"
        )
    values: dict[str, Any] = {}
    if "options" in cells or "accept" in cells:
        values["label"] = read_choice(cells)
    elif isinstance(cells.row.cells.get("label"), str | int) and view not in NER_VIEWS:
        label = check_text("label", cells.take_label("label"))
        # If any were rejected, labels were asked one by one, so other labels are unknown.
        values["label"] = {label: float(accepted)} if cells.facts.rejects else label
        if "spans" in cells and (view == "classification" or not accepted):
            cells.take("spans")  # matches of patterns, not annotations
            return values
    spans = cells.row.cells.get("spans")
    if spans is None and leaves_out_spans(cells, view):
        spans = []
    if spans is not None:
        spans = check_list("spans", cells.take("spans"))
        binary = view == "ner" or (view is None and not accepted and len(spans) == 1)
        if binary:
            marked = spans if accepted else [negate(span) for span in spans]
            values["spans"] = {"spans": marked, "complete": False}
            return values
        values["spans"] = spans
    is_binary = isinstance(values.get("label"), dict) and "options" not in cells
    if not accepted and not is_binary:
        raise ValueError("rejected in Prodigy")
    return values


def leaves_out_spans(cells: Cells, view: Any) -> bool:
    """Check whether a record without spans was annotated for entities and has none."""
    if view in NER_VIEWS:
        return view != "blocks" or "tokens" in cells
    others = ("label", "labels", "cats", "options", "accept")
    is_other = any(key in cells for key in others)
    return not is_other and ("tokens" in cells or "spans" in cells.facts.spans)


def read_choice(cells: Cells) -> dict[str, float] | list[Any]:
    """Return the options as categories with 0 or 1, or the accepted ones if options are missing."""
    chosen = {str(one) for one in check_list("accept", cells.take("accept"))}
    options = check_list("options", cells.take("options"))
    if not options:
        return sorted(chosen)
    names = [str(one.get("id")) for one in options if isinstance(one, dict)]
    return {check_text("label", name): float(name in chosen) for name in names}


def negate(span: Any) -> Any:
    """Mark a span as negative for its label, by a "!" before the label."""
    if not isinstance(span, dict) or "label" not in span:
        return span
    return {**span, "label": f"!{span['label']}"}


# --- Label Studio


def is_task(columns: dict[str, Any]) -> bool:
    """Check whether an object is a task of Label Studio's JSON export."""
    done = columns.get("annotations", columns.get("completions"))
    return isinstance(columns.get("data"), dict) and isinstance(done, list)


def list_results(annotation: Any) -> list[dict[str, Any]]:
    """Return the results of an annotation."""
    results = annotation.get("result") if isinstance(annotation, dict) else None
    return [one for one in results or () if isinstance(one, dict)]


def is_of_region(result: dict[str, Any]) -> bool:
    """Check whether a result describes a span of the text, without being one."""
    value = result.get("value")
    return result.get("type") != "labels" and isinstance(value, dict) and "start" in value


def list_controls(columns: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the types and names of a task's controls, derived from its results."""
    done = columns.get("annotations", columns.get("completions"))
    return {
        (str(one.get("type")), str(one.get("from_name")))
        for annotation in done or ()
        for one in list_results(annotation)
        if not is_of_region(one)
    }


def choose_categories(cells: Cells) -> set[str]:
    """Return the name of the control whose categories are read, empty if there is none. Raises
    ValueError if there are several, and the user named none."""
    names = {name for kind, name in cells.facts.controls if kind in CATEGORIES}
    if len(names) < 2:
        return names
    if cells.options.label_column not in names:
        raise ValueError(
            "several controls with categories, name one with --label-column: "
            f"{', '.join(sorted(names))}"
        )
    return {cells.options.label_column}


def read_task(cells: Cells) -> Record:
    """Read the annotation of a task that is marked as ground truth, otherwise the first one."""
    data = cells.take("data")
    done = [*(cells.take("annotations") or ()), *(cells.take("completions") or ())]
    done = [one for one in done if isinstance(one, dict) and not one.get("was_cancelled")]
    if not done:
        raise ValueError("not annotated or skipped in Label Studio")
    texts = [key for key, value in data.items() if isinstance(value, str)]
    column = find_column(data, "text", cells.options.text_column)
    if column is None and len(texts) != 1:
        raise ValueError(f"no key for the text, name it with --text-column: {list_columns(data)}")
    record = Record(cells.row.where, data[column or texts[0]])
    if len(done) > 1:
        record.notes.add("tasks with several annotations, only one was read")
    chosen = next((one for one in done if one.get("ground_truth")), done[0])
    spans, categories, numbers = [], [], {}
    names = choose_categories(cells)
    for one in list_results(chosen):
        kind, name, value = str(one.get("type")), str(one.get("from_name")), one.get("value")
        if not isinstance(value, dict):
            record.notes.add(f"results of Label Studio that were not read: {kind}")
        elif is_of_region(one):
            record.notes.add(f"results of Label Studio that were not read: {kind} of a span")
        elif kind in CATEGORIES and name not in names:
            record.notes.add(f"results of Label Studio that were not read: {kind} {name}")
        elif kind == "labels":
            place = {key: value.get(key) for key in ("start", "end", "text")}
            spans += [place | {"label": label} for label in value.get("labels") or ()]
        elif kind == "choices":
            categories += check_list("choices", value.get("choices"))
        elif kind == "taxonomy":
            paths = check_list("taxonomy", value.get("taxonomy"))
            categories += ["/".join(map(str, path)) for path in paths]
        elif kind in ("rating", "number"):
            numbers[name] = value.get(kind)
        else:
            record.notes.add(f"results of Label Studio that were not read: {kind}")
    if spans or any(kind == "labels" for kind, _ in cells.facts.controls):
        record.values["spans"] = spans
    if names:
        record.values["label"] = categories
    if numbers:
        record.values["regression"] = numbers
    return record
