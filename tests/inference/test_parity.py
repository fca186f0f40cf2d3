"""The recorded model is the model: layer by layer, against transformers' own SDPA and eager attention."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig

from sparsity_core import Pipeline, generate, methods, run
from sparsity_core.models.loading import EMBEDDED, wrap
from sparsity_core.models.probe import _Probe, probe, probe_logits
from sparsity_core.work.cache import cache_dir
from tests import tiny

LENGTH = 44
# What two orders of summation may differ by, of hidden states whose size is about 10.
ATOL = {torch.float64: 1e-9, torch.float32: 2e-4}
PROSE = (
    "The harbour office opens at six, when the fog still hides the far pier. By seven the crane operators have finished "
    "their tea 🙂 and the first of 12 containers is in the air; trucks wait in a line that bends around the fish market, "
    "engines off, drivers asleep against the window, and nobody has come to repair the scanner since March."
)


def layer_by_layer(hf, forward, outputs=tiny.layer_outputs) -> list[torch.Tensor]:
    with outputs(hf) as seen, torch.inference_mode():
        forward()
    return seen


def close(found: list[torch.Tensor], expected: list[torch.Tensor], atol: float) -> None:
    assert len(found) == len(expected)
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(
            one.squeeze(0).double(), other.squeeze(0).double(), rtol=0, atol=atol, msg=lambda m, i=i: f"layer {i}: {m}"
        )


@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_recorded_dense_run_equals_plain_attention_in_every_layer(family, dtype):
    check_layers(family, dtype, "eager", tiny.plain_attention)


@pytest.mark.parametrize("dtype", ATOL, ids=str)
@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f not in tiny.WITHOUT_SDPA])
def test_a_recorded_dense_run_equals_sdpa_in_every_layer(family, dtype):
    check_layers(family, dtype, "sdpa", lambda hf: contextlib.nullcontext())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_recorded_dense_run_equals_transformers_eager_in_every_layer(family):
    """In float32, which is what transformers' eager softmax computes in whatever the model's dtype."""
    check_layers(family, torch.float32, "eager", lambda hf: contextlib.nullcontext())


def check_layers(family, dtype, attention, under) -> None:
    ids, model = tiny.ids(LENGTH), tiny.model(family, dtype)
    plain = tiny.transformer(family, dtype, attention)
    found = layer_by_layer(model.hf, lambda: run(model, ids))
    with under(plain):
        expected = layer_by_layer(plain, lambda: plain.base_model(input_ids=torch.tensor([ids]), use_cache=False))
    assert len(found) == model.arch.n_layers + 1
    close(found, expected, ATOL[dtype])
    with under(plain), torch.inference_mode():
        logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    torch.testing.assert_close(model.logits(found[-1][0]), logits, rtol=0, atol=10 * ATOL[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gemma3"])
def test_in_half_precision_the_recorded_run_is_no_worse_than_transformers_own(family, dtype):
    """Against float64, with the weights rounded the same way."""
    ids = tiny.ids(LENGTH)
    half = tiny.transformer(family, dtype)
    exact = tiny.transformer(family)
    exact.load_state_dict({name: x.double() for name, x in half.state_dict().items()})
    model = wrap(tiny.transformer(family, dtype), tiny.tokenizer(), family)
    tokens = torch.tensor([ids])
    with tiny.plain_attention(exact):
        truth = exact.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
    own = half.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
    with tiny.hidden_states(model.hf) as seen:
        run(model, ids)
    error, own_error = ((x.double() - truth).abs().mean() for x in (seen[0], own))
    assert 0 < error <= 1.25 * own_error


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_idle_model_is_the_plain_model_bit_by_bit(family):
    """Whole texts and steps from a cache; between recorded runs, which leave nothing behind."""
    model, tokens = tiny.model(family, torch.float32), torch.tensor([tiny.ids(LENGTH)])
    plain = tiny.transformer(family, torch.float32, "eager" if family in tiny.WITHOUT_SDPA else "sdpa")
    run(model, tiny.ids(LENGTH), Pipeline(eviction=methods.A2SF(budget=12)))
    with torch.inference_mode():
        assert torch.equal(model.hf(input_ids=tokens).logits, plain(input_ids=tokens).logits)
        found, expected = (hf(input_ids=tokens[:, :30], use_cache=True) for hf in (model.hf, plain))
        for t in range(30, 34):
            step = {"input_ids": tokens[:, t : t + 1], "use_cache": True}
            found = model.hf(**step, past_key_values=found.past_key_values)
            expected = plain(**step, past_key_values=expected.past_key_values)
            assert torch.equal(found.logits, expected.logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_padding_in_an_idle_batch_changes_nothing(family, side):
    model, long, short = tiny.model(family, torch.float32), tiny.ids(20), tiny.ids(13, seed=1)
    pad, n = [tiny.PAD] * (len(long) - len(short)), len(short)
    padded, mask = (
        (short + pad, [1] * n + [0] * len(pad)) if side == "right" else (pad + short, [0] * len(pad) + [1] * n)
    )
    mask = torch.tensor([[1] * len(long), mask])
    where = slice(None, n) if side == "right" else slice(-n, None)
    with torch.inference_mode():
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        both = model.hf(input_ids=torch.tensor([long, padded]), attention_mask=mask, position_ids=positions).logits
        alone = [model.hf(input_ids=torch.tensor([ids])).logits[0] for ids in (long, short)]
    torch.testing.assert_close(both[0], alone[0], rtol=0, atol=2e-4)
    torch.testing.assert_close(both[1][where], alone[1], rtol=0, atol=2e-4)


def test_transformers_own_generate_works_on_the_idle_model():
    tokens = torch.tensor([tiny.ids(20)])
    plain = tiny.transformer("llama", torch.float32, "sdpa")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": tiny.PAD, "eos_token_id": None}
    found = tiny.model("llama", torch.float32).hf.generate(tokens, **options)
    assert found.tolist() == plain.generate(tokens, **options).tolist()
    ours = generate(tiny.model("llama", torch.float32), tokens[0].tolist(), max_new_tokens=8, stop_at_eos=False)
    assert ours.token_ids == found[0, 20:].tolist()


def test_the_probe_sees_attention_that_leaves_out_what_the_model_adds(monkeypatch):
    """A soft cap that the recorder ignored would change every logit: such a model must be refused."""
    model = tiny.model("gemma2")
    plain = probe_logits(tiny.transformer("gemma2"))
    assert probe(model, plain) is None
    attend = _Probe.attend
    monkeypatch.setattr(_Probe, "attend", lambda self, call: attend(self, dataclasses.replace(call, softcap=None)))
    assert "other logits" in str(probe(model, plain))


def test_the_probe_sees_a_model_that_does_its_own_attention():
    model = wrap(tiny.transformer("llama"), tiny.tokenizer(), "llama")
    model.hf.model.layers[0].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    assert "1 of its 3 layers, the first of them layer 0, have no attention that goes through" in str(
        probe(model, probe_logits(model.hf))
    )


@pytest.mark.parametrize(
    "config",
    [
        CohereConfig(**tiny.GROUPED, logit_scale=0.25),
        GraniteConfig(**tiny.GROUPED, logits_scaling=4.0, attention_multiplier=0.2),
    ],
    ids=lambda c: c.model_type,
)
def test_models_that_scale_their_logits_are_recorded_with_that_scale(config):
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tokens = tiny.ids(20)
    with torch.inference_mode():
        expected = hf(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    trace = run(wrap(hf, tiny.tokenizer(), config.model_type), tokens)
    np.testing.assert_allclose(trace.nll[:-1], tiny.nll(expected, tokens), atol=1e-4)


@functools.cache
def eager(family: str, length: int = LENGTH):
    """(attention probabilities per layer [H, T, T], logits [T, V]) of transformers' own eager model in float32."""
    plain = tiny.transformer(family, torch.float32)
    with torch.inference_mode():
        out = plain(input_ids=torch.tensor([tiny.ids(length)]), use_cache=False, output_attentions=True)
    assert len(out.attentions) == 3
    return [p[0].double().numpy() for p in out.attentions], out.logits[0].double()


PRUNED = ["a2sf(budget=12)", "h2o(budget=8)", "snapkv(budget=9, observation_window=4)", "streaming_llm(budget=10)"]


@functools.cache
def pruned(method: str, family: str = "llama"):
    return run(tiny.model(family, torch.float32), tiny.ids(LENGTH), Pipeline.parse(f"eviction={method}"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", PRUNED)
def test_regret_is_the_dense_attention_on_evicted_keys(method, family):
    trace, (attention, _) = pruned(method, family), eager(family)
    group = trace.n_heads // trace.n_kv_heads
    assert trace.regret.shape == (3, trace.n_heads, LENGTH)
    for layer, p in enumerate(attention):
        for head in range(trace.n_heads):
            for q in range(LENGTH):
                gone = [k for k in range(q + 1) if trace.evicted_at[layer, head // group, k] <= q]
                assert trace.regret[layer, head, q] == pytest.approx(sum(p[head, q, gone]), abs=2e-5)
    assert trace.regret.max() > 0.1


@pytest.mark.parametrize("method", PRUNED)
def test_the_ideal_mask_is_the_dense_models_own_top_keys(method):
    trace, (attention, _) = pruned(method), eager("llama")
    assert trace.probe_steps.tolist() == list(range(LENGTH))
    for layer, p in enumerate(attention):
        for head in range(2):
            for q in range(LENGTH):
                mass = p[2 * head : 2 * head + 2, q, : q + 1].mean(0)
                kept = {k for k in range(q + 1) if trace.evicted_at[layer, head, k] > q}
                ideal = set(sorted(range(q + 1), key=lambda k: -mass[k])[: len(kept)])
                recall = len(kept & ideal) / len(ideal)
                a = np.array([mass[k] if k in kept else 0.0 for k in range(q + 1)])
                b = np.array([mass[k] if k in ideal else 0.0 for k in range(q + 1)])
                cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
                assert trace.ideal_recall[layer, head, q] == pytest.approx(recall, abs=1e-6)
                assert trace.ideal_cosine[layer, head, q] == pytest.approx(cosine, abs=1e-4)
                assert trace.ideal_mass[layer, head, q] == pytest.approx(b.sum(), abs=2e-5)
    assert trace.ideal_recall.min() < 0.9


@pytest.mark.parametrize("method", PRUNED)
def test_kl_and_agreement_are_those_of_the_two_next_token_distributions(method):
    trace, (_, dense_logits) = pruned(method), eager("llama")
    plain = tiny.transformer("llama", torch.float32)
    with tiny.plain_attention(plain, [trace.keep(layer) for layer in range(3)]), torch.inference_mode():
        logits = plain(input_ids=torch.tensor([tiny.ids(LENGTH)]), use_cache=False).logits[0].double()
    p, q = dense_logits.softmax(-1).numpy(), logits.softmax(-1).numpy()
    for t in range(LENGTH):
        assert trace.kl_to_dense[t] == pytest.approx(float((p[t] * np.log(p[t] / q[t])).sum()), rel=1e-3, abs=1e-4)
        assert bool(trace.top1_agrees[t]) == (p[t].argmax() == q[t].argmax())
    np.testing.assert_allclose(trace.nll[:-1], tiny.nll(logits, tiny.ids(LENGTH)), atol=1e-4)
    np.testing.assert_allclose(trace.dense_nll[:-1], tiny.nll(dense_logits, tiny.ids(LENGTH)), atol=1e-4)
    assert np.isnan(trace.nll[-1]) and np.isnan(trace.dense_nll[-1])
    assert trace.kl_to_dense.max() > 0.1


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_perplexity_is_the_exponential_of_transformers_own_loss(family):
    tokens = torch.tensor([tiny.ids(LENGTH)])
    plain = tiny.transformer(family, torch.float32)
    with torch.inference_mode():
        loss = plain(input_ids=tokens, labels=tokens, use_cache=False).loss
    trace = run(tiny.model(family, torch.float32), tokens[0].tolist())
    assert trace.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)
    assert trace.dense_perplexity == trace.perplexity
    assert (trace.kl_to_dense == 0).all() and (trace.top1_agrees == 1).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2"])
@pytest.mark.parametrize("method", ["dense", "eviction=h2o(budget=44)"])
def test_dense_scores_are_the_column_sums_of_the_attention(family, method):
    attention, _ = eager(family)
    model = tiny.model(family, torch.float32)
    trace = run(model, tiny.ids(LENGTH), Pipeline.parse(method), snapshots=8)
    group = trace.n_heads // trace.n_kv_heads
    assert len(trace.snapshot_steps) == 8 and trace.snapshot_steps[-1] == LENGTH - 1
    for layer, p in enumerate(attention):
        grouped = p.reshape(trace.n_kv_heads, group, LENGTH, LENGTH).sum(1)
        for i, step in enumerate(trace.snapshot_steps):
            seen = trace.snapshots[layer, :, i]
            first = max(0, step + 1 - (model.caches[layer].window or LENGTH))  # what the window has passed is not kept
            held = slice(first, step + 1)
            np.testing.assert_allclose(seen[:, held], grouped[:, : step + 1, held].sum(1), atol=1e-4)
            assert np.isnan(seen[:, :first]).all() and np.isnan(seen[:, step + 1 :]).all()


def test_density_is_the_share_of_pairs_that_stay_visible():
    trace = pruned("a2sf(budget=12)")
    visible = sum(trace.keep(layer).sum() for layer in range(3))
    assert trace.density() == pytest.approx(visible / (3 * 2 * LENGTH * (LENGTH + 1) / 2))
    at = trace.visible_at(20)
    assert (at == np.stack([trace.keep(layer)[:, 20] for layer in range(3)])).all()


@pytest.fixture(scope="module")
def fresh(smollm):
    """The embedded model's weights in a transformers model that knows nothing of us."""
    folder = cache_dir() / "models" / EMBEDDED
    if not folder.exists():
        pytest.skip("THE EMBEDDED MODEL'S PARITY IS NOT TESTED: its conversion is not in the cache")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


def test_the_embedded_model_equals_sdpa_in_every_layer(smollm, fresh):
    ids = smollm.encode(PROSE)
    assert 60 < len(ids) < 80
    found = layer_by_layer(smollm.hf, lambda: run(smollm, ids))
    expected = layer_by_layer(fresh, lambda: fresh.model(input_ids=torch.tensor([ids]), use_cache=False))
    assert len(found) == smollm.arch.n_layers + 1 == 31
    for one, other in zip(found, expected, strict=True):
        # The residual stream has a few channels in the hundreds, so the bound is a share of each layer's own scale.
        assert (one - other).abs().max() < 2e-5 * other.abs().max()
    with torch.inference_mode():
        logits = fresh(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    torch.testing.assert_close(smollm.logits(found[-1][0]), logits, rtol=0, atol=5e-3)
    assert (smollm.logits(found[-1][0]).argmax(-1) == logits.argmax(-1)).all()
    trace = run(smollm, ids)
    np.testing.assert_allclose(trace.nll[:-1], tiny.nll(logits, ids), atol=1e-3)


@pytest.mark.parametrize("method", ["a2sf(budget=16)", "h2o(budget=16)", "streaming_llm(budget=16)"])
def test_on_the_embedded_model_masked_simulation_equals_physical_eviction(smollm, method):
    pipeline = Pipeline.parse(f"eviction={method}")
    ids = smollm.encode(PROSE)[:60]
    out = generate(smollm, ids, pipeline, max_new_tokens=12, stop_at_eos=False, against_dense=False)
    masked = run(smollm, out.trace.token_ids.tolist(), pipeline, against_dense=False)
    assert out.trace.n_tokens == 71
    np.testing.assert_array_equal(masked.evicted_at, out.trace.evicted_at)
    np.testing.assert_allclose(masked.nll, out.trace.nll, atol=1e-4, rtol=0)
    assert (out.trace.evicted_at < 71).any(-1).all()  # every layer and head dropped something
    # 30 layers · 3 KV heads · 16 keys · 64 channels · keys and values · 4 bytes
    assert out.kv_bytes == out.trace.kv_bytes == masked.kv_bytes == 30 * 3 * 16 * 64 * 2 * 4
    assert out.kv_bytes_dense == 30 * 3 * 71 * 64 * 2 * 4


def test_on_the_embedded_model_a_whole_budget_writes_what_the_dense_model_writes(smollm, fresh):
    ids = smollm.encode(PROSE)[:60]
    dense = generate(smollm, ids, max_new_tokens=8, stop_at_eos=False)
    whole = generate(smollm, ids, Pipeline(eviction=methods.A2SF(budget=67)), max_new_tokens=8, stop_at_eos=False)
    with torch.inference_mode():
        expected = fresh.generate(
            torch.tensor([ids]),
            max_new_tokens=8,
            min_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
            repetition_penalty=1.0,
        )
    assert dense.token_ids == whole.token_ids == expected[0, 60:].tolist()
    assert dense.text == smollm.tokenizer.decode(dense.token_ids, skip_special_tokens=True) == dense.trace.continuation
