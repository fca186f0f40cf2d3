"""A trace made by hand, small enough to work out every figure's numbers in one's head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from sparselens_kernels import KeyMask, Window

from sparsity_core.record.prefill import packed
from sparsity_core.record.provenance import Provenance
from sparsity_core.record.spec import RunSpec
from sparsity_core.record.trace import Trace

TOKENS = ["The", "·cat", "·sat", "·on", "·the", "·mat", ".", "↵"]
# What a page must show as it is: markup, entities, TeX, hover variables, right-to-left text, an emoji, a control's picture.
HOSTILE = ["<img src=x onerror=alert(1)>", "<b>bold</b>", "&lt;i&gt;", "$\\alpha$", "%{z}", "مرحبا", "🙂₁", "␀"]

NEVER = 8  # tokens in all
# [layer][kv_head][key]: a budget of 3 is full after query 2, so that each of the queries 3 to 6 drops one key a head.
EVICTED_AT = [
    [[8, 4, 5, 6, 7, 8, 8, 8], [8, 5, 4, 7, 6, 8, 8, 8]],
    [[8, 8, 4, 5, 6, 7, 8, 8], [8, 5, 6, 4, 8, 7, 8, 8]],
]
# [layer][kv_head]: the score of the key that queries 3, 4, 5 and 6 dropped.
DROPPED_SCORES = [[[0.5, 0.25, 0.125, 0.0625], [0.4, 0.3, 0.2, 0.1]], [[0.8, 0.6, 0.4, 0.2], [0.7, 0.5, 0.3, 0.1]]]
SNAPSHOT_STEPS = [1, 4, 7]


def trace(**changes: Any) -> Trace:
    """Two layers of two KV heads with two query heads each, eight tokens of which the last two were generated."""
    n = NEVER
    evicted_at = np.asarray(EVICTED_AT, np.int32)
    threshold = np.full((2, 2, n), np.nan, np.float32)
    threshold[:, :, 3:7] = DROPPED_SCORES
    late = np.arange(n) >= 4
    made = Trace.of(
        provenance=Provenance(
            model="hand-made",
            fingerprint="0123456789ab",
            pipeline="eviction=a2sf(budget=3)",
            seed=0,
            dtype="float32",
            device="cpu",
            backends=("reference",),
            prompt_hash="ba9876543210",
            versions={"numpy": "2"},
            seconds={"forward": 1.0},
        ),
        n_prompt=6,
        n_prefill=0,
        n_heads=4,
        budgets=np.full((2, 2), 3, np.int32),
        n_sink=np.full(2, 1, np.int32),
        recent=np.full(2, 1, np.int32),
        token_ids=np.arange(10, 18, dtype=np.int32),
        texts=["The", " cat", " sat", " on", " the", " mat", ".", "\n"],
        tokens=list(TOKENS),
        groups=np.arange(n, dtype=np.int32),
        classes=["capitalised", "word", "word", "function", "function", "word", "punctuation", "space"],
        evicted_at=evicted_at,
        threshold=threshold,
        snapshot_steps=np.asarray(SNAPSHOT_STEPS, np.int32),
        snapshots=_snapshots(evicted_at),
        nll=np.asarray([1, 2, 3, 4, 5, 6, 7, np.nan], np.float32),
        dense_nll=np.asarray([1, 1, 1, 1, 1, 1, 1, np.nan], np.float32),
        kl_to_dense=np.asarray([0, 0, 0, 0, 0.5, 1, 1.5, 2], np.float32),
        top1_agrees=np.asarray([1, 1, 1, 1, 0, 0, 1, 0], np.float32),
        regret=np.where(late, np.asarray([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])[:, :, None], 0).astype(
            np.float32
        ),
        probe_steps=np.arange(n, dtype=np.int32),
        ideal_recall=_late(late, [[0.5, 0.75], [0.25, 1.0]]),
        ideal_cosine=_late(late, [[0.6, 0.8], [0.4, 0.9]]),
        ideal_mass=_late(late, [[0.95, 0.85], [0.9, 0.7]]),
        kv_bytes=3 * 2**20,
        kv_bytes_dense=8 * 2**20,
        continuation="",
    )
    return made.replaced(**changes)


def named(pipeline: str, **changes: Any) -> Trace:
    """The trace as if another pipeline had made it."""
    return trace(provenance=replace(trace().provenance, pipeline=pipeline), **changes)


FOUR_STAGES = "gate=dcp prefill=sliding_window(window=4) eviction=h2o(budget=3) decode=quest(tokens=0.5)"


def told_apart(pipeline: str = FOUR_STAGES, **changes: Any) -> Trace:
    """The trace as four stages act on it; the prompt's six tokens see a window of four.

    The gate drops token 2 in layer 0 at query 4. In the last query of the text the decode stage reads tokens 0, 5 and 7 alone.
    """
    gated_at = np.full((2, NEVER), NEVER, np.int32)
    gated_at[0, 2] = 4
    evicted_at = np.minimum(np.asarray(EVICTED_AT, np.int32), gated_at[:, None])
    read = np.tril(np.ones((2, 2, NEVER, NEVER), bool))
    read[:, :, 7] = np.isin(np.arange(NEVER), [0, 5, 7])
    patterns, layouts = packed([KeyMask([Window(4)], 2, 6)] * 2)
    unknown = np.full((2, 4, NEVER), np.nan, np.float32)
    made = named(
        pipeline,
        evicted_at=evicted_at,
        gated_at=gated_at,
        shown=np.ones((2, 2, NEVER), np.int32),
        blocks=np.ones((2, 2, 1, 1), np.float32),
        block=16,
        coverage=unknown,
        pairs=np.full(2, 24, np.int64),
        scoring_flops=np.zeros(2, np.int64),
        looks_ahead=False,
        patterns=patterns,
        layouts=layouts,
        selected=np.ones((2, 2, NEVER), np.float32),
        selected_mass=unknown,
        selected_recall=unknown[:, :2],
        chosen=np.packbits(read, axis=-1),
    )
    return made.replaced(**changes)


def kept_all(**changes: Any) -> Trace:
    """A trace in which nothing is ever dropped."""
    nothing, whole = np.full((2, 2, NEVER), np.nan, np.float32), np.ones((2, 2, NEVER), np.float32)
    ideal = {name: whole for name in ("ideal_recall", "ideal_cosine", "ideal_mass")}
    made = trace(regret=np.zeros((2, 4, NEVER), np.float32), threshold=nothing, **ideal)
    return replace(made, **{"evicted_at": np.full((2, 2, NEVER), NEVER, np.int32)} | changes)


def spec(pipeline: str = "eviction=a2sf(budget=3)") -> RunSpec:
    return RunSpec("hand-made", "The cat sat on the mat", pipeline)


def _snapshots(evicted_at: np.ndarray) -> np.ndarray:
    """Key k scores k + 1 after each step at which it is still in the cache, as it stands once that step has dropped."""
    key = np.arange(NEVER)
    cached = [(key <= step) & (evicted_at > min(step + 1, NEVER - 1)) for step in SNAPSHOT_STEPS]
    return np.where(np.stack(cached, axis=2), key + 1.0, np.nan).astype(np.float32)


def _late(late: np.ndarray, values: list[list[float]]) -> np.ndarray:
    """float32 [layer, kv_head, probe]: 1 as long as nothing is dropped, then each head's own value."""
    return np.where(late, np.asarray(values)[:, :, None], 1.0).astype(np.float32)
