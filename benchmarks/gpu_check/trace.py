"""What recording costs on the card: `run` against the plain forward of the same model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu_check.finding import Finding, Measured, Place, milliseconds, tried
from benchmarks.gpu_check.made import llama
from sparsity_core import run
from sparsity_core.models import Model
from tests import tiny

_PIPELINES = (
    "dense",
    "eviction=a2sf(budget=256)",
    "eviction=streaming_llm(budget=256)",
    "prefill=sliding_window(window=512)",
)


def main(place: Place) -> Iterator[Finding]:
    model = llama(place, place.size(8, 2), 8192)
    for n in (place.size(1024, 48), place.size(4096, 64)):
        ids = tiny.ids(n)
        plain = milliseconds(partial(_plain, model, ids), place, runs=5, warmup=2)
        yield Finding(f"plain forward, {model.arch.n_layers} layers, {n:,} tokens", None, plain, "ms")
        for pipeline in _PIPELINES:
            yield tried(f"run, {pipeline}, {n:,} tokens", partial(_cost, place, model, ids, pipeline, plain))


@torch.inference_mode()
def _plain(model: Model, ids: list[int]) -> torch.Tensor:
    return model.hf(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits


def _cost(place: Place, model: Model, ids: list[int], pipeline: str, plain: float) -> Measured:
    own = milliseconds(lambda: run(model, ids, pipeline, against_dense=False), place, runs=2, warmup=1)
    return Measured(own / plain, "×", f"the plain forward; {own:.0f} ms against {plain:.0f}")
