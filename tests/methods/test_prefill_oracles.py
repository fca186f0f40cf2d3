"""Masks of the comparators against loops written from their papers, on a tiny model's and the embedded model's q and k."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from sparsity_core import load
from sparsity_core.kinds import PromptView
from sparsity_core.models import recording
from tests.methods.test_prefill import KeepViews, mask_of, softmax_rows, views

_TEXT = (
    "The lighthouse keeper wrote down every ship that passed. On the third night of the storm no ship came, and he wrote "
    "that too. In the morning the sea was flat, and on the sand lay a letter that he had written himself, years before. He "
    "read it twice, folded it, and went up the stairs to put out the lamp."
)


@functools.cache
def real_view() -> PromptView:
    """The tenth layer of the embedded model over a short text."""
    model = load()
    ids, keep = model.encode(_TEXT)[:75], KeepViews()
    with recording(keep), torch.inference_mode():
        model.hidden(torch.tensor([ids]), use_cache=False)
    return keep.views[10]


def flexprefill_by_loops(view: PromptView, coverage: float, tau: float, block: int) -> np.ndarray:
    """bool [H, T, T], written from the paper's algorithm 1 to 4: each head is block-wise or vertical-slash."""
    q, k = view.q.numpy().astype(np.float64), view.k.numpy().astype(np.float64).repeat(len(view.q) // len(view.k), 0)
    p, n = softmax_rows(view), view.n_tokens
    edges = [(start, min(n, start + block)) for start in range(0, n, block)]
    first = max(0, n - block)  # the representative queries are the last block's worth
    found = np.zeros((len(q), n, n), bool)

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max())
        return e / e.sum()

    def fewest(x: np.ndarray) -> list[int]:
        kept, total = [], 0.0
        for i in np.argsort(-x, kind="stable"):
            if total >= coverage * x.sum() * (1 - 1e-6):
                break
            kept.append(int(i))
            total += x[i]
        return kept

    for h in range(len(q)):
        means_q, means_k = (np.stack([x[h, a:b].mean(0) for a, b in edges]) for x in (q, k))
        pooled = softmax(q[h, first:].mean(0) @ means_k.T * view.scale)
        true = np.asarray([p[h, first:, a:b].sum(1).mean() for a, b in edges])
        middle = (pooled + true) / 2
        divergence = sum((x * np.log(np.maximum(x, 1e-300) / middle)).sum() for x in (pooled, true)) / 2
        if np.sqrt(max(0.0, divergence)) < tau:
            rows = [softmax(means_q[i] @ means_k[: i + 1].T * view.scale) for i in range(len(edges))]
            places = [(i, j) for i, row in enumerate(rows) for j in range(len(row))]
            for at in fewest(np.concatenate(rows) / len(edges)):
                (a, b), (c, d) = (edges[x] for x in places[at])
                found[h, a:b, c:d] = True
        else:
            columns = p[h, first:].sum(0)
            distances = np.asarray([sum(p[h, i, i - d] for i in range(max(first, d), n)) for d in range(n)])
            found[h][:, fewest(columns)] = True
            for d in fewest(distances):
                found[h][np.arange(d, n), np.arange(n - d)] = True
    return (found | np.eye(n, dtype=bool)) & np.tril(np.ones((n, n), bool))


@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0])
def test_flexprefill_equals_the_papers_loops(tau):
    for view in [*views(), real_view()]:
        found = mask_of(f"flexprefill(coverage=0.7, tau={tau}, block=16)", view)
        expected = flexprefill_by_loops(view, 0.7, tau, 16)
        assert (found != expected).mean() < 1e-3  # float32 against float64 at the edge of a set


def test_vertical_slash_equals_a_loop_over_columns_and_distances():
    for view in [*views(), real_view()]:
        rows, n = softmax_rows(view)[:, -8:], view.n_tokens
        found = mask_of("minference(vertical=6, slash=4, probes=8, n_sink=2)", view)
        for head, own in enumerate(rows):
            columns = own.sum(0)
            best = {0, 1} | set(sorted(range(2, n), key=lambda k: -columns[k])[:4])
            apart = [sum(own[i, n - 8 + i - d] for i in range(8) if n - 8 + i >= d) for d in range(n)]
            near = set(sorted(range(n), key=lambda d: -apart[d])[:4])
            expected = [[k <= q and (k in best or q - k in near or q == k) for k in range(n)] for q in range(n)]
            assert (found[head] == np.asarray(expected)).all()


def test_antidiagonal_sums_equal_a_loop_over_tiles():
    s, block = 4, 16
    for view in [*views(), real_view()]:
        n, group = view.n_tokens, view.q.shape[0] // view.k.shape[0]
        found = mask_of("xattention(coverage=0.6, block=16, stride=4)", view)
        for head in range(view.q.shape[0]):
            q, k = view.q[head].double().numpy(), view.k[head // group].double().numpy()
            tiles, side = -(-n // s), -(-n // block)
            sums = np.zeros((side, side))
            for i in range(tiles):
                logits = []
                for j in range(i + 1):
                    pairs = [(s * i + s - 1 - p, s * j + p) for p in range(s)]
                    logits.append(sum(q[a] @ k[b] for a, b in pairs if a < n and b < n) * view.scale / s)
                e = np.exp(np.asarray(logits) - max(logits))
                for j, p in enumerate(e / e.sum()):
                    sums[i * s // block, j * s // block] += p
            for b in range(side):
                order, total, chosen_blocks = np.argsort(-sums[b]), 0.0, {0, b}
                for j in order:
                    if total >= 0.6 * sums[b].sum() * (1 - 1e-6):
                        break
                    chosen_blocks.add(int(j))
                    total += sums[b, j]
                for q_at in range(b * block, min(n, (b + 1) * block)):
                    seen = {int(x) // block for x in np.flatnonzero(found[head, q_at])}
                    assert seen == {c for c in chosen_blocks if c <= b}


def test_bigbird_and_longformer_equal_their_definitions():
    view, n, b = views()[1], 75, 8
    found = mask_of("bigbird(block=8, window_blocks=2, global_blocks=1, random_blocks=2)", view)
    for head in found:
        for q in range(n):
            blocks = {k // b for k in np.flatnonzero(head[q])}
            mine = q // b
            if mine == 0:
                assert blocks == {0}
                continue
            fixed = {0, mine, max(0, mine - 1)}
            assert fixed <= blocks and len(blocks - fixed) == min(2, max(0, mine - 2))
            assert all(head[q, : (block + 1) * b][block * b : q + 1].all() for block in blocks)
    assert (found[0] != found[1]).any()  # each head draws its own
    found = mask_of("longformer(window=7, n_global=3)", view)[0]
    expected = [[k <= q and (q - k < 7 or k < 3 or q < 3) for k in range(n)] for q in range(n)]
    assert (found == np.asarray(expected)).all()
    found = mask_of("strided(stride=6)", view)[0]
    assert (found == [[k <= q and (q - k < 6 or (q - k) % 6 == 0) for k in range(n)] for q in range(n)]).all()
