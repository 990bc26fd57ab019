"""What the commands share."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer

P = ParamSpec("P")

FORCE = typer.Option("--force", "-F", help="Take any folder, and replace what is written there")


def exits_on_error(command: Callable[P, None]) -> Callable[P, None]:
    """Make a command print a ValueError, OSError, ImportError or FloatingPointError as `Error: …`,
    in red and without a traceback, and exit with status 1; with 130 at Ctrl-C. Every other
    exception is a bug, and keeps its traceback."""

    @wraps(command)  # typer reads the options from the signature of the wrapped function
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # whoever read our output is gone, as in `| head`: click exits silently
        except (ValueError, OSError, ImportError, FloatingPointError) as error:
            typer.secho(f"Error: {error}", fg="red", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error

    return run
