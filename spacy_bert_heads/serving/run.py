"""Load a pipeline and serve it until the process is stopped."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ..evaluate import load_pipeline
from .limits import Limits


def serve(
    model: str,
    *,
    host: str,
    port: int,
    limits: Limits,
    precision: str | None = None,
    num_threads: int | None = None,
    gpu_id: int = -1,
) -> None:
    """Serve a pipeline over HTTP. On SIGTERM or Ctrl-C the server finishes the accepted requests.

    Raises ImportError without FastAPI, ValueError if the pipeline can't be loaded.
    """
    try:
        import uvicorn

        from .app import make_app
    except ImportError as error:
        raise ImportError(
            f"{error.name} is not installed. Install the server's requirements: pip install "
            "'spacy_bert_heads[serve]'."
        ) from error
    import spacy
    import torch

    from .annotator import Annotator, Query

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if gpu_id >= 0:
        spacy.require_gpu(gpu_id)
    nlp = load_pipeline(model, precision=precision)
    app = make_app(nlp, name=name_of(model), limits=limits, gpu_id=gpu_id)
    Annotator(nlp).annotate([Query("Ready.")])  # warm-up, so the first request is fast
    warnings.simplefilter("ignore")  # they may contain a user's text
    settings: dict[str, Any] = {"access_log": False, "log_level": "info", "server_header": False}
    settings["timeout_graceful_shutdown"] = int(limits.timeout) + 1
    uvicorn.run(app, host=host, port=port, **settings)


def name_of(model: str) -> str:
    """Return a pipeline's name: its folder, with the parent folder for "model-best" and the
    like."""
    parts = Path(model).resolve().parts if Path(model).exists() else (model,)
    return " · ".join(parts[-2:] if parts[-1].startswith("model-") else parts[-1:])
