"""Perplexity of a text under a pipeline, by the convention that papers use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparsity_core.inference import pipeline_of, run, whole
from sparsity_core.kinds import Pipeline
from sparsity_core.models import Model, Perplexity, blocks_perplexity
from sparsity_core.work import Progress, silent


def perplexity(
    model: Model,
    text: str,
    pipeline: Pipeline | str | None = None,
    *,
    block: int = 2048,
    most_blocks: int | None = None,
    add_bos: str = "auto",
    seed: int = 0,
    progress: Progress = silent,
) -> Perplexity:
    """exp of the mean −log p over non-overlapping blocks, each a run of its own that starts with an empty cache.

    Args:
        pipeline: a Pipeline or its text; the dense model where None.
        block: tokens of a block, 2 to the model's positions.
        most_blocks: only so many of the first blocks, for a quicker answer.
        add_bos: "yes" starts every block with the start token; "auto" and "no" do not, as the convention is.
        seed: of random eviction.

    Raises ValueError for a text shorter than one block, or a block that the model cannot read.
    """
    chosen = pipeline_of(pipeline)
    if chosen.prefill is not None and chosen.prefill.looks_ahead:
        raise ValueError(
            f"{chosen.prefill.name} looks ahead: later tokens decide what earlier ones see, so a text has no perplexity "
            "under it. Choose a causal method, or measure what it generates"
        )

    shares: list[float] = []

    def losses(ids: list[int]) -> np.ndarray:
        trace = run(model, ids, chosen, seed=seed, snapshots=0, against_dense=False)
        shares.append(trace.kv_bytes / trace.kv_bytes_dense)
        return trace.nll

    found = blocks_perplexity(
        model,
        text,
        block=whole("block", block),
        most_blocks=most_blocks,
        add_bos=add_bos,
        losses_of=losses,
        pipeline=str(chosen),
        progress=progress,
    )
    return replace(found, kv_share=sum(shares) / len(shares))
