"""The prefill stage: masks by hand and against loops written from the papers, causality, and what runs under them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sparselens_kernels import (
    BlockColumns,
    Blocks,
    Buckets,
    Columns,
    Diagonals,
    KeyMask,
    Window,
    evict_scan,
    flash_column_score,
    masked_attention,
)

from sparsity_core import Pipeline, generate, run
from sparsity_core.evaluate import perplexity
from sparsity_core.kinds import PromptView
from sparsity_core.models import recording
from tests import tiny

WIDE = [  # every method where its pattern covers the whole text
    "sliding_window(window=500)",
    "longformer(window=500)",
    "strided(stride=500)",
    "bigbird(block=16, window_blocks=40)",
    "lsh(buckets=2, rounds=1, window=500)",
    "minference(vertical=500, slash=500)",
    "flexprefill(coverage=1.0, block=16)",
    "xattention(coverage=1.0, block=16, stride=4)",
    "assa(min_ratio=1.0, max_ratio=1.0, block=16)",
    "assa(min_ratio=1.0, max_ratio=1.0, block=16, look_ahead=True)",
]
NARROW = [
    "sliding_window(window=7)",
    "longformer(window=7, n_global=3)",
    "strided(stride=6)",
    "bigbird(block=8, window_blocks=1, random_blocks=1)",
    "lsh(buckets=8, rounds=1, window=3)",
    "assa(block=16, window=5, max_ratio=0.3)",
    "assa(block=16, window=5, segment=block)",
    "assa(block=16, window=5, samplers=vote, hierarchical=True, repeated=newest)",
    "assa(block=16, window=5, repeated=mean)",
    "assa(block=16, window=5, samplers=union, rescored=2)",
]
LOOKING = [
    "minference(vertical=5, slash=5, n_sink=2, probes=8)",
    "flexprefill(coverage=0.7, block=16)",
    "xattention(coverage=0.6, block=16, stride=4)",
    "assa(block=16, window=5, look_ahead=True)",
    "assa(block=16, window=5, look_ahead=True, queries=selected)",
]
IDS = tiny.ids(75)


class KeepViews:
    """Follows a forward and keeps what a prefill method would be shown in each layer."""

    def __init__(self) -> None:
        self.views: list[PromptView] = []

    def attend(self, call):
        texts = tuple(" " for _ in range(call.n_queries))
        self.views.append(PromptView(call.layer, call.q[0], call.k[0], call.v[0], call.scale, texts))
        return flash_column_score(call.q, call.k, call.v, **call.how).out


def views(ids=IDS, family="llama") -> list[PromptView]:
    """What a prefill method is shown in each layer of the tiny model."""
    model, keep = tiny.model(family), KeepViews()
    with recording(keep), torch.inference_mode():
        model.hidden(torch.tensor([ids]), use_cache=False)
    return keep.views


def rows_of(mask: KeyMask) -> np.ndarray:
    """bool [lists, T, T]"""
    rows = mask.rows(0, mask.n_tokens, torch.arange(mask.n_tokens))
    return rows.expand(mask.lists, -1, -1).numpy()


def mask_of(method: str, view: PromptView) -> np.ndarray:
    """bool [lists, T, T]"""
    made = Pipeline.parse(f"prefill={method}").prefill
    return rows_of(made.mask(view))


def softmax_rows(view: PromptView) -> np.ndarray:
    """float64 [H, T, T] of causal attention."""
    n, group = view.n_tokens, view.q.shape[0] // view.k.shape[0]
    logits = np.einsum("hqd,hkd->hqk", view.q.numpy(), view.k.numpy().repeat(group, 0)).astype(np.float64) * view.scale
    logits = np.where(np.tril(np.ones((n, n), bool)), logits, -np.inf)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def terms(n: int, lists: int, seed: int) -> list:
    rng = torch.Generator().manual_seed(seed)
    blocks = -(-n // 16)

    def some(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=rng) < 0.15

    def hashes() -> torch.Tensor:
        return torch.randint(0, 5, (lists, 2, n), generator=rng)

    return [
        Window(9),
        Window(9, 16),
        Columns(some(lists, n)),
        Columns(some(1, n), some(lists, n)),
        BlockColumns(some(lists, blocks, n), 16),
        Blocks(some(lists, blocks, blocks), 16),
        Diagonals(some(lists, n)),
        Buckets(hashes(), hashes()),
    ]


@given(
    n=st.sampled_from([1, 17, 63, 130]), lists=st.sampled_from([2, 6]), which=st.integers(0, 7), seed=st.integers(0, 9)
)
def test_attention_under_a_mask_equals_plain_attention_under_its_rows(n, lists, which, seed):
    mask = KeyMask([terms(n, lists, seed)[which], Window(3)], lists, n)
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, n, 16, generator=rng, dtype=torch.float64) for heads in (6, 2, 2))
    rows = torch.from_numpy(rows_of(mask))
    logits = torch.einsum("hqd,hkd->hqk", q[0], k[0].repeat_interleave(3, 0)) / 4
    plain = logits.masked_fill(~rows.repeat_interleave(6 // lists, 0), -math.inf).softmax(-1) @ v[0].repeat_interleave(
        3, 0
    )
    torch.testing.assert_close(masked_attention(q, k, v, mask).out[0], plain)
    torch.testing.assert_close(masked_attention(q, k, v, mask, backend="flex").out[0], plain)
    torch.testing.assert_close(flash_column_score(q, k, v, mask=mask).out[0], plain)
    torch.testing.assert_close(evict_scan(q, k, v, budget=n, mask=mask).out[0], plain)
    for start, size in itertools.product(range(0, n, 8), (8, 20)):  # within a block of 16, and across its edge
        end = min(n, start + size)
        key = torch.arange(end)
        part, some, whole = (x(start, end, key) for x in (mask.rows, mask.columns, mask.whole))
        assert (part == rows[:, start:end, :end]).all()
        assert not (part.any(1) & ~some).any()  # no key that is seen is left ungathered
        assert not (whole & ~part.all(1)).any()  # and none is taken for seen by all that is not


def test_each_core_attends_to_blocks_of_its_own():
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 330, 16, generator=rng) for heads in (6, 2, 2))
    mask = KeyMask([Columns(torch.rand(2, 330, generator=rng) < 0.15), Window(5)], 2, 330)
    alone = masked_attention(q, k, v, mask)
    try:
        torch.set_num_threads(2)
        with torch.inference_mode():
            shared = masked_attention(q, k, v, mask)
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError):  # what fails on a core fails here
            masked_attention(q, k, v, KeyMask([Columns(torch.ones(2, 9, dtype=torch.bool))], 2, 330))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(shared.out, alone.out)
    assert shared.out.is_inference() and shared.pairs == alone.pairs


@pytest.mark.parametrize("n", [100, 384, 700])
@pytest.mark.parametrize("block", [16, 100, 128, 300])
def test_tiles_of_a_mask_of_blocks_are_those_that_its_rows_touch_and_fill(n, block):
    rng = torch.Generator().manual_seed(n + block)
    blocks = -(-n // block)
    kept = torch.rand(2, blocks, blocks, generator=rng) < 0.6
    kept[1] = True
    for terms_of in ([Blocks(kept, block)], [Window(200)], [Window(70, 50)], [Window(1), Blocks(kept, block)]):
        mask = KeyMask(terms_of, 2, n)
        tiles = -(-n // 128)
        shown = torch.zeros(2, tiles * 128, tiles * 128, dtype=torch.bool)
        shown[:, :n, :n] = torch.from_numpy(rows_of(mask))
        within = torch.zeros(tiles * 128, dtype=torch.bool)
        within[:n] = True
        beyond = ~(within[:, None] & within)
        by_tile = (2, tiles, 128, tiles, 128)
        some, whole = mask.tiles(128, torch.device("cpu"))
        assert torch.equal(some.expand(2, -1, -1), shown.view(by_tile).any(4).any(2))
        filled = (shown | beyond).view(by_tile).all(4).all(2)
        assert not (whole & ~filled).any()
        assert len(terms_of) > 1 or torch.equal(whole.expand(2, -1, -1), filled)


def test_making_a_mask_of_blocks_takes_no_more_steps_for_a_longer_prompt():
    from sparselens_kernels.masked_attention.flex import block_mask
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counted(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += 1
            return func(*args, **(kwargs or {}))

    found = []
    for n in (512, 4096):
        mask = KeyMask([Blocks(torch.ones(2, n // 128, n // 128, dtype=torch.bool), 128), Window(64)], 2, n)
        with Counted() as counted:
            block_mask(mask, 4, torch.device("cpu"), 256, torch.full((1, 2, n), n, dtype=torch.int32))
        found.append(counted.n)
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="anywhere"):
        KeyMask([Diagonals(torch.ones(1, 9, dtype=torch.bool))], 1, 9).tiles(128, torch.device("cpu"))


def test_a_prompt_said_to_be_shorter_changes_nothing_where_nothing_is_cut():
    pipeline = "prefill=sliding_window(window=7)"
    whole, said = (run(tiny.model(), IDS, pipeline, n_prefill=n, against_dense=False) for n in (None, 30))
    assert np.array_equal(whole.nll[:-1], said.nll[:-1])


def test_a_scan_that_evicts_under_a_mask_equals_one_key_at_a_time():
    n, budget = 40, 8
    rng = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, heads, n, 8, generator=rng, dtype=torch.float64) for heads in (2, 1, 1))
    mask = KeyMask([Columns(torch.rand(1, n, generator=rng) < 0.4), Window(3)], 1, n)
    found = evict_scan(q, k, v, budget=budget, decay=0.5, mask=mask)
    shown, kept, score = rows_of(mask)[0], [], {}
    gone = {}
    for i in range(n):
        kept.append(i)
        seen = [j for j in kept if shown[i, j]]
        p = torch.softmax(q[0, :, i] @ k[0, 0, seen].T / 8**0.5, -1).sum(0)
        score = {j: 0.5 * score.get(j, 0.0) for j in kept}
        for j, x in zip(seen, p, strict=True):
            score[j] += float(x)
        if len(kept) > budget:
            lowest = min(kept, key=lambda j: (score[j], j))
            kept.remove(lowest)
            gone[lowest] = i + 1
    assert {j: int(at) for j, at in enumerate(found.evicted_at[0, 0]) if int(at) <= n} == gone


@pytest.mark.parametrize("method", WIDE)
def test_a_pattern_that_covers_the_text_is_dense(method):
    dense, found = run(tiny.model(), IDS), run(tiny.model(), IDS, f"prefill={method}")
    assert found.prefill.shown.tolist() == np.broadcast_to(np.arange(1, 76), found.prefill.shown.shape).tolist()
    np.testing.assert_allclose(found.prefill.coverage, 1.0, atol=1e-5)
    if not found.prefill.looks_ahead:
        np.testing.assert_allclose(found.nll, dense.nll, atol=1e-5)
    out = generate(tiny.model(), IDS, f"prefill={method}", max_new_tokens=4, stop_at_eos=False)
    assert out.token_ids == generate(tiny.model(), IDS, max_new_tokens=4, stop_at_eos=False).token_ids


@pytest.mark.parametrize("method", NARROW)
def test_no_later_token_changes_what_an_earlier_query_sees(method):
    other = [*IDS[:50], *reversed(IDS[50:])]
    for one, two in zip(views(), views(other), strict=True):
        before, after = mask_of(method, one), mask_of(method, two)
        assert (before[:, :50] == after[:, :50]).all()
        assert not before.all()
        assert before[:, range(75), range(75)].all() and not np.triu(before, 1).any()


@pytest.mark.parametrize("method", LOOKING)
def test_a_method_that_looks_ahead_says_so_and_gives_no_losses_of_what_it_looked_at(method):
    trace = run(tiny.model(), IDS, f"prefill={method}")
    assert trace.prefill.looks_ahead and np.isnan(trace.nll).all() and math.isnan(trace.perplexity)
    assert np.isnan(trace.kl_to_dense[:-1]).all()
    assert "looks ahead" in trace.notes[0]
    assert 0 < np.nanmean(trace.prefill.coverage) < 1
    with pytest.raises(ValueError, match=r"looks ahead: .* Choose a causal method, or measure what it generates"):
        perplexity(tiny.model(), "abcdefgh" * 30, f"prefill={method}", block=60)
    out = generate(tiny.model(), IDS, f"prefill={method}", max_new_tokens=5, stop_at_eos=False)
    assert np.isnan(out.trace.nll[:74]).all() and np.isfinite(out.trace.nll[74:-1]).all()


@pytest.mark.parametrize("method", NARROW)
def test_generation_reads_the_prompt_as_one_forward_does(method):
    out = generate(tiny.model(), IDS, f"prefill={method}", max_new_tokens=1, stop_at_eos=False)
    same = run(tiny.model(), IDS, f"prefill={method}")
    np.testing.assert_allclose(out.trace.nll, same.nll, atol=1e-5)


@pytest.mark.parametrize("more", ["eviction=a2sf(budget=12)", "eviction=snapkv(budget=16, observation_window=4)"])
@pytest.mark.parametrize("method", ["sliding_window(window=9)", "assa(block=16, window=5)"])
def test_eviction_beside_a_mask_leaves_the_same_keys_simulated_and_physical(method, more):
    pipeline = f"prefill={method} {more}"
    out = generate(tiny.model(), IDS, pipeline, max_new_tokens=1, stop_at_eos=False)
    again = run(tiny.model(), IDS, pipeline, n_prefill=len(IDS))
    np.testing.assert_array_equal(out.trace.evicted_at, again.evicted_at)
    np.testing.assert_allclose(out.trace.nll, again.nll, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("assa(coverage=1.5)", "coverage is at most 1"),
        ("assa(coverage=0.0)", "coverage is at least"),
        ("assa(min_ratio=0.5, max_ratio=0.1)", "min_ratio is at most max_ratio"),
        ("assa(queries=selected)", "set look_ahead=True, or queries=all"),
        ("assa(segment=paragraph)", "segment is one of block, sentence"),
        ("assa(block=8, probes=9)", "probes are the last of a block of 8"),
        ("xattention(block=64, stride=24)", "a whole number of strides"),
        ("lsh(buckets=7)", "an even number"),
        ("quest", "is no method of the prefill stage"),
    ],
)
def test_bad_numbers_are_a_sentence(method, sentence):
    with pytest.raises(ValueError, match=sentence):
        Pipeline.parse(f"prefill={method}")


@pytest.mark.parametrize("method", [*NARROW, *LOOKING])
@pytest.mark.parametrize("n", [1, 2, 17])
def test_short_texts_and_windows_beyond_them(method, n):
    trace = run(tiny.model(), IDS[:n], f"prefill={method}")
    assert (trace.prefill.shown >= 1).all() and (trace.prefill.shown <= np.arange(1, n + 1)).all()


def test_a_trace_of_a_prefill_comes_back_from_its_file(tmp_path):
    from sparsity_core import Trace

    trace = run(tiny.model(), IDS, "prefill=bigbird(block=16) eviction=h2o(budget=20)")
    trace.save(tmp_path / "t.npz")
    back = Trace.load(tmp_path / "t.npz")
    assert back.stages == ["prefill=bigbird(block=16)", "eviction=h2o(budget=20)"]
    np.testing.assert_array_equal(back.prefill.shown, trace.prefill.shown)
    assert back.prefill.block == trace.prefill.block and not back.prefill.looks_ahead
