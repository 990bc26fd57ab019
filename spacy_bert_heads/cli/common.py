"""What the commands share."""

import configparser
import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from thinc.api import ConfigValidationError
from typer.core import TyperGroup

GPU_ID = typer.Option("--gpu-id", "-g", help="The GPU, -1 for the CPU")
RESUME = typer.Option("--resume", help="Go on from the newest state in the output")
FORCE = typer.Option("--force", "-F", help="Take any folder, and replace what is written there")
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")]

# What users can bring about. Every other exception is a bug, and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, configparser.Error)
OVERRIDE = "A setting of the config has a section: --section.key VALUE; --help lists options."


class BertGroup(TyperGroup):
    """Commands of which a mistyped option or argument is an error of one line, too, with status 1.
    click's own has three lines and status 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            # By what it can do, because some versions of typer have classes of their own. Without
            # any argument it is the help.
            if not hasattr(error, "format_message") or "Help" in type(error).__name__:
                raise
            path = getattr(getattr(error, "ctx", None), "command_path", "python -m spacy bert")
            message = " ".join(error.format_message().split())
            typer.secho(f"Error: {message.rstrip('.')}. See {path} --help.", fg="red", err=True)
            raise typer.Exit(1) from error


def exits_on_error(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command print an error of the user as one line, `Error: …` in red, without a
    traceback, and exit with status 1; with 130 at Ctrl-C. The command gets one more option,
    `--debug`, for the traceback."""

    @wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # whoever read our output is gone, as in `| head`: click exits silently
        except USER_ERRORS as error:
            if debug:
                raise
            typer.secho(f"Error: {describe(error)}", fg="red", err=True)
            raise typer.Exit(1) from error
        except click.UsageError as error:  # spaCy's; typer may have a click of its own
            typer.secho(f"Error: {error.format_message()} {OVERRIDE}", fg="red", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error

    # typer reads the options from here.
    signature = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    option = inspect.Parameter("debug", keyword, default=False, annotation=DEBUG)
    parameters = [*signature.parameters.values(), option]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def describe(error: BaseException) -> str:
    """Say in one line what is wrong."""
    if isinstance(error, ConfigValidationError) and error.errors:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors]
        return f"{error.title or 'Config validation error'}: {'; '.join(faults)}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: '{error.filename2 or error.filename}'"
    return " ".join(str(error).split()) or type(error).__name__


def check_file(file: Path | None) -> None:
    """Raise ValueError if an output can't be a file, before anything is computed for it."""
    from ..files import check_parents

    if file is None:
        return
    if file.is_dir():
        raise ValueError(f"{file} is a folder. Name a file.")
    check_parents(file)
