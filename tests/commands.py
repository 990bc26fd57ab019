"""Commands, run in this process."""

from spacy.cli import app
from spacy.util import registry
from typer.testing import CliRunner

from spacy_bert_heads.cli import bert_app


def command(*words: object, code: int = 0) -> str:
    """Run `python -m spacy …` in this process."""
    registry.cli.get_all()
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output if code == 0 else result.output + str(result.exception)


def run(*args):
    return CliRunner().invoke(bert_app, [str(arg) for arg in args])
