"""Tokens dropped one at a time, and what every method's scores said of them, as a job."""

from __future__ import annotations

from sparsity_core.record import RunSpec
from sparsity_core.studies import JudgeStudy
from sparsity_core.work import Progress


def judge(
    spec: RunSpec, ids: tuple[int, ...], step: int, drops: int, width: int, every: int, progress: Progress
) -> JudgeStudy:
    """The study of the dense model; tokens are dropped from all layers at once, and from every so many by itself (0: none)."""
    from sparsity_core.models import load
    from sparsity_core.studies import study_judges

    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    layers = range(0, model.arch.n_layers, every) if every else ()
    return study_judges(model, ids, step, drops=drops, width=width, layers=layers, seed=spec.seed, progress=progress)
