"""Settings of thinc models: those of the config override saved ones when a model is loaded."""

from typing import Any

import srsly
from thinc.api import Model
from thinc.model import deserialize_attr, serialize_attr

# What the weights have learned with.
FIXED = ("pooling", "lstm_width", "words", "layers", "combine")


class Settings:
    """The attributes of a model that are set by its config.

    thinc saves all attributes of a model; loading overwrites those that the model was built with
    from its config. As the last attribute of a model, this one restores them.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


@serialize_attr.register(Settings)
def save_settings(_: Settings, value: Settings, name: str, model: Model) -> bytes:
    """Save the settings that must not change."""
    return srsly.msgpack_dumps({key: value.values[key] for key in FIXED if key in value.values})


@deserialize_attr.register(Settings)
def load_settings(given: Settings, value: bytes, name: str, model: Model) -> Settings:
    """Restore the attributes from the config. Raises ValueError if a setting differs that must
    not change."""
    saved = srsly.msgpack_loads(value) or {}  # None in older pipelines
    for key in saved.keys() & given.values.keys():
        old, new = (srsly.json_dumps(one[key]) for one in (saved, given.values))
        if old != new:
            raise ValueError(
                f"The weights were trained with {key} = {old}, so they can't be loaded with {new}. "
                "Leave the setting as it was, or train again with the new one."
            )
    model.attrs.update(given.values)
    return given
