"""Whole models: on the card as on the CPU, simulated in one forward as generated step by step, for every stage."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu_check.finding import Finding, Place, tried
from sparsity_core import Trace, generate, run
from sparsity_core.methods.gate.dcp.adapter import Gate
from sparsity_core.models import Model
from sparsity_core.models.loading import wrap
from tests import tiny

_PROMPT, _NEW = 30, 12
_CLOSE = 2e-3  # nats of a token's loss, in float32 on two machines
_PIPELINES = """
dense
eviction=a2sf(budget=12)
eviction=a2sf(budget=12, forgetting_factor=0.5, variant=prefill)
eviction=h2o(budget=12)
eviction=tova(budget=12)
eviction=streaming_llm(budget=12, re_rotate=True)
eviction=local_window(budget=12)
eviction=random(budget=12, n_sink=2, recent=2)
eviction=snapkv(budget=12, observation_window=4)
decode=double_sparsity(tokens=0.4, channels=8)
decode=double_sparsity(tokens=0.4, channels=8, label_dtype=int4, reduction=sum)
decode=sparq(tokens=0.4, channels=8)
decode=quest(tokens=0.4)
weights=row_norm(ratio=0.25) eviction=h2o(budget=12)
weights=svd_truncation(ratio=0.25)
GATE
GATE eviction=a2sf(budget=12)
GATE eviction=a2sf(budget=12) decode=sparq(tokens=0.5, channels=8)
""".strip().splitlines()
PROMPTS = """
prefill=sliding_window(window=7)
prefill=longformer(window=7, n_global=3)
prefill=strided(stride=6)
prefill=bigbird(block=8, window_blocks=1, random_blocks=1)
prefill=lsh(buckets=8, rounds=1, window=3)
prefill=assa(block=16, window=5, max_ratio=0.3)
prefill=minference(vertical=5, slash=5, n_sink=2, probes=8)
prefill=flexprefill(coverage=0.7, block=16)
prefill=xattention(coverage=0.6, block=16, stride=4)
prefill=sliding_window(window=7) eviction=a2sf(budget=12) decode=double_sparsity(tokens=0.5, channels=8)
""".strip().splitlines()
_OTHERS = ("dense", "eviction=a2sf(budget=6)", "decode=double_sparsity(tokens=0.4, channels=8)")  # of other families


def main(place: Place) -> Iterator[Finding]:
    for family in ("llama", "gemma3", "gemma2", "qwen3", "gpt2"):
        yield from checked(place, family, _PIPELINES if family == "llama" else _OTHERS)


def checked(place: Place, family: str, pipelines: Sequence[str]) -> Iterator[Finding]:
    """A tiny random model of the family under these pipelines."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _tiny(place, family, pipelines, Path(folder))


def _tiny(place: Place, family: str, pipelines: Sequence[str], folder: Path) -> Iterator[Finding]:
    cpu, own = tiny.model(family, torch.float32), None

    def move() -> str:
        nonlocal own
        hf = tiny.transformer(family, torch.float32).to(place.device)
        own = wrap(hf, tiny.tokenizer(), cpu.name)
        return "loaded, recorded and probed"

    yield tried(f"tiny {family}", move)
    if own is None:
        return
    gate = f"gate=dcp(adapter='{_gate(cpu, folder)}')"
    for pipeline in pipelines[:: 6 if place.toy else 1]:
        check = partial(_tiny_agrees, cpu, own, pipeline.replace("GATE", gate))
        yield tried(f"tiny {family}, {pipeline}", check)


def _gate(model: Model, folder: Path) -> Path:
    """A random gate that drops about a third."""
    draw = torch.Generator().manual_seed(0)
    shape = (model.arch.n_layers, 8, model.arch.hidden_size)
    query, key = (0.15 * torch.randn(shape, generator=draw) for _ in range(2))
    recipe = {"model": model.name, "fingerprint": model.fingerprint}
    return Gate(query, key, torch.ones(shape[0]), False, recipe).save(folder / f"{model.name}.safetensors")


def _tiny_agrees(cpu: Model, own: Model, pipeline: str) -> str:
    prompt, asked = tiny.ids(_PROMPT), {"max_new_tokens": _NEW, "stop_at_eos": False}
    expected, found = (generate(model, prompt, pipeline, **asked) for model in (cpu, own))  # type: ignore[arg-type]
    if found.token_ids != expected.token_ids:
        raise AssertionError(f"wrote {found.token_ids}, on the CPU {expected.token_ids}")
    worst = [_apart(found.trace, expected.trace)]
    ids = found.trace.token_ids.tolist()
    once, again = (run(model, ids, pipeline, n_prefill=_PROMPT) for model in (cpu, own))
    worst.append(_apart(again, once))
    if "decode=" not in pipeline and "prefill=" not in pipeline:  # which a run asks of every query, generation of some
        worst.append(_apart(again, found.trace))
    return "losses apart by " + ", ".join(f"{w:.0e}" for w in worst)


def _apart(found: Trace, expected: Trace) -> float:
    """The largest difference of a token's loss. Raises AssertionError where it, what was dropped or shown is another."""
    if not np.array_equal(found.evicted_at, expected.evicted_at):
        raise AssertionError(f"{(found.evicted_at != expected.evicted_at).mean():.2%} of the keys are dropped elsewhen")
    if found.prefill is not None and expected.prefill is not None:
        np.testing.assert_array_equal(found.prefill.shown, expected.prefill.shown)
    # Where queries look ahead no token has a loss, here as there.
    np.testing.assert_allclose(found.nll, expected.nll, rtol=0, atol=_CLOSE)
    apart = np.abs(found.nll - expected.nll)
    return float(apart[np.isfinite(apart)].max(initial=0.0))
