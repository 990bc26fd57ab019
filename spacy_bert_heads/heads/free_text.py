"""Free text in the config: questions, hypotheses, categories and labels.

spaCy's config is a text format. confection interpolates "$" in values and doubles it whenever a
loaded config is saved; "=", ":", "#", "@" and others have a meaning in keys. A setting that the
format would change is therefore stored as JSON in a string, with \\u0024 for "$".
"""

import json
from typing import Any

from confection import SECTION_PREFIX, VARIABLE_RE, Config
from spacy.language import Language

from ..pipe_configs import pipe_configs_of


def read_text(nlp: Language, name: str, **settings: Any) -> list[Any]:
    """Read settings with free text, for the factory of the component `name`.

    The pipeline's config stores them so that they are the same when it is read again. Returns the
    values in the order of `settings`. Raises ValueError if a string is not JSON.
    """
    values = {key: parse(value, f"components.{name}.{key}") for key, value in settings.items()}

    def store(config: Config) -> None:
        for key, value in values.items():
            config[key] = stored(value, config.get(key), where=f"components.{name}.{key}")

    pipe_configs_of(nlp).edits[name] = store
    return list(values.values())


def parse_labels(nlp: Language | None, name: str, labels: Any) -> Any:
    """Read a component's labels in [initialize.components], as `read_text` does."""
    where = f"initialize.components.{name}.labels"
    labels = parse(labels, where)
    if nlp is not None:
        components = nlp.config["initialize"].get("components", {})
        settings = components.get(name, {})
        if isinstance(settings.get("labels"), list):
            settings["labels"] = stored(settings["labels"], None, where=where)
    return labels


def parse(value: Any, where: str) -> Any:
    """Read a setting: the value itself, or JSON of it in a string. `where` is its place in the
    config, for error messages."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(
            f"{where} is the string {value[:80]!r}, which is not JSON. Set it to the list or dict, "
            "or to spacy_bert_heads.heads.free_text.as_setting(…) of it."
        ) from None


def as_setting(value: Any) -> str:
    """Encode free text for a config: as JSON in a string, which no config format changes.

    Use it wherever spaCy's config parser reads a text before the component does: in overrides,
    `spacy.load(…, config={"components.bert_qa.questions": as_setting(["Was ${sum} paid?"])})`, in
    config files and in [initialize.components]. The `config` of `nlp.add_pipe` can have texts as
    they are, except for keys that begin with "@".
    """
    document = json.dumps(value).replace("$", "\\u0024")
    return document.replace(SECTION_PREFIX, f"\\u005f{SECTION_PREFIX[1:]}")


def stored(value: Any, raw: Any, *, where: str) -> Any:
    """Return the form in which the config stores a value. `raw` is the setting before variables are
    interpolated; a setting that is just a variable is not changed."""
    if isinstance(raw, str) and VARIABLE_RE.fullmatch(raw):
        return raw
    if isinstance(raw, dict) and isinstance(value, dict) and raw.keys() != value.keys():
        changed = min(raw.keys() ^ value.keys(), key=lambda key: key in value)
        raise ValueError(
            f"{where} has the key {changed!r}, which the format of the config changes. Set it to "
            "spacy_bert_heads.heads.free_text.as_setting(…) of the dict instead."
        )
    return value if is_kept(value) else as_setting(value)


def is_kept(value: Any) -> bool:
    """Return whether a config keeps this value as it is, read with and without interpolation."""
    keys = map(str, value) if isinstance(value, dict) else ()
    # "@" marks a registered function; line breaks of keys change when a file is read.
    if any(key.startswith("@") or not key.isprintable() for key in keys):
        return False
    config = Config({"section": {"setting": value}})
    try:
        text = config.to_str()
        return all(Config().from_str(text, interpolate=way) == config for way in (True, False))
    except Exception:  # whatever the format doesn't take, in any version of confection
        return False
