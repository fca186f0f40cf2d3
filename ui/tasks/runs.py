"""Runs, a layer's scores at every step, and the loading of a model ahead of them."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from sparsity_core.kinds import Pipeline
from sparsity_core.record import RunSpec, Store, Trace
from sparsity_core.work import Progress

if TYPE_CHECKING:
    import numpy as np


def run_spec(spec: RunSpec, progress: Progress) -> tuple[Trace | None, str | None]:
    """Computes a spec and keeps it. Returns the trace, and why, where it could not be kept."""
    from sparsity_core.inference import execute

    trace = execute(spec, progress)
    problem = Store().put(spec, trace)
    return (None, None) if problem is None else (trace, problem)  # what is stored is read from there


def load_model(model: str, progress: Progress) -> None:
    """Loads a model, so that the first run need not wait for it."""
    gc.disable()  # imports make many objects, all to stay: to look through them takes a tenth of the time
    try:
        from sparsity_core.models import load

        load(model, progress=progress)
    finally:
        gc.enable()


def refill_scores(spec: RunSpec, trace: Trace, layer: int, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """A layer's scores at every step of a run."""
    from sparsity_core.inference import refill
    from sparsity_core.models import load

    progress(0.1, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    progress(0.3, f"running up to layer {layer}")
    return refill(model, trace, Pipeline.parse(spec.pipeline), layer)
