"""Settings of thinc models: those of the config override saved ones when a model is loaded."""

from typing import Any

import srsly
from thinc.api import Model
from thinc.model import deserialize_attr, serialize_attr


class Settings:
    """The attributes of a model that are set by its config.

    thinc saves all attributes of a model; loading overwrites those that the model was built with
    from its config. As the last attribute of a model, this one restores them.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


@serialize_attr.register(Settings)
def save_settings(_: Settings, value: Settings, name: str, model: Model) -> bytes:
    """Save an empty value, which only keeps the order of attributes."""
    return srsly.msgpack_dumps(None)


@deserialize_attr.register(Settings)
def load_settings(given: Settings, value: bytes, name: str, model: Model) -> Settings:
    """Restore the attributes from the config."""
    model.attrs.update(given.values)
    return given
