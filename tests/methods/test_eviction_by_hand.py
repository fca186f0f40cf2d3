"""Eviction methods on attention worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sparselens_kernels import flash_column_score
from sparselens_kernels.rows import decayed_sums

from sparsity_core import methods
from sparsity_core.attention import EvictionStage, Recorder, Stages, layer_rules
from sparsity_core.models import AttentionCall
from sparsity_core.models.model import Architecture

ONE_LAYER = Architecture("hand", n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, hidden_size=8, max_positions=8)


def follow(method, rows, n_prefill=0, values=None, classes=None):
    """(evicted_at [T], threshold [T]) of one head whose query t attends to key k in proportion to rows[t][k]."""
    n = len(rows)
    log_rows = [[math.log(x) if x else -1e4 for x in row] + [0.0] * (n - len(row)) for row in rows]
    q = torch.tensor(log_rows, dtype=torch.float64)[None, None]
    k = torch.eye(n, dtype=torch.float64)[None, None]
    v = k if values is None else torch.tensor(values, dtype=torch.float64)[None, None, :, None]
    model, classes = (
        SimpleNamespace(arch=ONE_LAYER, caches=(), shares_caches=False, cached_in=lambda i: i),
        classes or ["word"] * n,
    )
    eviction = EvictionStage(
        model, layer_rules(model, method), n_tokens=n, n_prefill=n_prefill, token_classes=[classes]
    )
    recorder = Recorder(model, Stages(eviction), n_tokens=n)
    recorder.attend(AttentionCall(0, q, k, v, scale=1.0))
    return recorder.evicted_at(n)[0, 0].tolist(), eviction.record(n).threshold[0, 0]


NOTES_ROWS = [[0.4, 0.3, 0.2, 0.1], [0.5, 0.2, 0.1, 0.2], [0.3, 0.1, 0.4, 0.2]]
NOTES_SCORES = [0.956, 0.452, 0.608, 0.424]  # .4·.64 + .5·.8 + .3 = .956, and so on


def test_the_notes_example_of_a_decayed_sum():
    rows = torch.tensor(NOTES_ROWS, dtype=torch.float64)[None, None, None, None]
    none = torch.zeros(1, 1, 4, dtype=torch.float64)
    score = decayed_sums(none, rows, [rows.shape[4]], decay=0.8, reduction="sum", weight=None)
    assert score.flatten().tolist() == pytest.approx(NOTES_SCORES, abs=1e-12)


def test_the_notes_example_through_attention():
    """Three queries whose own keys get no attention, after four cached keys that get the notes' rows."""
    q = torch.full((1, 1, 3, 7), -1e4, dtype=torch.float64)
    q[..., :4] = torch.tensor(NOTES_ROWS, dtype=torch.float64).log()
    k = torch.eye(7, dtype=torch.float64)[None, None]
    found = flash_column_score(q, k, k, decay=0.8, scale=1.0, backend="reference")
    assert found.score.flatten().tolist() == pytest.approx([*NOTES_SCORES, 0, 0, 0], abs=1e-12)


# Rows are what the dense model would attend; what a dropped key has is shared out among the kept in proportion.
HAND_ROWS = [
    [1.0],
    [0.4, 0.6],
    [0.5, 0.3, 0.2],
    [0.04, 0.16, 0.6, 0.2],
    [0.02, 0.02, 0.4, 0.4, 0.16],
    [0.1, 0.2, 0.1, 0.1, 0.3, 0.2],
]


def test_a2sf_by_hand():
    """α = .5, budget 2:

    query 1  scores .5·1 + .4 = .9, .6
    query 2  .45 + .5 = .95, .3 + .3 = .6, .2 → key 2 goes at .2
    query 3  row over 0, 1, 3: .1, .4, .5 → .575, .7, .5 → key 3 goes at .5
    query 4  row over 0, 1, 4: .1, .1, .8 → .3875, .45, .8 → key 0 goes at .3875
    query 5  row over 1, 4, 5: 2/7, 3/7, 2/7 → .225 + 2/7, .4 + 3/7, 2/7 → key 5 goes at 2/7
    """
    evicted_at, threshold = follow(methods.A2SF(budget=2, forgetting_factor=0.5), HAND_ROWS)
    assert evicted_at == [5, 6, 3, 4, 6, 6]
    assert threshold[2:].tolist() == pytest.approx([0.2, 0.5, 0.3875, 2 / 7], abs=1e-6)
    assert np.isnan(threshold[:2]).all()


def test_h2o_by_hand():
    """Budget 2, so one recent key is safe:

    query 2  scores 1 + .4 + .5 = 1.9, .6 + .3 = .9, .2 (safe) → key 1 goes at .9
    query 3  row over 0, 2, 3: .04, .6, .2 of .84 → 1.9 + 1/21, .2 + 15/21, 5/21 (safe) → key 2 goes at .2 + 15/21
    query 4  row over 0, 3, 4: .02, .4, .16 of .58 → key 3: 5/21 + 20/29, key 0: 1.9 + … → key 3 goes
    query 5  row over 0, 4, 5: .1, .3, .2 of .6 → key 4: 8/29 + .5, key 0 above 1.9 → key 4 goes
    """
    evicted_at, threshold = follow(methods.H2O(budget=2), HAND_ROWS)
    assert evicted_at == [6, 3, 4, 5, 6, 6]
    assert threshold[2:].tolist() == pytest.approx([0.9, 0.2 + 15 / 21, 5 / 21 + 20 / 29, 8 / 29 + 0.5], abs=1e-6)


def test_tova_by_hand():
    """The lowest of each row alone: query 2 .2 of key 2; query 3 over 0, 1, 3 .1 of key 0; query 4 over 1, 3, 4
    .02/.58 of key 1; query 5 over 3, 4, 5 .1/.6 of key 3."""
    evicted_at, threshold = follow(methods.TOVA(budget=2), HAND_ROWS)
    assert evicted_at == [4, 5, 3, 6, 6, 6]
    assert threshold[2:].tolist() == pytest.approx([0.2, 0.1, 0.02 / 0.58, 0.1 / 0.6], abs=1e-6)


def test_a_forgetting_factor_by_class_spares_that_class():
    """Key 0 is a number that forgets nothing: at query 4 it has 1.9 + .1 + .1, and key 1 goes at .45 in its place."""
    method = methods.A2SF(budget=2, forgetting_factor={"number": 1.0, "other": 0.5})
    classes = ["number", "word", "word", "word", "word", "word"]
    evicted_at, threshold = follow(method, HAND_ROWS, classes=classes)
    assert evicted_at[:2] == [6, 5]
    assert threshold[4] == pytest.approx(0.45)


def test_value_norm_weighs_the_attention_by_the_norm_of_the_value():
    """TOVA with values 1, −4, 1: at query 2 .5·1, .3·4, .2·1 drops key 2; with values 1, 1, 10 .5, .3, 2 drops key 1."""
    weighed = methods.TOVA(budget=2, value_norm=True)
    assert follow(weighed, HAND_ROWS[:4], values=[1, -4, 1, 1])[0][2] == 3
    evicted_at, threshold = follow(weighed, HAND_ROWS[:4], values=[1, 1, 10, 1])
    assert evicted_at[1] == 3
    assert threshold[2] == pytest.approx(0.3)


def test_a2sf_prefill_by_hand():
    """α = .5 over the first 4 rows, dense: key 0 1/8 + .1 + .25 + .04 = .515, key 1 .15 + .15 + .16 = .46,
    key 2 .1 + .6 = .7, key 3 .2. Two stay, 0 and 2; the highest score that goes is .46.

    query 4  row over 0, 2, 4: .02, .4, .16 of .58 → .2575 + 1/29, .35 + 20/29, 8/29 → key 4 goes at 8/29
    """
    method = methods.A2SF(budget=2, forgetting_factor=0.5, variant="prefill")
    evicted_at, threshold = follow(method, [*HAND_ROWS[:5], [0.1] * 6], n_prefill=4)
    assert evicted_at[:5] == [6, 4, 6, 4, 5]
    assert threshold[3:5].tolist() == pytest.approx([0.46, 8 / 29], abs=1e-6)


def test_snapkv_by_hand():
    """The last 2 of 5 prompt queries vote (rows 3 and 4): .06, .18, 1.0, and keys 3 and 4 are the window.

    Pooled over 3 neighbours, the window's own votes left out as by the authors: .24/3, 1.24/3, 1.18/3 → key 1 stays
    beside the window at budget 3, and the highest that goes is 1.18/3. Query 5 drops nothing.
    """
    method = methods.SnapKV(budget=3, observation_window=2, pool=3)
    evicted_at, threshold = follow(method, HAND_ROWS, n_prefill=5)
    assert evicted_at == [5, 6, 5, 6, 6, 6]
    assert threshold[4] == pytest.approx(1.18 / 3)
    assert np.isnan(threshold[[0, 1, 2, 3, 5]]).all()


def test_streaming_llm_by_hand():
    """Budget 3 with one sink: query t drops key t − 2, from t = 3 on."""
    evicted_at, _ = follow(methods.StreamingLLM(budget=3, n_sink=1), [[1.0] * (t + 1) for t in range(8)])
    assert evicted_at == [8, 4, 5, 6, 7, 8, 8, 8]


def test_local_window_by_hand():
    """Budget 3: query t drops key t − 3."""
    evicted_at, _ = follow(methods.LocalWindow(budget=3), [[1.0] * (t + 1) for t in range(8)])
    assert evicted_at == [4, 5, 6, 7, 8, 8, 8, 8]


def test_sinks_and_recent_keys_are_never_dropped():
    method = methods.A2SF(budget=4, n_sink=1, recent=2, forgetting_factor=0.5)
    rows = [[1e-6, *([0.1] * t)] for t in range(12)]  # nobody looks at key 0
    evicted_at, _ = follow(method, rows)
    assert evicted_at[0] == 12
    assert all(gone > key + 2 for key, gone in enumerate(evicted_at[:10]))
