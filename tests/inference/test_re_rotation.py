"""Streaming eviction that rotates keys to their places in the cache."""

from __future__ import annotations

import sys

import pytest
import torch

from sparsity_core import methods, run
from sparsity_core.attention.eviction import re_rotated
from sparsity_core.kinds.eviction import LayerShape
from tests import tiny
from tests.inference.every import pipeline, text


def test_re_rotated_streaming_equals_keys_rotated_to_their_place_in_the_cache():
    """Position by position: what a query sees is laid out 0, 1, 2 … and rotated there, from unrotated keys."""
    ids, n_sink, budget = text()[:24], 2, 8
    model = tiny.model()
    with tiny.hidden_states(model.hf) as seen:
        run(model, ids, pipeline(f"streaming_llm(budget={budget}, n_sink={n_sink}, re_rotate=True)"))
        run(model, ids, pipeline(f"streaming_llm(budget={budget}, n_sink={n_sink})"))
    frequencies = 10000.0 ** (-torch.arange(0, 16, 2).double() / 16)

    def rotate(x, places):
        angle = torch.as_tensor(places).double()[:, None] * frequencies
        cos, sin = angle.cos(), angle.sin()
        a, b = x[..., :8], x[..., 8:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attend(module, q, k, v, mask, scaling=0.0, **_):
        out = torch.zeros(1, len(ids), 4, 16, dtype=torch.float64)
        for t in range(len(ids)):
            kept = sorted({*range(min(n_sink, t + 1)), *range(max(0, t - (budget - n_sink)), t + 1)})
            assert len(kept) == min(t, budget) + 1
            for head in range(4):
                keys = rotate(k[0, head // 2, kept], range(len(kept)))
                query = rotate(q[0, head, t : t + 1], [len(kept) - 1])[0]
                out[0, t, head] = (keys @ query * scaling).softmax(0) @ v[0, head // 2, kept]
        return out, None

    plain = tiny.transformer("llama")
    with pytest.MonkeyPatch.context() as patch, tiny.hidden_states(plain) as expected:
        patch.setattr("transformers.models.llama.modeling_llama.apply_rotary_pos_emb", lambda q, k, *_: (q, k))
        patch.setattr("transformers.models.llama.modeling_llama.eager_attention_forward", attend)
        plain(input_ids=torch.tensor([ids]), use_cache=False)
    re_rotated, as_written = seen[0], seen[2]
    torch.testing.assert_close(re_rotated, expected[0], rtol=0, atol=1e-4)  # transformers rotates in float32
    assert (as_written - expected[0]).abs().max() > 0.1


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "phi", "gemma", "gemma2"])
def test_a_re_rotated_query_is_the_models_own_query_at_the_budgets_position(family):
    model, start, budget = tiny.model(family, torch.float32), 20, 8
    rotary, modeling = model.hf.base_model.rotary_emb, sys.modules[type(model.hf).__module__]
    n_turned = 2 * len(rotary.inv_freq)
    q = torch.randn(1, 4, 1, 16, generator=torch.Generator().manual_seed(0))

    def at(position: int) -> torch.Tensor:
        cos, sin = rotary(q, torch.tensor([[position]]))
        turned, _ = modeling.apply_rotary_pos_emb(q[..., :n_turned], q[..., :n_turned], cos, sin)
        return torch.cat([turned, q[..., n_turned:]], -1)

    rule = methods.StreamingLLM(budget=budget, re_rotate=True).rule(LayerShape(0, 3, 2))
    assert rule.re_rotate and rule.budget == budget
    torch.testing.assert_close(re_rotated(at(start), start, budget, model), at(budget), rtol=0, atol=1e-5)
    torch.testing.assert_close(re_rotated(at(5), 5, budget, model), at(5), rtol=0, atol=1e-6)
    assert (at(start) - at(budget)).abs().max() > 0.1


def test_re_rotation_is_refused_where_it_would_be_wrong():
    with pytest.raises(ValueError, match=r"gpt2.* has no rotary positions, which re_rotate needs: leave it out"):
        run(tiny.model("gpt2"), text(), pipeline("streaming_llm(budget=12, re_rotate=True)"))
    with pytest.raises(ValueError, match=r"does not know how tiny-gemma3 .* lays out its rotary channels"):
        run(tiny.model("gemma3"), text(), pipeline("streaming_llm(budget=12, re_rotate=True)"))
    with pytest.raises(ValueError, match="no others that are protected: leave one out"):
        pipeline("streaming_llm(budget=12, re_rotate=True, protect='7')")
