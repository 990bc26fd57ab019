"""Configs of spaCy and spacy-transformers with our encoder put in."""

import warnings

import pytest
import spacy
from commands import run
from conftest import TRAIN_DATA
from spacy.cli.init_config import init_config
from spacy.schemas import ConfigSchemaTraining
from spacy.training import Example
from spacy.util import load_model_from_config, registry
from thinc.api import Config

from spacy_bert_heads.adapt_config import adapt_config

LISTENER = "spacy_bert_heads.Tok2VecListener.v1"
# What `spacy init config --gpu` writes where spacy-transformers is installed, with more settings.
TRANSFORMER = """
[paths]
train = null
dev = null
vectors = null
checkpoint = "{checkpoint}"

[system]
gpu_allocator = "pytorch"

[nlp]
lang = "en"
pipeline = ["sentencizer","transformer","tagger","parser","ner","textcat","spancat"]
batch_size = 128

[components]

[components.sentencizer]
factory = "sentencizer"

[components.transformer]
factory = "transformer"

[components.transformer.model]
@architectures = "spacy-transformers.TransformerModel.v3"
name = ${{paths.checkpoint}}
tokenizer_config = {{"use_fast": true}}

[components.transformer.model.get_spans]
@span_getters = "spacy-transformers.strided_spans.v1"
window = 128
stride = 96

[components.tagger]
factory = "tagger"

[components.tagger.model]
@architectures = "spacy.Tagger.v2"
nO = null
TOK2VEC

[components.parser]
factory = "parser"
min_action_freq = 1

[components.parser.model]
@architectures = "spacy.TransitionBasedParser.v2"
state_type = "parser"
extra_state_tokens = false
hidden_width = 128
maxout_pieces = 3
use_upper = false
nO = null
TOK2VEC

[components.ner]
factory = "ner"

[components.ner.model]
@architectures = "spacy.TransitionBasedParser.v2"
state_type = "ner"
extra_state_tokens = false
hidden_width = 64
maxout_pieces = 2
use_upper = false
nO = null
TOK2VEC

[components.textcat]
factory = "textcat"

[components.textcat.model]
@architectures = "spacy.TextCatEnsemble.v2"
nO = null
TOK2VEC

[components.textcat.model.linear_model]
@architectures = "spacy.TextCatBOW.v3"
exclusive_classes = true

[components.spancat]
factory = "spancat"

[components.spancat.model]
@architectures = "spacy.SpanCategorizer.v1"

[components.spancat.model.reducer]
@layers = "spacy.mean_max_reducer.v1"
hidden_size = 16

[components.spancat.model.scorer]
@layers = "spacy.LinearLogistic.v1"
nO = null
nI = null
TOK2VEC

[corpora]

[corpora.train]
@readers = "spacy.Corpus.v1"
path = ${{paths.train}}

[corpora.dev]
@readers = "spacy.Corpus.v1"
path = ${{paths.dev}}

[training]
accumulate_gradient = 3
frozen_components = ["transformer"]
annotating_components = ["transformer","sentencizer"]

[training.before_to_disk]
@callbacks = "spacy.copy_from_base_model.v1"
vocab = "somewhere"

[training.optimizer]
@optimizers = "Adam.v1"
L2 = 0.02

[training.optimizer.learn_rate]
@schedules = "warmup_linear.v1"
warmup_steps = 250
total_steps = 20000
initial_rate = 5e-5

[training.batcher]
@batchers = "spacy.batch_by_padded.v1"
discard_oversize = true
size = 2000
buffer = 256

[initialize]
vectors = ${{paths.vectors}}

[initialize.components]

[initialize.components.transformer]
"""


def transformer_config(checkpoint: str) -> str:
    """The config, with a listener in each component."""
    text, section = "", ""
    for line in TRANSFORMER.format(checkpoint=checkpoint).splitlines():
        if line.startswith("[components.") and line.count(".") < 3:
            section = line.strip("[]").removesuffix(".model")
        if line == "TOK2VEC":
            text += f"\n[{section}.model.tok2vec]\n"
            text += '@architectures = "spacy-transformers.TransformerListener.v1"\n'
            text += f"grad_factor = 0.5\n\n[{section}.model.tok2vec.pooling]\n"
            line = '@layers = "reduce_mean.v1"'
        text += f"{line}\n"
    return text


def make_examples(nlp) -> list[Example]:
    heads, deps = [[1, 2, 2, 2, 2, 4], [1, 2, 2, 2, 3]], ("nsubj", "ROOT", "obj")
    examples = []
    for (text, gold), parents in zip(TRAIN_DATA, heads, strict=True):
        labels = [deps[1] if i == head else deps[i % 2 * 2] for i, head in enumerate(parents)]
        spans = {"sc": [(start, end, label) for start, end, label in gold["entities"]]}
        more = {"heads": parents, "deps": labels, "spans": spans}
        examples.append(Example.from_dict(nlp.make_doc(text), {**gold, **more}))
    return examples


def train(config: Config) -> spacy.Language:
    """With larger learning rates: a random encoder needs them, and there are few steps."""
    rates = config["training"]["optimizer"]["learn_rate"]
    config["training"]["max_steps"], rates["initial_rate"], rates["warmup_steps"] = 100, 0.01, 5
    config["components"]["bert_encoder"]["model"] |= {
        "learning_rate_multiplier": 0.3, "window": 64, "stride": 48
    }  # fmt: skip
    config["training"]["frozen_components"] = []
    config["components"]["parser"]["min_action_freq"] = 1
    nlp = load_model_from_config(config, auto_fill=True)
    settings = nlp.config.interpolate()["training"]["optimizer"]
    optimizer = registry.resolve({"optimizer": settings})["optimizer"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A learning rate")
        nlp.initialize(lambda: make_examples(nlp), sgd=optimizer)
        for _ in range(60):
            nlp.update(make_examples(nlp), sgd=optimizer)
            optimizer.step_schedules()
    return nlp


def check_knows(nlp) -> None:
    for (text, gold), example in zip(TRAIN_DATA, make_examples(nlp), strict=True):
        doc = nlp(text)
        assert [token.tag_ for token in doc] == gold["tags"]
        assert [(e.start_char, e.end_char, e.label_) for e in doc.ents] == gold["entities"]
        assert [token.head.i for token in doc] == [t.head.i for t in example.reference]


@pytest.mark.parametrize("optimize", ["efficiency", "accuracy"])
def test_a_config_of_spacys_init_config(optimize, checkpoint, tmp_path):
    names = ["tagger", "parser", "ner", "textcat"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vectors that are not installed
        before = init_config(lang="en", pipeline=names, optimize=optimize)
    before["training"]["optimizer"]["use_averages"] = True
    before.to_disk(tmp_path / "spacy.cfg")
    output = tmp_path / "adapted.cfg"
    result = run("init-config", output, "--adapt", tmp_path / "spacy.cfg", "--name", checkpoint)
    assert result.exit_code == 0, result.output
    config = Config().from_disk(output, interpolate=False)
    assert config["nlp"]["pipeline"] == ["bert_encoder", *names]
    assert config["initialize"]["vectors"] == before["initialize"]["vectors"]
    encoder = config["components"]["bert_encoder"]["model"]
    assert (encoder["name"], encoder["learning_rate_multiplier"]) == (checkpoint, 0.1)
    assert encoder["max_batch_tokens"] == 4096
    listeners = [config["components"][name]["model"].get("tok2vec") for name in names]
    if optimize == "efficiency":  # spaCy's text classifier reads no vectors there
        assert listeners.pop() is None
    assert {one["@architectures"] for one in listeners} == {LISTENER}
    optimizer = config["training"]["optimizer"]
    assert optimizer["use_averages"] is False
    assert optimizer["learn_rate"] == {
        "@schedules": "spacy_bert_heads.warmup_linear.v1",
        "initial_rate": 1e-3,
        "warmup_steps": 200,
        "total_steps": "${training.max_steps}",
    }
    assert config["training"]["batcher"] == before["training"]["batcher"]
    if optimize == "efficiency":
        check_knows(train(config))


def test_a_config_of_spacy_transformers(checkpoint, tmp_path):
    file = tmp_path / "trf.cfg"
    file.write_text(transformer_config(checkpoint))
    config = adapt_config(file)
    names = ["sentencizer", "bert_encoder", "tagger", "parser", "ner", "textcat", "spancat"]
    assert config["nlp"]["pipeline"] == names
    assert "transformer" not in config.to_str().replace("spacy.copy_from_base_model", "")
    encoder = config["components"]["bert_encoder"]["model"]
    assert (encoder["name"], encoder["learning_rate_multiplier"]) == ("${paths.checkpoint}", 0.1)
    assert encoder["max_batch_tokens"] == 32768  # as it is for a GPU
    for name in names[2:]:
        assert config["components"][name]["model"]["tok2vec"] == {
            "@architectures": LISTENER,
            "upstream": "*",
            "grad_factor": 0.5,
            "layers": [-1],
            "combine": "concat",
        }
    training = config["training"]
    assert training["frozen_components"] == ["bert_encoder"]
    assert training["annotating_components"] == ["sentencizer"]
    assert (training["accumulate_gradient"], training["optimizer"]["L2"]) == (3, 0.02)
    assert training["optimizer"]["learn_rate"]["warmup_steps"] == 250
    assert training["before_to_disk"]["vocab"] == "somewhere"
    assert training["batcher"]["@batchers"] == "spacy.batch_by_padded.v1"
    resolved = config.interpolate()["training"]
    resolved["before_to_disk"] = None
    registry.resolve(resolved, schema=ConfigSchemaTraining, validate=True)
    assert (
        adapt_config(file, name="other")["components"]["bert_encoder"]["model"]["name"] == "other"
    )
    config["training"]["before_to_disk"] = None
    check_knows(train(config))


def test_components_with_layers_of_their_own(checkpoint, tmp_path):
    """As spaCy's defaults are: each has token vectors for itself."""
    nlp = spacy.blank("en")
    for name in ("sentencizer", "tagger", "ner"):
        nlp.add_pipe(name)
    config = Config(nlp.config)
    config["nlp"]["pipeline"] = ["sentencizer", "ner", "tagger"]  # not in the order of the sections
    config.to_disk(tmp_path / "own.cfg")
    config = adapt_config(tmp_path / "own.cfg", name=checkpoint)
    assert config["nlp"]["pipeline"] == ["sentencizer", "bert_encoder", "ner", "tagger"]
    assert "HashEmbed" not in config.to_str()


def test_steps_of_a_short_training(tmp_path):
    config = init_config(lang="en", pipeline=["tagger"])
    config["training"]["max_steps"] = 500
    config.to_disk(tmp_path / "short.cfg")
    adapted = adapt_config(tmp_path / "short.cfg")
    assert adapted["training"]["optimizer"]["learn_rate"]["warmup_steps"] == 50
    assert adapted["components"]["bert_encoder"]["model"]["name"] == "bert-base-uncased"


# --- what can't be adapted


def adapt_text(text: str, folder) -> Config:
    (folder / "some.cfg").write_text(text)
    return adapt_config(folder / "some.cfg")


def test_nothing_to_replace(tmp_path):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    with pytest.raises(ValueError, match=r"its components \(sentencizer\) read no token vectors"):
        adapt_text(nlp.config.to_str(), tmp_path)


def test_a_transformer_without_a_name(tmp_path):
    text = transformer_config("x").replace("name = ${paths.checkpoint}", "name = null")
    with pytest.raises(ValueError, match="doesn't name the checkpoint of 'transformer'"):
        adapt_text(text, tmp_path)
    # spacy-curated-transformers names it where it is loaded.
    loader = '[initialize.components.transformer.encoder_loader]\nname = "roberta-base"\n'
    config = adapt_text(text + loader, tmp_path)
    assert config["components"]["bert_encoder"]["model"]["name"] == "roberta-base"


def test_a_setting_that_refers_to_what_is_replaced(tmp_path):
    text = init_config(lang="en", pipeline=["tagger"]).to_str()
    width = "nO = ${components.tok2vec.model.encode.width}"
    text = text.replace(
        '@architectures = "spacy.Tagger.v2"\nnO = null',
        f'@architectures = "spacy.Tagger.v2"\n{width}',
    )
    with pytest.raises(ValueError, match=r"'nO = .*' under \[components.tagger.model\]"):
        adapt_text(text, tmp_path)


def test_a_sourced_component_that_reads_what_is_replaced(tmp_path):
    nlp = load_model_from_config(init_config(lang="en", pipeline=["tagger", "ner"]))
    nlp.initialize(lambda: make_examples(nlp))
    nlp.to_disk(tmp_path / "trained")
    config = Config(nlp.config)
    config["components"]["tagger"] = {"source": str(tmp_path / "trained")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="takes 'tagger' from a trained pipeline"):
            adapt_text(config.to_str(), tmp_path)
        config["components"]["tagger"]["replace_listeners"] = ["model.tok2vec"]
        adapted = adapt_text(config.to_str(), tmp_path)
    assert adapted["components"]["tagger"] == config["components"]["tagger"]
