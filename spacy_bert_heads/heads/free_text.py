"""Questions, hypotheses, categories and labels in the config, where users write what they like.

spaCy's config is a text format: confection interpolates "$" in values, doubles it whenever a loaded
config is saved, and gives "=", ":", "#", "@" and others a meaning in keys. A setting that the
format would change is therefore kept in it as a JSON document in a string, with \\u0024 for "$".
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
    """Read the labels that [initialize.components] has for a component, as `read_text` does."""
    where = f"initialize.components.{name}.labels"
    labels = parse(labels, where)
    if nlp is not None:
        components = nlp.config["initialize"].get("components", {})
        settings = components.get(name, {})
        if isinstance(settings.get("labels"), list):
            settings["labels"] = stored(settings["labels"], None, where=where)
    return labels


def parse(value: Any, where: str) -> Any:
    """Read a setting: the value itself, or a JSON document of it. `where` is its place in the
    config, for an error."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(
            f"{where} is the string {value[:80]!r}, which is no JSON. Give the list or dict, or "
            "spacy_bert_heads.heads.free_text.as_setting(…) of it."
        ) from None


def as_setting(value: Any) -> str:
    """Give what a config can have for free text, whatever is in it: a JSON document in a string.

    It is needed where spaCy's config reads a text before a component does: in overrides, as
    `spacy.load(…, config={"components.bert_qa.questions": as_setting(["Was ${sum} paid?"])})`, in
    config files and in [initialize.components]. The config of `nlp.add_pipe` takes texts as they
    are, but for keys that begin with "@".
    """
    document = json.dumps(value).replace("$", "\\u0024")
    return document.replace(SECTION_PREFIX, f"\\u005f{SECTION_PREFIX[1:]}")


def stored(value: Any, raw: Any, *, where: str) -> Any:
    """Give what the config is to have for a value. `raw` is what it has now, before variables are
    replaced; a setting that is a variable as a whole stays one."""
    if isinstance(raw, str) and VARIABLE_RE.fullmatch(raw):
        return raw
    if isinstance(raw, dict) and isinstance(value, dict) and raw.keys() != value.keys():
        changed = min(raw.keys() ^ value.keys(), key=lambda key: key in value)
        raise ValueError(
            f"{where} has the key {changed!r}, which the format of the config changes. Give "
            "spacy_bert_heads.heads.free_text.as_setting(…) of the dict instead."
        )
    return value if is_kept(value) else as_setting(value)


def is_kept(value: Any) -> bool:
    """Whether a config gives this value back as it is, by both ways of reading one."""
    keys = map(str, value) if isinstance(value, dict) else ()
    # "@" makes the name of a function; a file is read with other line breaks than it was written.
    if any(key.startswith("@") or not key.isprintable() for key in keys):
        return False
    config = Config({"section": {"setting": value}})
    try:
        text = config.to_str()
        return all(Config().from_str(text, interpolate=way) == config for way in (True, False))
    except Exception:  # whatever the format doesn't take, in any version of confection
        return False
