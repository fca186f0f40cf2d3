"""What the Patterns page draws, worked out by hand, and the study behind it against the whole attention matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparsity_core import Pipeline, methods, run
from sparsity_core.models import recording
from sparsity_core.studies import AttentionLook, look_at_attention
from tests import tiny
from tests.traces import told_apart
from tests.viz.figures import NAN, same
from tests.viz.test_pipeline import SIZES
from ui.patterns import family_specs
from ui.session import EXAMPLE, Shown
from viz import patterns
from viz.patterns.segments import segments

TEXTS = ["The", " cat", ".", " On", " the", " mat", ".", "\n"]
GIVEN = np.asarray([[0.4, 0.2, 0.2, 0.1, 0.05, 0.05]] * 2, np.float32)
BLOCKS = np.tril(np.full((3, 3), 0.5, np.float32))


def made(**changes: Any) -> Any:
    """Six tokens of the prompt in three blocks; a query head sees half of each block's pairs, its neighbour all of them."""
    blocks = np.stack([np.stack([BLOCKS, BLOCKS, np.tril(np.ones((3, 3), np.float32)), BLOCKS])] * 2)
    return told_apart(
        texts=TEXTS,
        block=2,
        blocks=blocks,
        shown=np.ones((2, 4, 8), np.int32),
        **SIZES,
        **changes,
    )


def look() -> AttentionLook:
    third = np.asarray([[1, 0, 0], [0.75, 0.25, 0], [0.5, 0.25, 0.25]], np.float32)
    return AttentionLook(0, 2, np.stack([third, third]), GIVEN)


def test_a_pattern_is_the_mean_of_a_kv_heads_lists_over_the_dense_attention_of_the_same_blocks() -> None:
    table = patterns.pattern_table({"A": made()}, 0, 1, look())
    assert table[["query", "key"]].to_numpy().tolist() == [
        [0, 0],
        [2, 0],
        [2, 2],
        [4, 0],
        [4, 2],
        [4, 4],
    ]
    same(table["seen"], [0.75] * 6)
    same(table["attention"], [1, 0.75, 0.25, 0.5, 0.25, 0.25])
    same(patterns.pattern_table({"A": made()}, 0, 0)["seen"], [0.5] * 6)
    same(patterns.pattern_table({"A": made()}, 0, "first")["seen"], [0.625] * 6)
    figure = patterns.plot_pattern(table, token=3)
    dense, seen = figure.data
    same(seen.z, [[0.75, NAN, NAN], [0.75, 0.75, NAN], [0.75] * 3])
    same(dense.z[1], [np.log10(0.75), np.log10(0.25), NAN])
    assert list(seen.x) == [0.5, 2.5, 4.5] and figure.layout.yaxis.range == (5.5, -0.5)


def test_a_run_without_a_prefill_stage_is_drawn_once_its_attention_is_known() -> None:
    plain = told_apart("eviction=h2o(budget=3)", texts=TEXTS).replaced(shown=np.zeros((0, 0, 0), np.int32))
    assert patterns.pattern_table({"A": plain}, 0, 0).empty
    same(patterns.pattern_table({"A": plain}, 0, 0, look())["seen"], [1] * 6)


def test_sentences_end_with_their_stop_and_paragraphs_with_an_empty_line() -> None:
    texts = ["One", ".", " Two", "!", "\n", "\n", "Three", "."]
    assert segments(texts, "sentence").tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert segments(texts, "paragraph").tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert segments(["one", " line", ".\n\n", "more"], "paragraph").tolist() == [
        0,
        0,
        0,
        1,
    ]
    assert segments(["a text of one sentence"], "sentence").tolist() == [0]
    with pytest.raises(ValueError, match="a level is one of sentence, paragraph; got 'chapter'"):
        segments(texts, "chapter")


def test_density_is_the_spread_of_a_segments_importance_and_its_budget_what_the_query_sees() -> None:
    # at query 5 layer 0 sees tokens 3, 4, 5: the window leaves out 0 and 1, the gate has dropped 2
    table = patterns.segments_table(made(), look(), 0, 0, 7)
    assert table["text"].tolist() == ["The cat.", "On the mat"]
    same(table["importance"], [0.8, 0.2])
    same(table["density"], [8**0.5 / 3] * 2)  # exp of the entropy of 1/2, 1/4, 1/4
    same(table["needed"], [1, 1])
    same(table["budget"], [0, 1])
    along = patterns.along_table(made(), look(), 0, 0, 5)
    same(along["sees"], [0, 0, 0, 1, 1, 1])
    same(along["importance"], GIVEN[0])
    figure = patterns.plot_along(along)
    assert [data.name for data in figure.data] == [
        "not seen (3)",
        "seen by the query (3)",
    ]


def test_the_hierarchy_is_the_share_seen_of_tokens_sentences_and_paragraphs() -> None:
    table = patterns.hierarchy_table(made(), 0, 0, 5)
    found = {level: own["sees"].tolist() for level, own in table.groupby("level", sort=False)}
    assert found == {
        "token": [0, 0, 0, 1, 1, 1],
        "sentence": [0, 1],
        "paragraph": [0.5],
    }
    figure = patterns.plot_hierarchy(table)
    same(figure.data[0].z, [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0.5] * 6])
    assert [(shape.x0, shape.y0) for shape in figure.layout.shapes] == [(2.5, 0.5)]


def test_a_point_of_the_family_counts_what_was_computed_and_hides_what_was_not_measured() -> None:
    point = patterns.point_of(made(pairs=np.full(2, 42), scoring_flops=np.full(2, 100)))
    assert point["density"] == pytest.approx(1 / 3.5)
    # 42 of 84 products over four heads, at 64 operations each head; 200 operations of choosing; dense 2 · 21 · 256
    assert point["flops"] == pytest.approx(0.5 + 200 / (2 * 21 * 256))
    assert np.isnan(point["coverage"]) and np.isnan(point["recall"])
    ahead = patterns.point_of(made(looks_ahead=True))
    assert np.isnan(ahead["kl"]) and ahead["looks_ahead"] == 1
    table = patterns.densities_table(
        {
            ("assa", "a"): {**point, "coverage": 0.5},
            ("minference", "b"): {**ahead, "coverage": 0.9},
        }
    )
    figure = patterns.plot_densities(table, "coverage")
    assert [data.name for data in figure.data] == ["assa", "minference (looks ahead)"]
    assert [data.name for data in patterns.plot_densities(table, "kl").data] == ["assa"]
    with pytest.raises(ValueError, match="this run has no prefill stage"):
        patterns.point_of(made().replaced(shown=np.zeros((0, 0, 0), np.int32)))


def test_claims_stand_beside_what_was_measured_and_nothing_stands_for_what_was_not() -> None:
    table = patterns.claims_table(made(nll=np.full(8, np.nan, np.float32)))
    found = dict(zip(table["what"], table["measured here"], strict=True))
    assert found["accuracy"] == "–" and found["memory"] == "38%" and found["speed"] == "–"
    assert set(patterns.claims_table(None)["measured here"]) == {"–"}
    assert table["claimed, without a source"].iloc[0] == "88.5 → 88.0"


class _Whole:
    """A recorder that keeps every layer's whole attention matrix, in float64."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def attend(self, call: Any) -> torch.Tensor:
        q, k, v = (x[0].double() for x in (call.q, call.k, call.v))
        group = q.shape[0] // k.shape[0]
        k, v = (x.repeat_interleave(group, 0) for x in (k, v))
        logits = (q @ k.mT * call.scale).masked_fill(~torch.ones(q.shape[1], k.shape[1]).bool().tril(), float("-inf"))
        self.found.append(torch.softmax(logits, -1))
        return (self.found[-1] @ v)[None].to(call.q)


def whole(model: Any, ids: list[int]) -> list[torch.Tensor]:
    recorder = _Whole()
    with torch.inference_mode(), recording(recorder):
        model.hidden(torch.tensor([ids]), use_cache=False)
    return recorder.found


def test_a_look_pools_the_whole_matrix_of_its_layer() -> None:
    model, ids = tiny.model(), tiny.ids(75)
    found = look_at_attention(model, ids, 1, 16)
    p = whole(model, ids)[1].unflatten(0, (model.arch.n_kv_heads, -1)).mean(1).numpy()
    edges = np.arange(0, 75, 16)
    pooled = np.add.reduceat(np.add.reduceat(p, edges, 1), edges, 2) / np.diff([*edges, 75])[:, None]
    np.testing.assert_allclose(found.blocks, pooled, atol=1e-5)
    np.testing.assert_allclose(found.importance, p.sum(1) / (75 - np.arange(75)), atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "block", "said"),
    [(9, 16, "layers 0 to"), (0, 0, "at least 1 token; got 0")],
)
def test_a_look_at_what_is_not_there_is_refused(layer: int, block: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        look_at_attention(tiny.model(), tiny.ids(20), layer, block)


def test_recall_and_precision_are_held_against_the_fewest_keys_that_hold_95_percent() -> None:
    model, ids = tiny.model(), tiny.ids(40)
    trace = run(model, ids, "prefill=sliding_window(window=9)")
    assert trace.prefill is not None
    p = whole(model, ids)
    measured = np.flatnonzero(~np.isnan(trace.prefill.top_recall[0, 0]))
    assert 20 <= len(measured) <= 32
    for layer in range(model.arch.n_layers):
        for head in range(model.arch.n_heads):
            for query in measured:
                row = p[layer][head, query, : query + 1].numpy()
                order = np.argsort(-row, kind="stable")
                top = set(
                    order[: int(np.searchsorted(np.cumsum(row[order]), 0.95 * row.sum() * (1 - 1e-6)) + 1)].tolist()
                )
                seen = set(range(max(0, query - 8), query + 1))
                assert trace.prefill.top_recall[layer, head, query] == pytest.approx(len(top & seen) / len(top))
                assert trace.prefill.top_precision[layer, head, query] == pytest.approx(len(top & seen) / len(seen))


@pytest.mark.parametrize("n", [20, 250, 8192])
def test_every_method_of_the_kind_has_settings_that_fit_the_prompt(n: int) -> None:
    item = Shown("A", EXAMPLE, made())
    object.__setattr__(item.trace.text, "n_prompt", n)
    specs = family_specs(item)
    found = {name for name, _ in specs}
    kind = {name for name in methods.names() if methods.get(name).stage == "prefill"}
    assert found == kind
    for spec in specs.values():
        prefill = Pipeline.parse(spec.pipeline).prefill
        assert prefill is not None
        prefill.check(n)
