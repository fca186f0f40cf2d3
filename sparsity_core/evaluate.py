"""Perplexity of a text under a pipeline, by the convention that papers use."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparsity_core.method import Pipeline
from sparsity_core.models import Model
from sparsity_core.run import pipeline_of, run, whole


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean −log p over `tokens` predicted tokens, in `blocks` blocks of `block` tokens, no BOS added."""

    perplexity: float
    tokens: int
    blocks: int
    block: int
    pipeline: str


def perplexity(
    model: Model,
    text: str,
    pipeline: Pipeline | str | None = None,
    *,
    block: int = 2048,
    most_blocks: int | None = None,
    seed: int = 0,
    progress: Callable[[float, str], None] = lambda share, doing: None,
) -> Perplexity:
    """Tokenises the text once, cuts it into non-overlapping blocks, drops the tail, and runs each block by itself.

    That is the WikiText-2 convention of GPTQ and its followers. Each block starts with an empty cache, and its first token
    is not predicted.

    Args:
        block: tokens of a block, 2 to the model's positions.
        most_blocks: only so many of the first blocks, for a quicker answer.
        seed: of random eviction.

    Raises ValueError for a text shorter than one block, or a block that the model cannot read.
    """
    pipeline = pipeline_of(pipeline)
    block = whole("block", block)
    if not 2 <= block <= model.arch.max_positions:
        raise ValueError(
            f"block is 2 to {model.arch.max_positions:,} tokens, the positions of {model.name}; got {block}"
        )
    if most_blocks is not None and most_blocks < 1:
        raise ValueError(f"most_blocks is at least 1; got {most_blocks}")
    ids = model.encode_all(text)
    blocks = len(ids) // block
    if not blocks:
        raise ValueError(f"the text has {len(ids):,} tokens, fewer than one block of {block:,}: choose a smaller block")
    blocks = min(blocks, most_blocks or blocks)
    total = 0.0
    for i in range(blocks):
        progress(i / blocks, f"block {i + 1} of {blocks}")
        part = ids[i * block : (i + 1) * block]
        trace = run(model, part, pipeline, seed=seed, snapshots=0, against_dense=False)
        total += float(np.nansum(trace.nll.astype(np.float64)))
    count = blocks * (block - 1)
    return Perplexity(math.exp(total / count), count, blocks, block, str(pipeline))
