"""KV bytes are those of transformers' own cache, and what generation holds is what a run counts."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from sparsity_core import generate, run
from sparsity_core.models import wrap
from tests import families, tiny

PROMPT, NEW = 30, 14


@functools.cache
def model(family: str):
    return wrap(families.network(family), tiny.tokenizer(), family)


def transformers_holds(hf, ids: list[int]) -> int:
    """Bytes of the keys and values in transformers' own cache after a text, read as a prompt."""
    cache = DynamicCache(config=hf.config)
    with torch.inference_mode():
        hf(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    pairs = [(layer.keys, layer.values) for layer in cache.layers if layer.keys is not None]
    return sum(x.nbytes for pair in pairs for x in pair)


KINDS = ["llama", "gemma3_text", "mistral", "gemma3n_text", "deepseek_v3", "phimoe", "falcon_h1"]


@pytest.mark.parametrize("family", KINDS)
def test_dense_bytes_are_what_transformers_own_cache_holds(family):
    ids = tiny.ids(PROMPT)
    expected = transformers_holds(families.network(family), ids)
    found = run(model(family), ids)
    assert found.kv_bytes_dense == expected
    assert found.kv_bytes == expected  # the dense model, counted


@pytest.mark.parametrize("family", KINDS)
def test_dense_generation_holds_what_transformers_holds_and_a_run_counts(family):
    out = generate(model(family), tiny.ids(PROMPT), max_new_tokens=NEW, stop_at_eos=False)
    ids = tiny.ids(PROMPT) + out.token_ids[:-1]
    masked = run(model(family), ids)
    assert out.kv_bytes == out.kv_bytes_dense == masked.kv_bytes == transformers_holds(families.network(family), ids)
    np.testing.assert_allclose(out.trace.nll[:-1], masked.nll[:-1], atol=families.LARGEST_GAP)


def test_the_sizes_worked_out_by_hand():
    """44 tokens, 2 KV heads of 16 channels in float32: a window of 8 keeps 7 keys, and a shared layer none."""
    key = 2 * 16 * 4
    assert model("gemma3_text").cache_bytes(44) == 2 * key * (7 + 44 + 7)
    assert model("gemma3n_text").cache_bytes(44) == 2 * key * (7 + 44)  # of four layers the last two share
    assert (
        model("deepseek_v3").cache_bytes(44) == 3 * 44 * (16 + 8) * 4
    )  # the latent and the rotary part, for all heads


@pytest.mark.parametrize("family", ["gemma3_text", "gemma3n_text", "falcon_h1"])
def test_an_eviction_is_the_same_in_both_and_holds_less(family):
    out = generate(model(family), tiny.ids(PROMPT), "eviction=a2sf(budget=6)", max_new_tokens=NEW, stop_at_eos=False)
    masked = run(model(family), tiny.ids(PROMPT) + out.token_ids[:-1], "eviction=a2sf(budget=6)")
    np.testing.assert_array_equal(out.trace.evicted_at, masked.evicted_at)
    assert out.kv_bytes == masked.kv_bytes < out.kv_bytes_dense
    np.testing.assert_allclose(out.trace.nll[:-1], masked.nll[:-1], atol=families.LARGEST_GAP)


def test_a_layer_that_shares_a_cache_sees_what_its_source_sees():
    trace = run(model("gemma3n_text"), tiny.ids(PROMPT), "eviction=a2sf(budget=6)")
    np.testing.assert_array_equal(trace.evicted_at[2], trace.evicted_at[0])
    np.testing.assert_array_equal(trace.evicted_at[3], trace.evicted_at[1])
    assert (trace.evicted_at[3] < PROMPT).any()


def test_stages_that_keep_an_index_refuse_a_shared_cache_before_anything_runs():
    with pytest.raises(ValueError, match="layers of gemma3n_text share a cache: leave gate and decode out"):
        run(model("gemma3n_text"), tiny.ids(PROMPT), "decode=quest(tokens=0.5)")
    with pytest.raises(ValueError, match="layers of gemma3n_text share a cache: choose memory=none"):
        run(model("gemma3n_text"), tiny.ids(PROMPT), "eviction=a2sf(budget=6, memory=mean)")


def test_a_layer_with_a_window_has_no_memory():
    plain, remembered = (
        run(model("mistral"), tiny.ids(PROMPT), f"eviction=h2o(budget=6{more})") for more in ("", ", memory=mean")
    )
    assert (plain.evicted_at < PROMPT).any()
    np.testing.assert_array_equal(remembered.nll, plain.nll)
    assert remembered.kv_bytes == plain.kv_bytes


def test_a_window_within_the_budget_drops_nothing():
    trace = run(model("mistral"), tiny.ids(PROMPT), f"eviction=h2o(budget={tiny.WINDOW})")
    assert (trace.evicted_at == PROMPT).all() and trace.kv_bytes == trace.kv_bytes_dense
    np.testing.assert_array_equal(trace.nll, run(model("mistral"), tiny.ids(PROMPT)).nll)
    assert "no layer that is pruned looks further back than the budget" in trace.notes[0]


def test_compressed_keys_are_refused_before_the_prompt_is_read():
    with pytest.raises(ValueError, match=r"cache of deepseek_v3: it caches compressed keys.*Use run, not generate"):
        generate(model("deepseek_v3"), tiny.ids(PROMPT), "eviction=a2sf(budget=6)", max_new_tokens=2)
    trace = run(model("deepseek_v3"), tiny.ids(PROMPT), "eviction=a2sf(budget=6)")
    assert 3 * 6 * (16 + 8) * 4 <= trace.kv_bytes <= trace.kv_bytes_dense  # a row stays as long as any head keeps it


def long_rope() -> Phi3ForCausalLM:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0 + i for i in range(8)]}
    torch.manual_seed(7)
    config = Phi3Config(
        **{**tiny.GROUPED, "bos_token_id": 1},
        original_max_position_embeddings=32,
        rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, **factors},
    )
    return Phi3ForCausalLM(config).eval()


def test_frequencies_that_depend_on_the_length_are_not_crossed_while_generating():
    hf = long_rope()
    phi = wrap(hf, tiny.tokenizer(), "phi3")
    with pytest.raises(
        ValueError, match=r"past 32 tokens phi3 takes other rotary frequencies.*at most 3 tokens.*more than 32"
    ):
        generate(phi, tiny.ids(30), max_new_tokens=4)
    for n, new in ((30, 3), (33, 6)):  # up to the limit, and beyond it from the start
        out = generate(phi, tiny.ids(n), max_new_tokens=new, stop_at_eos=False)
        tokens = torch.tensor([tiny.ids(n)])
        own = hf.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, do_sample=False)
        assert out.token_ids == own[0, n:].tolist()
        whole = run(phi, tiny.ids(n) + out.token_ids[:-1])
        np.testing.assert_allclose(out.trace.nll[:-1], whole.nll[:-1], atol=families.LARGEST_GAP)
    with torch.inference_mode():
        plain = long_rope()(input_ids=torch.tensor([tiny.ids(50)]), use_cache=False).logits[0]
    np.testing.assert_allclose(
        run(phi, tiny.ids(50)).nll[:-1], tiny.nll(plain, tiny.ids(50)), atol=families.LARGEST_GAP
    )


def test_dynamic_frequencies_differ_at_every_length_past_their_limit():
    config = LlamaConfig(**tiny.GROUPED, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    model = wrap(LlamaForCausalLM(config).eval(), tiny.tokenizer(), "llama")
    model.check_steps(300, tiny.MAX_POSITIONS, drops=False)
    with pytest.raises(ValueError, match="past 320 tokens llama takes other rotary frequencies"):
        model.check_steps(325, 330, drops=False)
