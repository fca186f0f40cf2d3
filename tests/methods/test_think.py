"""ThinK: channels leave the prompt's keys when it ends, by norms, and the cache is smaller for it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from sparsity_core import Trace, generate, methods, run
from sparsity_core.attention import ThinLayer
from tests import tiny, traces
from tests.inference.every import same_traces
from ui.channels import tell_thinned

PROMPT, NEW = 30, 12
IDS = tiny.ids(PROMPT + NEW)
THIN = "decode=think(sparsity=0.5, window=6, recent=4)"
KEY = 2 * 16 * 8  # bytes of a key and its value in float64


def test_a_channel_counts_by_both_norms():
    """Over both heads' queries Σ q² is 25, 1, 1; the keys' norms are 1, 10, 1: 5 · 1, 1 · 10 and 1 · 1."""
    q = torch.tensor([[[[3.0, 0, 1], [4, 0, 0]], [[0, 1, 0], [0, 0, 0]]]])
    k = torch.tensor([[[[0.0, 6, 1], [1, 8, 0]]]])
    assert methods.ThinK().importance(q, k)[0, 0].tolist() == pytest.approx([5, 10, 1])


def test_so_many_channels_stay():
    left = [
        methods.ThinK(sparsity=s).channels_left(d) for s, d in [(0.4, 64), (0.4, 128), (0.3, 10), (0.5, 3), (0.99, 16)]
    ]
    assert left == [38, 76, 7, 1, 1]  # 38.4, 76.8, 7, 1.5, 0.16 and one at least


def naive_thin_attention(hf, keeps, *, window: int, recent: int, left: int):
    """What replaces the model's own attention: every pair's logit over the channels that this query sees of this key."""

    def attend(module, q, k, v, mask, scaling=0.0, **own):
        group, n, dim = q.shape[1] // k.shape[1], q.shape[2], q.shape[3]
        out = torch.zeros_like(q)
        for head in range(q.shape[1]):
            kv = head // group
            kept = keeps[module.layer_idx][kv]
            held = [key for key in range(PROMPT) if kept[PROMPT, key] and mask[0, 0, PROMPT, key] == 0]
            norms = []
            for c in range(dim):
                mine = range(kv * group, (kv + 1) * group)
                asked = sum(float(q[0, h, t, c]) ** 2 for h in mine for t in range(PROMPT - window, PROMPT))
                norms.append(asked**0.5 * sum(float(k[0, kv, key, c]) ** 2 for key in held) ** 0.5)
            stay = sorted(range(dim), key=lambda c: norms[c], reverse=True)[:left]
            for query in range(n):
                logits = torch.full((n,), float("-inf"), dtype=torch.float64)
                for key in range(query + 1):
                    channels = stay if query >= PROMPT and key < PROMPT - recent else list(range(dim))
                    logits[key] = (q[0, head, query, channels] @ k[0, kv, key, channels]) * (scaling or dim**-0.5)
                logits = (logits + mask[0, 0, query, :n]).masked_fill(~torch.from_numpy(kept[query]), float("-inf"))
                out[0, head, query] = logits.softmax(-1) @ v[0, kv]
        return out.transpose(1, 2).contiguous(), None

    return attend


@pytest.mark.parametrize(
    ("family", "others"),
    [
        ("llama", ""),
        ("gpt2", ""),
        ("mistral", ""),
        ("llama", "eviction=snapkv(budget=12, observation_window=4) "),
        ("llama", "eviction=streaming_llm(budget=20) "),
    ],
)
def test_the_model_reads_what_a_naive_one_reads(family, others, monkeypatch):
    trace = run(tiny.model(family), IDS, others + THIN, n_prefill=PROMPT, against_dense=False)
    hf = tiny.transformer(family)
    keeps = [trace.keep(layer) for layer in range(3)]
    attend = naive_thin_attention(hf, keeps, window=6, recent=4, left=8)
    monkeypatch.setattr(sys.modules[type(hf).__module__], "eager_attention_forward", attend)
    with torch.inference_mode():
        logits = hf(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]
    np.testing.assert_allclose(trace.nll[:-1], tiny.nll(logits, IDS), rtol=2e-6)
    assert (trace.thinning.channels_kept.sum(2) == 8).all()


EVICTIONS = [
    "",
    "eviction=snapkv(budget=12, observation_window=4) ",
    "eviction=a2sf(budget=12) ",
    "eviction=a2sf(budget=12, variant=prefill, drop='3-7') ",
    "eviction=r_kv(budget=12, every=3, recent=3) ",
    "eviction=ada_kv(budget=12, base='knorm(n_sink=2)') ",
    "eviction=streaming_llm(budget=12, re_rotate=True) ",
]


@pytest.mark.parametrize("others", EVICTIONS)
def test_masked_simulation_equals_what_a_smaller_cache_gives(others):
    with tiny.hidden_states(tiny.model().hf) as seen:
        made = generate(tiny.model(), IDS[:PROMPT], others + THIN, max_new_tokens=NEW, stop_at_eos=False)
        physical = torch.cat(seen[:-1])
        whole = run(tiny.model(), made.trace.token_ids.tolist(), others + THIN, n_prefill=PROMPT)
    torch.testing.assert_close(seen[-2], physical, rtol=0, atol=1e-9)
    same_traces(whole, made.trace, rtol=2e-6, atol=1e-8)
    assert whole.kv_bytes <= made.kv_bytes == made.trace.kv_bytes  # heads that dropped different keys share a rectangle


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "llama"])
def test_every_family_writes_from_a_smaller_cache_what_one_forward_predicts(family):
    made = generate(tiny.model(family), IDS[:PROMPT], THIN, max_new_tokens=5, stop_at_eos=False)
    whole = run(tiny.model(family), made.trace.token_ids.tolist(), THIN, n_prefill=PROMPT)
    same_traces(whole, made.trace, rtol=2e-6, atol=1e-8)
    assert whole.kv_bytes == made.kv_bytes
    assert family == "mistral" or made.kv_bytes < made.trace.kv_bytes_dense  # whose last 8 keys are all it holds


def test_the_bytes_that_are_counted_have_really_gone(monkeypatch):
    """41 keys of 2 heads in 3 layers, of which 26 have lost 8 channels of 8 bytes; a byte for each channel says which."""
    layers = []
    monkeypatch.setattr(ThinLayer, "__init__", lambda self, own=ThinLayer.__init__: (own(self), layers.append(self))[0])
    made = generate(tiny.model(), IDS[:PROMPT], THIN, max_new_tokens=NEW, stop_at_eos=False)
    held = sum(x.untyped_storage().nbytes() for each in layers for x in (each.keys, each.values, each.thin_keys))
    index = 3 * 2 * 16
    assert made.kv_bytes == held + index == 3 * 2 * (41 * KEY - 26 * 8 * 8) + index
    assert [tuple(each.thin_keys.shape) for each in layers] == [(1, 2, 26, 8)] * 3
    assert (made.trace.thinning.thinned == 26).all()


def test_what_takes_nothing_is_the_dense_model():
    dense = run(tiny.model(), IDS)
    for whole in ("sparsity=0.0", "recent=30", "dense_layers=3"):
        trace = run(tiny.model(), IDS, f"decode=think({whole})", n_prefill=PROMPT)
        np.testing.assert_allclose(trace.nll, dense.nll, atol=1e-6)
    within = run(tiny.model(), IDS, THIN, n_prefill=len(IDS))
    np.testing.assert_array_equal(within.nll, dense.nll)
    assert within.thinning.channels_kept.all() and within.kv_bytes == within.kv_bytes_dense


def test_no_query_of_the_prompt_and_no_later_token_changes_what_was_before():
    dense, thin = run(tiny.model(), IDS), run(tiny.model(), IDS, THIN, n_prefill=PROMPT)
    np.testing.assert_allclose(thin.nll[: PROMPT - 1], dense.nll[: PROMPT - 1], rtol=1e-6)
    assert thin.kl_to_dense[PROMPT] > 0
    other = run(tiny.model(), [*IDS[:36], *tiny.ids(6, seed=9)], THIN, n_prefill=PROMPT)
    np.testing.assert_array_equal(other.thinning.channels_kept, thin.thinning.channels_kept)
    np.testing.assert_allclose(other.nll[:35], thin.nll[:35], rtol=1e-6)


def test_half_of_a_text_is_its_prompt_and_a_trace_holds_the_channels(tmp_path):
    trace = run(tiny.model(), IDS, THIN)
    assert trace.n_prefill == 21 and (trace.thinning.thinned == 17).all()
    trace.save(tmp_path / "t.npz")
    again = Trace.load(tmp_path / "t.npz")
    np.testing.assert_array_equal(again.thinning.channels_kept, trace.thinning.channels_kept)
    assert (trace.removed_by(0) == 0).all()  # no key is removed
    said = tell_thinned(again)
    assert said.startswith(
        "17 keys of each head, on average, are held in 8 of 16 channels; the cache takes 9"
    )  # 1 − 17/42 · ¼
    assert traces.trace().thinning is None


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ("sparsity=1.0", "think: sparsity is at most 0.999; got 1.0"),
        ("sparsity=-0.1", "think: sparsity is at least 0; got -0.1"),
        ("window=0", "think: window is at least 1; got 0"),
    ],
)
def test_what_does_not_fit_is_refused(knobs, said):
    with pytest.raises(ValueError, match=said):
        run(tiny.model(), IDS, f"decode=think({knobs})")
