"""The components' configs as a pipeline saves them."""

from collections.abc import Callable, Mapping

from confection import Config
from spacy.language import Language

from .deprecated import rename_keys


class PipeConfigs(dict[str, Config]):
    """The configs of a pipeline's components, in place of the dict that spaCy keeps them in.

    spaCy stores a component's config after its factory has run, as the user wrote it. Here renamed
    keys are stored under their new names. `edits` has functions that change the config of a
    component, by its name; each is called once, when the config is stored.
    """

    def __init__(self, configs: Mapping[str, Config]) -> None:
        super().__init__()
        self.edits: dict[str, Callable[[Config], None]] = {}
        for name, config in configs.items():
            self[name] = config

    def __setitem__(self, name: str, config: Config) -> None:
        edit = self.edits.pop(name, None)
        if edit is not None:
            edit(config)
        rename_keys(config)
        super().__setitem__(name, config)

    def __reduce__(self) -> tuple:
        return PipeConfigs, (dict(self),)


def pipe_configs_of(nlp: Language) -> PipeConfigs:
    """Return the configs of a pipeline's components. The first call replaces spaCy's dict."""
    if not isinstance(nlp._pipe_configs, PipeConfigs):
        nlp._pipe_configs = PipeConfigs(nlp._pipe_configs)
    return nlp._pipe_configs
