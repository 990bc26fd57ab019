"""Define `python -m spacy bert …`: thin commands over plain functions.

spaCy imports this package before each of its own commands. So the modules of this package import
only typer and spaCy's command line; a command imports everything else when it runs.
"""

import io
import sys
import warnings

import typer
from spacy.cli._util import app

from .annotate import annotate_command
from .calibrate import calibrate_command, tune_thresholds_command
from .common import BertGroup
from .compare import compare_command
from .data import convert_command, init_config_command
from .debug_data import debug_data_command
from .distill import distill_command
from .evaluate import evaluate_command
from .glue import glue_command
from .hugging_face import from_hf_command, to_hf_command, to_onnx_command
from .inspect import (
    inspect_explain_command,
    inspect_map_command,
    inspect_weights_command,
    inspect_word_command,
)
from .pretrain import fill_mask_command, prepare_command, pretrain_command
from .serve import serve_command
from .train import train_command

bert_app = typer.Typer(
    name="bert",
    cls=BertGroup,
    no_args_is_help=True,
    help="Convert data, train, evaluate and serve BERT pipelines.",
)
inspect_app = typer.Typer(
    name="inspect", no_args_is_help=True, help="Inspect a model; writes PNG and HTML files."
)


@bert_app.callback()
def main() -> None:
    """Convert data, train, evaluate and serve BERT pipelines (spacy_bert_heads)."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # some Windows code pages lack "│"
        sys.stdout.reconfigure(errors="replace")
    # By default Python shows these only to developers, but here users write the deprecated keys.
    warnings.filterwarnings("default", category=DeprecationWarning, module="spacy_bert_heads")


# In the order of `bert --help`. Overrides like `--training.max_steps 100` are extra arguments.
OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}
bert_app.command("convert")(convert_command)
bert_app.command("prepare", context_settings=OVERRIDES)(prepare_command)
bert_app.command("init-config")(init_config_command)
bert_app.command("debug-data", context_settings=OVERRIDES)(debug_data_command)
bert_app.command("train", context_settings=OVERRIDES)(train_command)
bert_app.command("distill", context_settings=OVERRIDES)(distill_command)
bert_app.command("evaluate")(evaluate_command)
bert_app.command("calibrate")(calibrate_command)
bert_app.command("tune-thresholds")(tune_thresholds_command)
bert_app.command("compare")(compare_command)
bert_app.command("annotate")(annotate_command)
bert_app.command("glue")(glue_command)
bert_app.command("serve")(serve_command)
bert_app.command("pretrain", context_settings=OVERRIDES)(pretrain_command)
bert_app.command("fill-mask")(fill_mask_command)
bert_app.command("from-hf")(from_hf_command)
bert_app.command("to-hf")(to_hf_command)
bert_app.command("to-onnx")(to_onnx_command)
inspect_app.command("word")(inspect_word_command)
inspect_app.command("weights")(inspect_weights_command)
inspect_app.command("map")(inspect_map_command)
inspect_app.command("explain")(inspect_explain_command)
bert_app.add_typer(inspect_app)
app.add_typer(bert_app)
