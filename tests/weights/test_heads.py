"""Cutting heads: the rest is untouched, the ranking is what it says, and others load the result."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsity_core import Pipeline, generate, methods, run
from sparsity_core.weights.heads import heads_of, n_units, output_projections, shrinks
from tests import tiny
from tests.methods.test_weight_comparators import close, logits, modules, weight_times_gradient

SHRINKING = [family for family in tiny.FAMILIES if family not in ("gpt2", "opt")]
HALF = methods.HeadPruning(ratio=0.5, importance="norm")


def value_and_output(family: str, layer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """[hidden of the values, hidden], [hidden, H · D] as the family stores them."""
    if family == "gpt2":
        return layer.attn.c_attn.weight[:, 128:].T, layer.attn.c_proj.weight.T
    output = {"phi": "dense", "opt": "out_proj"}.get(family, "o_proj")
    return layer.self_attn.v_proj.weight, getattr(layer.self_attn, output).weight


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_cut_is_the_model_with_those_heads_silenced(family):
    """An oracle of its own: the whole model with the cut heads' columns of the output projection set to nought."""
    compressed = tiny.model(family).compress(HALF)
    silenced = tiny.transformer(family)
    for module, kept in zip(modules(silenced, family, 2), compressed.extra["kept_heads_by_layer"], strict=True):
        assert len(kept) == 2
        for head in {0, 1, 2, 3} - set(kept):
            columns = slice(16 * head, 16 * head + 16)
            if family == "gpt2":
                module.weight[columns] = 0
            else:
                module.weight[:, columns] = 0
    torch.testing.assert_close(logits(compressed.model.hf), logits(silenced), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", SHRINKING)
def test_whole_groups_go_and_the_configuration_says_so(family):
    model, compressed = tiny.model(family), tiny.model(family).compress(HALF)
    assert shrinks(model) and not compressed.notes
    arch = compressed.model.arch
    n_kv = model.arch.n_kv_heads // 2
    assert (arch.n_heads, arch.n_kv_heads, arch.head_dim, arch.hidden_size) == (2, n_kv, 16, 64)
    for kept in compressed.extra["kept_heads_by_layer"]:
        assert family == "phi" or kept in ([0, 1], [2, 3])  # the heads that share a KV head
    bias = {"qwen2": 32 + 2 * 16, "phi": 3 * 32}.get(family, 0)
    gone = 3 * (2 * 32 * 64 + 2 * 16 * n_kv * 64 + bias)  # query and output, key and value; of three layers
    sizes = [sum(p.numel() for p in m.hf.parameters()) for m in (model, compressed.model)]
    assert sizes[0] - sizes[1] == gone
    assert compressed.true_cut == gone / sizes[0]


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_where_heads_cannot_go_their_columns_are_noughts(family):
    model, compressed = tiny.model(family), tiny.model(family).compress(HALF)
    assert "the saved size does not shrink" in compressed.notes[0]
    before, after = output_projections(model), output_projections(compressed.model)
    for a, b, kept in zip(before, after, compressed.extra["kept_heads_by_layer"], strict=True):
        a, b = (w.weight if family == "gpt2" else w.weight.T for w in (a, b))  # [H · D, hidden]
        for head in range(4):
            rows = slice(16 * head, 16 * head + 16)
            assert torch.equal(b[rows], a[rows] if head in kept else torch.zeros_like(a[rows]))
    zeros = 3 * 32 * 64
    assert compressed.true_cut == zeros / sum(p.numel() for p in model.hf.parameters())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_norm_is_of_the_product_that_a_value_goes_through(family):
    model = tiny.model(family)
    found = HALF.scores(model, lambda share, doing: None)
    group = model.arch.n_heads // model.arch.n_kv_heads
    for score, layer in zip(found, tiny.layers(tiny.transformer(family)), strict=True):
        value, output = value_and_output(family, layer)
        squares = torch.stack(
            [
                (output[:, 16 * h : 16 * h + 16] @ value[16 * (h // group) : 16 * (h // group) + 16]).square().sum()
                for h in range(4)
            ]
        )
        close(score, squares.unflatten(0, (n_units(model), -1)).sum(1).sqrt())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_gradient_is_of_a_mask_on_all_heads_that_go_together(family):
    model, method = tiny.model(family), methods.HeadPruning(samples=2, length=24)
    products = [weight_times_gradient(family, 2, window) for window in method.windows(model)]
    for layer, score in enumerate(method.scores(model, lambda share, doing: None)):
        masks = torch.stack([p[layer].sum(0).unflatten(0, (n_units(model), -1)).sum(1) for p in products])
        close(score, masks.abs().mean(0))


def test_heads_are_views_of_the_models_own_weights():
    model = tiny.model("llama")
    for heads, layer in zip(heads_of(model), tiny.layers(model.hf), strict=True):
        assert heads.value.data_ptr() == layer.self_attn.v_proj.weight.data_ptr()
        assert torch.equal(heads.output[1], layer.self_attn.o_proj.weight[:, 16:32])


def test_a_share_is_rounded_to_groups_and_the_result_says_so():
    compressed = tiny.model("llama").compress(methods.HeadPruning(ratio=0.3, importance="norm"))
    assert compressed.notes == ("Each layer has 2 KV groups: a share of 0.3 was rounded to 1 of them.",)
    same = tiny.model("llama").compress(methods.HeadPruning(ratio=0.1, importance="norm"))
    assert torch.equal(logits(same.model.hf), logits(tiny.model("llama").hf))
    assert same.notes and not same.true_cut
    with pytest.raises(ValueError, match="leaves none"):
        tiny.model("llama").compress(methods.HeadPruning(ratio=0.9, importance="norm"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_others_load_what_is_saved_bit_for_bit(family, tmp_path):
    compressed = tiny.model(family, torch.float32).compress(HALF)
    report = compressed.report(text=tiny.TEXT)
    assert report["nominal_cut_of_ffn"] == 0 and report["nominal_cut_of_heads"] == 0.5 and not report["calibrated"]
    compressed.save_pretrained(tmp_path / "out", report=report)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False, dtype=torch.float32)
    saved, found = compressed.model.hf.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[name], found[name]) for name in saved)
    loaded.eval().set_attn_implementation(compressed.model.hf.config._attn_implementation)
    assert torch.equal(logits(loaded), logits(compressed.model.hf))


def test_a_model_with_fewer_heads_runs_with_eviction_on_top():
    model = tiny.model("llama")
    pipeline = Pipeline.parse("weights=head_pruning(ratio=0.5, importance=norm) eviction=h2o(budget=12)")
    trace = run(model, tiny.TEXT, pipeline, against_dense=False)
    assert trace.evicted_at.shape[:2] == (3, 1)
    assert len(generate(model, tiny.TEXT, pipeline, max_new_tokens=3).token_ids) >= 3
