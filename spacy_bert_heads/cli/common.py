"""Define the options and the error handling that all commands share."""

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
RESUME = typer.Option(
    "--resume", help="Continue from the newest training state in the output folder"
)
FORCE = typer.Option("--force", "-F", help="Allow any output folder, and overwrite existing files")
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")]

# Errors that users can cause. Any other exception is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, configparser.Error)
OVERRIDE = "To override a config setting, use --section.key VALUE. For all options, see --help."


class BertGroup(TyperGroup):
    """Report a mistyped option or argument as a one-line error with exit status 1.

    click's own message has three lines and status 2.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and turn a usage error of click into `typer.Exit(1)`."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            # Checked by attribute, because some versions of typer have their own classes. Without
            # arguments the exception is the help.
            if not hasattr(error, "format_message") or "Help" in type(error).__name__:
                raise
            path = getattr(getattr(error, "ctx", None), "command_path", "python -m spacy bert")
            message = " ".join(error.format_message().split())
            typer.secho(f"Error: {message.rstrip('.')}. See {path} --help.", fg="red", err=True)
            raise typer.Exit(1) from error


def exits_on_error(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command print user errors as one red line, `Error: …`, and exit with status 1.

    Ctrl-C exits with status 130. Adds the option `--debug`, which shows the traceback instead.
    """

    @wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # the reader of our output has gone, as in `| head`: click exits silently
        except USER_ERRORS as error:
            if debug:
                raise
            typer.secho(f"Error: {describe(error)}", fg="red", err=True)
            raise typer.Exit(1) from error
        except click.UsageError as error:  # spaCy's click; typer may bundle its own
            typer.secho(f"Error: {error.format_message()} {OVERRIDE}", fg="red", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error

    # typer reads the options from the signature.
    signature = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    option = inspect.Parameter("debug", keyword, default=False, annotation=DEBUG)
    parameters = [*signature.parameters.values(), option]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def describe(error: BaseException) -> str:
    """Return a one-line message for an error."""
    if isinstance(error, ConfigValidationError) and error.errors:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors]
        return f"{error.title or 'Config validation error'}: {'; '.join(faults)}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: '{error.filename2 or error.filename}'"
    return " ".join(str(error).split()) or type(error).__name__


def check_file(file: Path | None) -> None:
    """Check that an output file can be written, before anything is computed for it.

    Raises ValueError if it is a folder, or if a parent is not a folder.
    """
    from ..files import check_parents

    if file is None:
        return
    if file.is_dir():
        raise ValueError(f"{file} is a folder. Pass the path of a file.")
    check_parents(file)
