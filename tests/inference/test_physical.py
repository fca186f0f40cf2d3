"""Eviction simulated within one forward equals eviction from a cache, and both equal plain attention under the masks."""

from __future__ import annotations

import sys

import pytest
import torch

from sparsity_core import generate
from sparsity_core.attention import Recorder
from tests import tiny
from tests.inference.every import (
    BELOW_THE_WINDOW,
    BUDGET,
    EVERY,
    NEW,
    PROMPT,
    TOTAL,
    check_against_plain_attention,
    pipeline,
    same_traces,
    simulated_and_real,
    text,
)


@pytest.mark.parametrize("method", EVERY)
def test_masked_simulation_equals_physical_eviction(method):
    masked, real, hidden, physical = simulated_and_real(tiny.model(), method, text()[:PROMPT], NEW)
    assert real.n_tokens == TOTAL
    assert (real.evicted_at < TOTAL).any()
    torch.testing.assert_close(hidden, physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
    if "ada_kv" in method:  # the cache is as wide as the head that holds most
        widest = (real.evicted_at == TOTAL).sum(-1).max(-1)
        assert masked.kv_bytes < real.kv_bytes == int(widest.sum()) * 2 * 2 * 16 * 8
    else:
        assert masked.kv_bytes == real.kv_bytes
    assert masked.kv_bytes_dense == real.kv_bytes_dense == TOTAL * 3 * 2 * 2 * 16 * 8
    assert (masked.texts, masked.groups.tolist(), masked.classes) == (real.texts, real.groups.tolist(), real.classes)


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "llama"])
@pytest.mark.parametrize("method", [*BELOW_THE_WINDOW, "h2o(budget=6, memory=mean)"])
def test_masked_simulation_equals_physical_eviction_in_every_family(family, method):
    masked, real, hidden, physical = simulated_and_real(tiny.model(family), method, text()[:PROMPT], 8)
    assert (real.evicted_at < real.n_tokens).any()
    torch.testing.assert_close(hidden, physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
    assert masked.kv_bytes == real.kv_bytes


def test_a_forgetting_factor_by_class_is_the_same_for_what_is_read_and_what_is_written(monkeypatch):
    """The model is made to write the bytes of emoji, whose class a whole text shows and a single token does not."""
    written = tiny.tokenizer()("é🙂 中🙂1中🙂")["input_ids"]
    prompt, rest = tiny.tokenizer()("So é🙂 and 7 中 are one; 🙂")["input_ids"][:-2], iter(written)
    monkeypatch.setattr(sys.modules["sparsity_core.inference.writing"], "_next_token", lambda *_: next(rest))
    method = "a2sf(budget=8, forgetting_factor={punctuation: 1.0, space: 0.0, word: 0.5, number: 0.9, other: 0.25})"
    masked, real, hidden, physical = simulated_and_real(tiny.model(), method, prompt, len(written))
    torch.testing.assert_close(hidden, physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
    assert masked.classes == real.classes


@pytest.mark.parametrize("method", ["a2sf(budget=12)", "snapkv(budget=12, observation_window=4)"])
def test_the_cache_holds_what_the_trace_says_is_kept(method, monkeypatch):
    recorders = []

    class Watched(Recorder):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            recorders.append(self)

    monkeypatch.setattr(sys.modules["sparsity_core.inference.stages"], "Recorder", Watched)
    out = generate(tiny.model(), text()[:PROMPT], pipeline(method), max_new_tokens=6, stop_at_eos=False)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in recorders[0].cache.layers)
    kept = BUDGET if method.startswith("a2sf") else BUDGET + 5
    assert [tuple(layer.keys.shape) for layer in recorders[0].cache.layers] == [(1, 2, kept, 16)] * 3
    assert out.kv_bytes == out.trace.kv_bytes == held == 3 * 2 * kept * 16 * 2 * 8


@pytest.mark.parametrize("method", [m for m in EVERY if "re_rotate" not in m])
def test_the_model_under_eviction_equals_plain_attention_under_the_recorded_masks(method):
    check_against_plain_attention("llama", method)


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "llama"])
@pytest.mark.parametrize("method", BELOW_THE_WINDOW)
def test_every_family_under_eviction_equals_plain_attention_under_the_recorded_masks(family, method):
    check_against_plain_attention(family, method)


LONG = ["a2sf(budget=50)", "h2o(budget=200)", "a2sf(budget=50, variant=prefill)", "random(budget=150)"]


@pytest.mark.parametrize("method", LONG)
def test_a_text_of_several_blocks_of_rows_equals_plain_attention_and_physical_eviction(method):
    """The references work in blocks of 128 and 256 rows; the other texts here fit into one."""
    ids = tiny.ids(300)
    check_against_plain_attention("llama", method, ids, n_prefill=270)
    masked, real, hidden, physical = simulated_and_real(tiny.model(), method, ids, 6)
    torch.testing.assert_close(hidden, physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)
