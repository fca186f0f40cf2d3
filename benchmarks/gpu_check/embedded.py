"""The embedded model, where its file is installed: on the card as on the CPU, in bfloat16 too, and generated as run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.gpu_check.finding import Finding, Place, tried
from sparsity_core import generate, load, run
from sparsity_core.models import Model, ModelError, calibration_text

_PIPELINES = """
dense
gate=dcp()
eviction=a2sf(budget=64)
decode=double_sparsity(tokens=0.25)
weights=row_norm(ratio=0.02) eviction=h2o(budget=64)
gate=dcp() eviction=a2sf(budget=64) decode=double_sparsity(tokens=0.5)
prefill=sliding_window(window=64)
""".strip().splitlines()


def main(place: Place) -> Iterator[Finding]:
    try:
        cpu = load(device="cpu", dtype="float32")
    except ModelError as error:
        yield Finding("the embedded model", None, note=f"not checked: {error}")
        return
    ids = cpu.encode_all(calibration_text()[:4000])[:320]
    own, half = (load(device=str(place.device), dtype=dtype) for dtype in ("float32", "bfloat16"))
    for pipeline in _PIPELINES:
        yield tried(f"SmolLM2-135M, {pipeline}", partial(_agrees, cpu, own, half, ids, pipeline))
    yield tried("SmolLM2-135M, a2sf generated as run", partial(_generates, own, ids))


def _agrees(cpu: Model, own: Model, half: Model, ids: list[int], pipeline: str) -> str:
    """30 layers of decisions: a near tie that falls the other way changes all that follows, so means are held."""
    expected, found, rounded = (run(model, ids, pipeline, against_dense=False) for model in (cpu, own, half))
    apart = float(np.abs(found.nll[:-1] - expected.nll[:-1]).mean())
    same = float((found.evicted_at == expected.evicted_at).mean())
    told = float(expected.nll[:-1].mean())
    less = float(rounded.nll[:-1].mean())
    said = f"mean |Δloss| {apart:.1e}, {same:.2%} dropped alike; mean loss {told:.4f}, in bfloat16 {less:.4f}"
    if not (apart < 5e-3 and same > 0.98 and abs(less - told) < 0.03 * told):
        raise AssertionError(said)
    return said


def _generates(own: Model, ids: list[int]) -> str:
    pipeline = "eviction=a2sf(budget=64)"
    out = generate(own, ids[:200], pipeline, max_new_tokens=24, stop_at_eos=False, against_dense=False)
    again = run(own, out.trace.token_ids.tolist(), pipeline, against_dense=False)
    apart = float(np.abs(again.nll[:-1] - out.trace.nll[:-1]).mean())
    same = float((again.evicted_at == out.trace.evicted_at).mean())
    said = f"mean |Δloss| {apart:.1e}, {same:.2%} dropped alike"
    if not (apart < 5e-3 and same > 0.98):
        raise AssertionError(said)
    return said
