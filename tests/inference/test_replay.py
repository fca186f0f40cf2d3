"""Scores that a trace left out are computed again for one layer."""

from __future__ import annotations

import pytest

from sparsity_core.inference.replay import refill
from tests import tiny
from tests.inference.every import pipeline, same, text, traced


@pytest.mark.parametrize("method", ["a2sf(budget=12)", "h2o(budget=12)", "a2sf(budget=12, variant=prefill)"])
@pytest.mark.parametrize("layer", [0, 2])
def test_refilled_scores_are_those_of_the_run(method, layer):
    trace = traced(method, text(), snapshots=7)
    steps, scores = refill(tiny.model(), trace, pipeline(method), layer, steps=trace.snapshot_steps.tolist())
    same(steps, trace.snapshot_steps)
    same(scores, trace.snapshots[layer], atol=1e-6)
    every, more = refill(tiny.model(), trace, pipeline(method), layer)
    assert every.tolist() == list(range(trace.n_tokens))
    same(more[:, trace.snapshot_steps], trace.snapshots[layer], atol=1e-6)


def test_long_texts_keep_few_snapshots_and_the_last():
    from sparsity_core.inference.stages import snapshot_steps

    steps = snapshot_steps(tiny.model(), 100_000, 64)  # 6 M numbers over 3 layers · 2 heads · 100,000 keys
    assert len(steps) == 10
    assert steps[-1] == 99_999
    assert snapshot_steps(tiny.model(), 1, 64) == [0]
    assert snapshot_steps(tiny.model(), 9, 1) == [8]
    assert snapshot_steps(tiny.model(), 9, 0) == []
