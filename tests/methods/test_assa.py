"""ASSA: its budgets and parts by hand, its coverage, and each recovery option by what it promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sparselens_kernels import Window

from sparsity_core import Pipeline, generate, methods, run
from sparsity_core.methods.prefill.assa.choice import (
    Repeats,
    chosen,
    clusters_of,
    kept_keys,
    means_of_repeats,
    rarity,
    within_parts,
)
from sparsity_core.methods.prefill.assa.parts import Parts
from sparsity_core.methods.prefill.assa.probes import Probes, low_rank, mean_value
from sparsity_core.models import recording
from sparsity_core.models.loading import wrap
from tests import tiny
from tests.methods.test_prefill import IDS, KeepViews, rows_of, softmax_rows, views


def parts(texts, block=64, by="block") -> Parts:
    return Parts.of(texts, len(texts), block, by, torch.device("cpu"))


def test_segments_keep_what_covers_their_importance_by_hand():
    """Segment 0: .5 + .3 reach 80 %; segment 1, of equal importance, needs all but one of five; within max_ratio two of them."""
    importance = torch.tensor([[0.1, 0.5, 0.1, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2]])
    segments = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    assert chosen(importance, segments, 0.8, 0.0, 1.0)[0].int().tolist() == [0, 1, 0, 1, 1, 1, 1, 1, 0]
    assert chosen(importance, segments, 0.8, 0.0, 0.4)[0].int().tolist() == [0, 1, 0, 1, 1, 1, 0, 0, 0]
    assert chosen(importance, segments, 1e-6, 0.5, 0.5)[0].int().tolist() == [0, 1, 0, 1, 1, 1, 1, 0, 0]


def test_sentences_are_segments_and_a_text_of_one_is_one():
    found = parts(["A", " b", ".", " C", "!", "\n", "d"], by="sentence")
    assert found.segments.tolist() == found.sentences.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert found.paragraphs.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert found.marked.tolist() == [1, 0, 0, 1, 0, 1, 1]  # begins a sentence, or is a number or capitalised
    assert parts(["A", " b"], by="sentence").segments.tolist() == [0, 0]
    assert parts(["a"] * 5, block=2).segments.tolist() == [0, 0, 1, 1, 2]


def test_assa_reaches_its_coverage_where_max_ratio_allows():
    """Of the importance by the probes themselves, in every block of queries and segment."""
    chosen_by = methods.ASSA(
        coverage=0.6, max_ratio=1.0, min_ratio=0.0, segment="block", block=16, probes=4, window=1, n_sink=0
    )
    pipeline = Pipeline(prefill=chosen_by)
    for view in views():
        found = rows_of(pipeline.prefill.mask(view))
        p = softmax_rows(view).reshape(view.k.shape[0], -1, 75, 75).sum(1)
        for start in range(16, 75, 16):
            probes = [q for q in range(start) if q % 16 >= 12]
            seen = np.asarray([sum(q >= k for q in probes) for k in range(start)])
            importance = p[:, probes, :start].sum(1) / seen
            for first in range(0, start, 16):
                own = slice(first, first + 16)
                kept = (importance[:, own] * found[:, start, own]).sum(-1)
                assert (kept >= 0.6 * importance[:, own].sum(-1) * (1 - 1e-5)).all()


def test_parts_that_hold_little_are_left_out_before_their_keys():
    """Two paragraphs of two sentences: the second holds a tenth, and of the first its second sentence a fifth."""
    found = parts(["a", ".", "b", "\n", "c", ".", "d", "\n"])
    importance = torch.tensor([[0.3, 0.42, 0.09, 0.09, 0.02, 0.03, 0.02, 0.03]])
    assert within_parts(importance, found, 0.85)[0].tolist() == pytest.approx([0.3, 0.42, 0.09, 0.09, -1, -1, -1, -1])
    assert within_parts(importance, found, 0.75)[0].tolist() == pytest.approx([0.3, 0.42, -1, -1, -1, -1, -1, -1])


def test_a_cluster_counts_as_much_as_another_whatever_its_size():
    k = torch.tensor([[[1.0, 0.0], [1.0, 0.01], [1.0, 0.02], [-1.0, 0.3]]])
    assert rarity(clusters_of(k))[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])


def test_the_samplers_keep_within_the_budget_and_bring_what_attention_would_not():
    n = 128
    importance = torch.linspace(1.0, 0.1, n)[None]
    clusters = torch.zeros(1, n, dtype=torch.int64)
    clusters[0, 100] = 1  # the only key of its cluster, though little looked at
    texts = ["x"] * n
    texts[90] = " 1984"
    for samplers in ("union", "vote"):
        knobs = methods.ASSA(samplers=samplers, max_ratio=0.25, min_ratio=0.0)
        kept = kept_keys(knobs, importance, clusters, parts(texts))[0]
        assert 0 < int(kept.sum()) <= 0.25 * n + 3
        alone = kept_keys(methods.ASSA(max_ratio=0.25, min_ratio=0.0), importance, None, parts(texts))[0]
        assert kept[100] and kept[90] and not alone[100] and not alone[90]


def test_of_repeated_keys_the_newest_is_kept():
    base = torch.nn.functional.normalize(torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0)), dim=2)
    k = torch.cat([base, 2 * base[:, 2:4]], dim=1)  # keys 6 and 7 repeat 2 and 3
    found = Repeats.of(k)
    assert found.following[0].tolist() == [8, 8, 6, 7, 8, 8, 8, 8]
    assert found.newest(8)[0].int().tolist() == [1, 1, 0, 0, 1, 1, 1, 1]
    assert found.newest(7)[0].int().tolist() == [1, 1, 0, 1, 1, 1, 1]  # key 7 has not come yet


def test_a_key_that_repeats_others_is_read_as_their_mean():
    """By hand: key 2 points as key 0 does and is twice as long, key 3 as both: (1 + 2) / 2, and (1 + 2 + 3) / 3."""
    k = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [3.0, 0.0]]])
    v = torch.tensor([[[6.0], [1.0], [0.0], [9.0]]])
    mean_k, mean_v = means_of_repeats(k, v)
    assert mean_k[0].tolist() == [[1.0, 0.0], [0.0, 1.0], [1.5, 0.0], [2.0, 0.0]]
    assert mean_v[0, :, 0].tolist() == [6.0, 1.0, 3.0, 5.0]


def nearly_without_positions():
    """A tiny GPT-2 whose equal tokens have nearly equal keys in the first layer."""
    made = tiny.transformer("gpt2")
    with torch.no_grad():
        made.transformer.wpe.weight.mul_(0.02)
    return made


def test_the_layer_attends_over_the_means_and_its_cache_holds_its_own_keys():
    made, seen = nearly_without_positions(), []
    made.transformer.h[0].attn.c_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model = wrap(made, tiny.tokenizer(), "repeats")
    method = methods.ASSA(segment="block", block=16, window=5, max_ratio=0.3, repeated="mean")
    keep = KeepViews()
    ids = (IDS * 2)[:75]
    with recording(keep), torch.inference_mode():
        model.hidden(torch.tensor([ids]), use_cache=False)
    view, seen[:] = keep.views[0], []
    trace = run(model, ids, Pipeline(prefill=method), against_dense=False)
    mask = method.mask(view)
    alike = torch.nn.functional.cosine_similarity(view.k[:, :, None], view.k[:, None], dim=3) > 0.95
    alike = (alike & torch.ones(75, 75, dtype=torch.bool).tril()).to(view.k.dtype)
    mean_k, mean_v = (alike @ x / alike.sum(2, keepdim=True) for x in (view.k, view.v))
    assert (mean_k - view.k).abs().max() > 0.01
    logits = (view.q @ mean_k.mT * view.scale).masked_fill(~torch.from_numpy(rows_of(mask)), -torch.inf)
    expected = (logits.softmax(2) @ mean_v).transpose(0, 1).flatten(1)
    torch.testing.assert_close(seen[0][0], expected, rtol=1e-4, atol=1e-5)
    plain = run(model, ids, Pipeline(prefill=dataclasses.replace(method, repeated="newest")))
    assert not np.allclose(trace.nll, plain.nll, atol=1e-4)
    out = generate(model, ids, Pipeline(prefill=method), max_new_tokens=1, stop_at_eos=False)
    np.testing.assert_allclose(out.trace.nll, trace.nll, atol=1e-5)


def test_probes_judge_again_by_what_was_kept_alone():
    """By hand: of a row .5 .3 .2 a probe that may look at the first two alone gives them .625 and .375."""
    probes = Probes(torch.tensor([2]), torch.tensor([[[0.5, 0.3, 0.2]]]))
    assert probes.importance(1)[0, 0].tolist() == pytest.approx([0.5, 0.3, 0.2])
    again = probes.importance(1, seen_by=torch.tensor([[[True, True, False]]]))
    assert again[0, 0].tolist() == pytest.approx([0.625, 0.375, 0.0])


def test_the_mean_value_stands_in_for_what_is_left_out_by_hand():
    """One probe gives .6 to a kept key, .3 and .1 to two that are left out: .4 of the output is (.3 · 2 + .1 · 6) / .4 = 3."""
    probes = Probes(torch.tensor([3]), torch.tensor([[[0.6, 0.3, 0.1, 0.0]]]))
    v = torch.tensor([[[1.0], [2.0], [6.0], [0.0]]])
    correct = mean_value(probes, torch.tensor([[True, False, False, True]]), Window(1), v)
    out = correct(torch.zeros(1, 2, 4), torch.tensor([[[1.0], [5.0]]]))
    assert out[0, :, 0].tolist() == pytest.approx([0.6 * 1 + 0.4 * 3, 0.6 * 5 + 0.4 * 3])


def test_the_low_rank_map_brings_the_probes_nearer_to_dense():
    for view in views():
        probes = Probes.of(view, 16, 8)
        kept = torch.zeros(view.k.shape[0], view.n_tokens, dtype=torch.bool)
        kept[:, ::3] = True
        lost = probes.left_out(kept, Window(5))
        rows = probes.rows[:, -lost.shape[1] :]
        group = view.q.shape[0] // view.k.shape[0]
        values = view.v.float().repeat_interleave(group, 0)
        dense = rows @ values
        sparse = (rows - lost) @ values / (1 - lost.sum(-1, keepdim=True))
        correct = low_rank(probes, kept, Window(5), view.q, view.v)
        found = correct(view.q[:, probes.at[-lost.shape[1] :]], sparse)
        assert (found - dense).norm() < 0.8 * (sparse - dense).norm()


@pytest.mark.parametrize("compensation", ["mean", "low_rank"])
def test_compensation_touches_no_query_that_sees_everything(compensation):
    same = f"assa(block=16, min_ratio=1.0, max_ratio=1.0, compensation={compensation})"
    np.testing.assert_allclose(run(tiny.model(), IDS, f"prefill={same}").nll, run(tiny.model(), IDS).nll, atol=1e-5)
    plain, corrected = (
        run(tiny.model(), IDS, f"prefill=assa(block=16, window=5, max_ratio=0.1{more})")
        for more in ("", f", compensation={compensation}")
    )
    np.testing.assert_allclose(plain.nll[:15], corrected.nll[:15], atol=1e-6)
    assert np.abs(plain.nll[16:-1] - corrected.nll[16:-1]).max() > 1e-6


def test_the_window_is_of_whole_stretches():
    """By hand: a window of 3 shows queries 3 to 5 their own stretch, as far as it came, and keys 1 and 2 before it."""
    mask = methods.ASSA(block=3, probes=1, window=3, max_ratio=0.0, min_ratio=0.0, n_sink=0).mask(views(IDS[:9])[0])
    seen = rows_of(mask)[0].astype(int)
    assert seen[3].tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert seen[5].tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert seen[8].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
