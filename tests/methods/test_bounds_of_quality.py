"""The floor and the ceiling of every quality plot: random keys beside a protected prompt, and the oracle's keys."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity_core import generate, run
from sparsity_core.studies import attention_of_last
from tests import tiny

IDS = tiny.ids(40)


def read(trace) -> np.ndarray:
    """bool [L, Hkv, T, T]: which keys each query read."""
    return np.unpackbits(trace.reading.chosen, axis=-1)[..., : trace.n_tokens].astype(bool)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("method", ["oracle_top_k(keys=40)", "oracle_top_p(mass=1.0)"])
def test_an_oracle_that_reads_all_is_the_dense_model(family: str, method: str) -> None:
    model = tiny.model(family)
    dense, whole = run(model, IDS), run(model, IDS, f"decode={method}")
    np.testing.assert_allclose(whole.nll[:-1], dense.nll[:-1], atol=1e-5)


def test_each_query_reads_so_many_keys_and_the_dense_models_own_top_ones() -> None:
    model = tiny.model("llama")
    trace = run(model, IDS, "decode=oracle_top_k(keys=6)")
    counts = read(trace).sum(-1)
    np.testing.assert_array_equal(counts, np.broadcast_to(np.minimum(np.arange(40) + 1, 6), counts.shape))
    np.testing.assert_allclose(trace.selected_recall, 1)
    dense = attention_of_last(model, IDS)  # nothing was left unread before the first layer
    summed = dense[0].reshape(trace.n_kv_heads, -1, 40).sum(1)
    for head, row in enumerate(summed):
        assert set(np.flatnonzero(read(trace)[0, head, -1])) == set(np.argsort(row)[-6:])


def test_the_mass_is_reached_and_no_key_of_it_could_be_spared() -> None:
    model = tiny.model("llama")
    trace = run(model, IDS, "decode=oracle_top_p(mass=0.7)")
    dense = attention_of_last(model, IDS)[0]
    summed = dense.reshape(trace.n_kv_heads, -1, 40).mean(1)
    for head, row in enumerate(summed):
        chosen = row[read(trace)[0, head, -1]]
        assert chosen.sum() >= 0.7 - 1e-5 > chosen.sum() - chosen.min() - 1e-5
    assert len({int(n) for n in read(trace)[:, :, -1].sum(-1).ravel()}) > 1, "every head has its own number"


@pytest.mark.parametrize("method", ["oracle_top_k(keys=6)", "oracle_top_p(mass=0.7)"])
def test_a_generation_reads_what_one_forward_over_its_text_reads(method: str) -> None:
    model = tiny.model("llama")
    made = generate(model, IDS[:20], f"decode={method}", max_new_tokens=8, n_prefill=1, against_dense=False)
    again = run(model, made.trace.token_ids.tolist(), f"decode={method}", against_dense=False)
    np.testing.assert_allclose(made.trace.nll[:-1], again.nll[:-1], atol=1e-4)
    np.testing.assert_array_equal(read(made.trace)[:, :, 1:], read(again)[:, :, 1:])


def test_more_of_the_oracles_keys_are_closer_to_dense() -> None:
    model = tiny.model("llama")
    kl = [np.nanmean(run(model, IDS, f"decode=oracle_top_k(keys={n})").kl_to_dense) for n in (20, 8, 2)]
    assert 0 < kl[0] < kl[1] < kl[2]


def test_a_protected_prompt_stays_and_what_comes_after_is_sampled() -> None:
    model = tiny.model("llama")
    made = generate(model, IDS[:10], "eviction=random(budget=13, protect_prompt=True)", max_new_tokens=20)
    evicted_at, n = made.trace.evicted_at, made.trace.n_tokens
    assert (evicted_at[..., :10] == n).all()
    assert ((evicted_at >= n).sum(-1) == 13).all() or ((evicted_at >= n).sum(-1) == 14).all()
    kept = {tuple(np.flatnonzero(row >= n)) for row in evicted_at.reshape(-1, n)}
    assert len(kept) > 1, "each layer and head draws its own"
    half = run(model, IDS, "eviction=random(budget=24, protect_prompt=True)")
    assert (half.evicted_at[..., :20] == 40).all() and (half.evicted_at < 40).any()


def test_a_budget_that_cannot_hold_the_prompt_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"keeps the prompt's 20 tokens.*budget of 12: raise the budget to 21 or more"):
        generate(tiny.model("llama"), IDS[:20], "eviction=random(budget=12, protect_prompt=True)", max_new_tokens=2)
