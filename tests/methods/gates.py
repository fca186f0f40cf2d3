"""A gate of random numbers as a file, pipelines that name it, and that simulated dropping is physical dropping."""

from __future__ import annotations

import torch

from sparsity_core import Pipeline, generate, run
from sparsity_core.methods.gate.dcp.adapter import Gate
from sparsity_core.methods.gate.dcp.records import Training
from tests import tiny
from tests.inference.every import same, same_traces

TEXT = "In 1969 two people walked on the Moon, and a third one waited above. " * 8


def gate_file(tmp_path, model, *, bias=1.0, rank=8, seed=0, propagate=False):
    """A random gate that drops about a third, as a file."""
    draw = torch.Generator().manual_seed(seed)
    shape = (model.arch.n_layers, rank, model.arch.hidden_size)
    query, key = (0.15 * torch.randn(shape, generator=draw) for _ in range(2))
    made = Gate(
        query, key, torch.full((shape[0],), bias), propagate, {"model": model.name, "fingerprint": model.fingerprint}
    )
    return made.save(tmp_path / f"gate-{model.name}-{propagate}.safetensors")


def gated(path, *rest, **knobs):
    said = ", ".join(f"{name}={value!r}" for name, value in {"adapter": str(path), **knobs}.items())
    return Pipeline.parse(" ".join([f"gate=dcp({said})", *rest]))


def check_simulation(model, pipeline, decodes=False):
    asked = {"max_new_tokens": 14, "stop_at_eos": False, "against_dense": False}
    with tiny.hidden_states(model.hf) as unscored:  # decode steps by the model's own attention
        quick = generate(model, tiny.ids(30), pipeline, snapshots=0, **asked)
    with tiny.hidden_states(model.hf) as seen:
        out = generate(model, tiny.ids(30), pipeline, **asked)
        physical = torch.cat(seen)
        torch.testing.assert_close(torch.cat(unscored), physical, rtol=0, atol=1e-9)
        same(quick.trace.evicted_at, out.trace.evicted_at)
        real = out.trace
        if decodes:  # a run lets every query select, generation those after the prompt
            return
        masked = run(model, real.token_ids.tolist(), pipeline, n_prefill=30, against_dense=False)
    torch.testing.assert_close(seen[-1], physical, rtol=0, atol=1e-9)
    assert (real.evicted_at < real.n_tokens).any()
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
    uneven = bool((real.budgets != real.budgets[:, :1]).any())  # then the cache is as wide as its longest head
    assert masked.kv_bytes < real.kv_bytes if uneven else masked.kv_bytes == real.kv_bytes
    assert real.kv_bytes < real.kv_bytes_dense * 1.5


SETTINGS = Training(steps=6, length=24, rank=4, learning_rate=0.02)
