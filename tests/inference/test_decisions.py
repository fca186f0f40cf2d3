"""Which keys each rule drops, against loops over single queries and keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsity_core import run
from sparsity_core.attention import Recorder
from tests import oracles, tiny
from tests.inference.every import BUDGET, NEW, PROMPT, pipeline, same, text, traced


def test_a_scan_of_several_blocks_decides_as_one_key_at_a_time_does():
    trace, attended = tapped("a2sf(budget=50)", tiny.ids(300), 0)
    q, k, v = attended[2]
    _, evicted_at, threshold, _ = oracles.evict_step_by_step(q, k, v, budget=50, decay=0.3)
    same(trace.evicted_at[2], evicted_at[0].clamp(max=300).numpy())
    same(trace.threshold[2], threshold[0].numpy(), atol=1e-6)


def tapped(method: str, ids: list[int], n_prefill: int):
    """The trace, and the (q, k, v) that each layer's rule got to see."""
    seen = {}
    attend = Recorder.attend

    def tap(self, call):
        seen[call.layer] = call.q, call.k, call.v
        return attend(self, call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "attend", tap)
        trace = run(tiny.model(), ids, pipeline(method), n_prefill=n_prefill, against_dense=False)
    return trace, [seen[layer] for layer in range(3)]


ASCII_CLASSES = {" ": "space", ",": "punctuation", ".": "punctuation"}


def class_of(character: str) -> str:
    if character in "aiAI":
        return "function"
    if character.isdigit():
        return "number"
    return ASCII_CLASSES.get(character, "capitalised" if character.isupper() else "word")


BY_CLASS = {"capitalised": 0.0, "number": 1.0, "space": 0.75}
# method → what each layer's scan should be, written down from the knobs by hand
SCANS = {
    "a2sf(budget=12)": lambda layer: {"decay": 0.3},
    "a2sf(budget=12, layer_budget=pyramid)": lambda layer: {"decay": 0.3, "budget": (18, 12, 6)[layer]},
    "a2sf(budget=12, forgetting_factor=[0.25, 0.5, 1.0])": lambda layer: {"decay": (0.25, 0.5, 1.0)[layer]},
    "a2sf(budget=12, forgetting_factor=[[0.25, 1.0], [0.5, 0.0], 0.75])": lambda layer: {
        "decay": torch.tensor([[0.25, 1.0], [0.5, 0.0], [0.75, 0.75]][layer])[:, None]
    },
    "a2sf(budget=12, forgetting_factor={capitalised: 0.0, number: 1.0, other: 0.25, space: 0.75})": lambda layer: {
        "decay": torch.tensor([BY_CLASS.get(class_of(c), 0.25) for c in tiny.TEXT])
    },
    "a2sf(budget=12, forgetting_factor={space: 0.5})": lambda layer: {
        "decay": torch.tensor(
            [0.5 if c == " " else 1.0 for c in tiny.TEXT]
        )  # a class that is not named forgets nothing
    },
    "a2sf(budget=12, n_sink=2, recent=3)": lambda layer: {"decay": 0.3, "n_sink": 2, "recent": 3},
    "a2sf(budget=12, reduction=mean)": lambda layer: {"decay": 0.3, "reduction": "mean"},
    "a2sf(budget=12, forgetting_factor=0.5, reduction=max)": lambda layer: {"decay": 0.5, "reduction": "max"},
    "h2o(budget=12)": lambda layer: {"recent": 6},
    "h2o(budget=12, recent_share=0.3)": lambda layer: {"recent": 3},
    "tova(budget=12)": lambda layer: {"decay": 0.0},
    "streaming_llm(budget=12)": lambda layer: {"n_sink": 4, "recent": 8, "scored": False},
    "local_window(budget=12)": lambda layer: {"recent": 12, "scored": False},
}


@pytest.mark.parametrize("method", SCANS)
def test_a_scan_decides_as_one_key_at_a_time_does(method):
    ids = tiny.tokenizer()(tiny.TEXT)["input_ids"]
    trace, attended = tapped(method, ids, 0)
    for layer, (q, k, v) in enumerate(attended):
        _, evicted_at, threshold, _ = oracles.evict_step_by_step(q, k, v, **{"budget": 12} | SCANS[method](layer))
        same(trace.evicted_at[layer], evicted_at[0].clamp(max=len(ids)).numpy())
        if not np.isnan(trace.threshold[layer]).all():
            same(trace.threshold[layer], threshold[0].numpy(), atol=1e-6)


def test_a_trace_tells_what_each_layer_was_given():
    trace = traced("streaming_llm(budget=12, layer_budget=pyramid, dense_layers=1)", text(), against_dense=False)
    assert trace.budgets.tolist() == [[PROMPT + NEW] * 2, [12] * 2, [6] * 2]  # a dense layer's is the text
    assert trace.n_sink.tolist() == [0, 4, 4]
    assert trace.recent.tolist() == [0, 8, 2]
    assert (trace.n_prompt, trace.n_prefill, trace.n_heads) == (PROMPT + NEW, 0, 4)
    cut = traced("snapkv(budget=12, observation_window=4)", text(), against_dense=False)
    assert (cut.n_prefill, cut.recent.tolist()) == (PROMPT, [4, 4, 4])
    half = run(tiny.model(), text(), pipeline("snapkv(budget=12, observation_window=4)"), against_dense=False)
    assert half.n_prefill == (PROMPT + NEW) // 2


def test_value_norm_weighs_by_the_norm_of_each_value():
    ids = tiny.tokenizer()(tiny.TEXT)["input_ids"]
    trace, attended = tapped("h2o(budget=12, value_norm=True)", ids, 0)
    for layer, (q, k, v) in enumerate(attended):
        norms = torch.tensor([[float(x.square().sum()) ** 0.5 for x in head] for head in v[0]])
        _, evicted_at, threshold, _ = oracles.evict_step_by_step(q, k, v, budget=12, recent=6, weight=norms)
        same(trace.evicted_at[layer], evicted_at[0].clamp(max=len(ids)).numpy())
        same(trace.threshold[layer], threshold[0].numpy(), rtol=1e-6)


CUTS = {
    "a2sf(budget=12, forgetting_factor=0.5, variant=prefill)": {"decay": 0.5},
    "a2sf(budget=12, forgetting_factor=0.95, variant=prefill, n_sink=2, recent=3)": {
        "decay": 0.95,
        "n_sink": 2,
        "recent": 3,
    },
    "a2sf(budget=12, forgetting_factor=0.95, variant=prefill, value_norm=True)": {"decay": 0.95, "value_norm": True},
    "snapkv(budget=12, observation_window=4)": {"queries": 4, "pool": 5, "recent": 4},
    "snapkv(budget=12, observation_window=3, pool=1, reduction=max)": {"queries": 3, "recent": 3, "max": True},
}


@pytest.mark.parametrize("method", CUTS)
def test_a_cut_keeps_the_top_of_what_the_prompt_attended(method):
    """Scores summed query by query from dense probabilities, pooled with zeros beyond the ends and in the window, sorted."""
    ids, n = text(), PROMPT
    trace, attended = tapped(method, ids, n)
    wanted = {"decay": 1.0, "queries": n, "pool": 1, "n_sink": 0, "recent": 0, "value_norm": False, "max": False}
    wanted |= CUTS[method]
    for layer, (q, k, v) in enumerate(attended):
        p = oracles.attention_probabilities(q[:, :, :n], k[:, :, :n])[0]  # [H, n, n]
        for head in range(2):
            own = p[2 * head : 2 * head + 2].numpy()
            rows = own.max(0) if wanted["max"] else own.sum(0)
            score = np.zeros(n)
            for query in range(n - wanted["queries"], n):
                score = wanted["decay"] * score + rows[query]
            if wanted["value_norm"]:
                score *= v[0, head, :n].norm(dim=-1).numpy()
            side = wanted["pool"] // 2
            padded = np.pad(np.where(np.arange(n) < n - wanted["recent"], score, 0.0), side)
            pooled = [padded[i : i + wanted["pool"]].sum() / wanted["pool"] for i in range(n)]
            free = range(wanted["n_sink"], n - wanted["recent"])
            protected = set(range(n)) - set(free)
            ranked = sorted(free, key=lambda i: -pooled[i])
            n_free = BUDGET - len(protected)
            kept = protected | set(ranked[:n_free])
            assert set(np.flatnonzero(trace.evicted_at[layer, head, :n] != n)) == kept | {
                i for i in kept if trace.evicted_at[layer, head, i] > n
            }
            assert set(np.flatnonzero(trace.evicted_at[layer, head, :n] == n)) == set(range(n)) - kept
            assert trace.threshold[layer, head, n - 1] == pytest.approx(pooled[ranked[n_free]], rel=1e-6)
