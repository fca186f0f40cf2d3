"""A budget as a share of each text."""

from __future__ import annotations

from dataclasses import replace

from sparsity_core.kinds import Pipeline

LEAST = 8  # keys that an eviction method is left with, however short the text


def at_density(pipeline: Pipeline, density: float | None, n_tokens: int) -> Pipeline:
    """The pipeline whose eviction keeps max(8, round(density · n_tokens)) keys; itself where density is None."""
    if density is None or pipeline.eviction is None:
        return pipeline
    return replace(pipeline, eviction=replace(pipeline.eviction, budget=max(LEAST, round(density * n_tokens))))


def check_density(pipeline: Pipeline, density: float | None) -> None:
    """Raises ValueError for a share that is none, or one of a pipeline that evicts nothing."""
    if density is None:
        return
    if not 0 < density <= 1:
        raise ValueError(f"density is the share of each text's keys that eviction keeps, above 0 to 1; got {density}")
    if pipeline.eviction is None:
        raise ValueError(f"density sets the budget of the eviction stage, which {pipeline} leaves empty: leave it out")
