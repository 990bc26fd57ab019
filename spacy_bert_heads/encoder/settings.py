"""Settings of thinc models: those of the config stay in force when a saved model is loaded."""

from typing import Any

import srsly
from thinc.api import Model
from thinc.model import deserialize_attr, serialize_attr


class Settings:
    """The attributes of a model that come from its config.

    thinc saves all attributes of a model, and loads them over those of the config that the model
    was just built from. As the last attribute of a model, this puts them back.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


@serialize_attr.register(Settings)
def save_settings(_: Settings, value: Settings, name: str, model: Model) -> bytes:
    """Save nothing of them but the place in the order."""
    return srsly.msgpack_dumps(None)


@deserialize_attr.register(Settings)
def load_settings(given: Settings, value: bytes, name: str, model: Model) -> Settings:
    """Put back what the config gave."""
    model.attrs.update(given.values)
    return given
