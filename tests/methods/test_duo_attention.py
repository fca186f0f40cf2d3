"""DuoAttention: heads that keep everything beside heads that stream, by a file or by what streaming would lose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsity_core import generate, methods, run
from sparsity_core.kinds import LayerShape
from sparsity_core.methods.eviction.duo_attention.pattern import kept_whole, measure
from sparsity_core.models import calibration_text, windows
from tests import tiny
from tests.inference.every import pipeline, same_traces
from tests.methods.qkv import dense_qkv, kept_after

IDS = tiny.ids(40)
SCORES = "0.9\t0.1\n0.2\t0.8\n0.3\t0.4\n"  # of the tiny model's 3 layers of 2 KV heads


@pytest.fixture
def pattern(tmp_path):
    file = tmp_path / "full_attention_heads.tsv"
    file.write_text(SCORES)
    return file


def duo(file, **knobs):
    return methods.DuoAttention(budget=12, n_sink=3, pattern=str(file), **knobs)


def test_the_highest_scores_of_all_layers_keep_everything(pattern):
    """Half of six heads: .9, .8 and .4."""
    rules = [duo(pattern).rule(LayerShape(i, 3, 2)) for i in range(3)]
    assert [rule.budget for rule in rules] == [(None, 12), (12, None), (12, None)]
    assert all(rule.n_sink == 3 and rule.recent == 9 and not rule.scored for rule in rules)
    assert kept_whole(np.full((2, 2), 0.5), 0.5).tolist() == [[True, True], [False, False]]
    assert not kept_whole(np.ones((2, 2)), 0.0).any() and kept_whole(np.ones((2, 2)), 1.0).all()


def test_a_streaming_head_holds_its_sinks_and_its_window(pattern):
    trace = run(tiny.model(), IDS, f"eviction={duo(pattern)}")
    for query in (11, 12, 25, 38):
        held = [*range(min(3, query + 1)), *range(max(3, query - 8), query + 1)]
        assert kept_after(trace, 0, 0, query) == list(range(query + 1))
        assert kept_after(trace, 0, 1, query) == held
    assert trace.kv_bytes == 3 * (40 + 12) * 2 * 16 * 8


def test_masked_simulation_equals_physical_eviction(pattern):
    method = f"eviction={duo(pattern)}"
    with tiny.hidden_states(tiny.model().hf) as seen:
        real = generate(tiny.model(), IDS[:25], method, max_new_tokens=10, stop_at_eos=False).trace
        physical = torch.cat(seen[:-1])
        masked = run(tiny.model(), real.token_ids.tolist(), method)
    torch.testing.assert_close(seen[-2], physical, rtol=0, atol=1e-9)
    same_traces(masked, real, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_heads_stream_or_none_does(pattern, share):
    trace = run(tiny.model(), IDS, f"eviction={duo(pattern, retrieval=share)}")
    other = run(tiny.model(), IDS, pipeline("streaming_llm(budget=12, n_sink=3)") if share == 0 else None)
    np.testing.assert_array_equal(trace.evicted_at, other.evicted_at)


def test_what_is_measured_is_the_attention_that_streaming_would_lose():
    model = tiny.model()
    found = measure(model, 4, 8)
    assert found.shape == (3, 2)
    lost = np.zeros((3, 2))
    for ids in windows(model, calibration_text()[:100_000], count=4, length=320, seed=0):
        for layer, (q, k, _) in enumerate(dense_qkv(model, ids.tolist())):
            key = torch.arange(320)
            outside = (key[None] >= 4) & (key[None] <= key[:, None] - 8)
            for head in range(4):
                p = (q[head] @ k[head // 2].T / 4).masked_fill(key[None] > key[:, None], float("-inf")).softmax(-1)
                lost[layer, head // 2] += float((p * outside).sum()) / 320 / 2 / 4
    np.testing.assert_allclose(found, lost, atol=1e-9)


def test_auto_keeps_the_heads_that_would_lose_most():
    trace = run(tiny.model(), IDS, pipeline("duo_attention(budget=12, n_sink=4)"))
    whole = (trace.evicted_at == 40).all(-1)
    np.testing.assert_array_equal(whole, kept_whole(measure(tiny.model(), 4, 8), 0.5))
    assert whole.sum() == 3
    with pytest.raises(ValueError, match="pattern=auto is measured on a model"):
        methods.DuoAttention(budget=12, n_sink=4).rule(LayerShape(0, 3, 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.5\t0.5\n", "is of 1 layers of 2 KV heads and the model has 3 of 2: it is another model's"),
        ("0.5\thalf\n", "cannot read the pattern .*: a line for each layer, numbers with a tab between them"),
        ("0.1\t0.2\n0.3\tnan\n0.5\t0.6\n", "holds scores that are no numbers"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(tmp_path, text, said):
    file = tmp_path / "pattern.tsv"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        run(tiny.model(), IDS, f"eviction={duo(file)}")


def test_other_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot read the pattern"):
        run(tiny.model(), IDS, f"eviction={duo(tmp_path / 'absent.tsv')}")
    with pytest.raises(ValueError, match="n_sink = 16 is above the budget of 12"):
        methods.DuoAttention(budget=12)
    with pytest.raises(ValueError, match="retrieval is at most 1; got 2"):
        methods.DuoAttention(retrieval=2.0)
