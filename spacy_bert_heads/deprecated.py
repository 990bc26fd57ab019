"""Names of version 0.1 that still work, with a warning, and are removed in 0.3."""

import warnings
from typing import Any

# Arguments of the registered architectures: the old name and the new one.
RENAMED = {"rate_factor": "learning_rate_multiplier"}


def warn_deprecated(old: str, new: str, *, stacklevel: int = 1) -> None:
    """Warn that `old` is deprecated in favour of `new`. `stacklevel` counts from the caller, as in
    `warnings.warn`; it must end in this package, whose commands show such warnings."""
    message = f"{old} is deprecated and will be removed in version 0.3. Use {new}."
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def resolve_renamed(old: str, *, old_value: Any, new_value: Any, default: Any) -> Any:
    """Return the value of a renamed argument, whichever of its two names it was passed by.

    spaCy fills in `default` for an argument that a config leaves out, so a `new_value` that equals
    it counts as not given. Raises ValueError if both names are given.
    """
    if old_value is None:
        return new_value
    new = RENAMED[old]
    if new_value != default:
        raise ValueError(
            f"{old} = {old_value} and {new} = {new_value} are both given. {old} is the old name of "
            f"{new}: remove it."
        )
    warn_deprecated(f"The setting {old}", new, stacklevel=2)
    return old_value


def rename_keys(config: dict[str, Any]) -> None:
    """Rename the old keys of our architectures in a config and all of its sections, in place.

    spaCy fills in null for an old key that is not used, which is removed.
    """
    is_ours = str(config.get("@architectures", "")).startswith("spacy_bert_heads.")
    for old, new in RENAMED.items() if is_ours else ():
        value = config.pop(old, None)
        if value is not None:
            config[new] = value
    for section in config.values():
        if isinstance(section, dict):
            rename_keys(section)
