"""A run by its spec."""

from __future__ import annotations

from typing import Any

from sparsity_core.inference.generation import generate
from sparsity_core.inference.running import run
from sparsity_core.kinds import Pipeline
from sparsity_core.models import load
from sparsity_core.record import RunSpec, Trace
from sparsity_core.work import Progress, silent


def execute(spec: RunSpec, progress: Progress = silent) -> Trace:
    """What a spec asks for, with its model loaded by name: the one entry of jobs and the command line.

    Raises ValueError for anything in the spec that does not fit.
    """
    pipeline = Pipeline.parse(spec.pipeline)
    if not spec.prompt.strip():
        raise ValueError("the prompt is empty: type or choose some text")
    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype, progress=lambda share, doing: progress(0.0, doing))
    shared: dict[str, Any] = {"seed": spec.seed, "add_bos": spec.add_bos, "question": spec.question}
    if not spec.generate:
        return run(model, spec.prompt, pipeline, progress=progress, **shared)
    return generate(model, spec.prompt, pipeline, max_new_tokens=spec.generate, progress=progress, **shared).trace
