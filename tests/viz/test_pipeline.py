"""What goes into each stage and what comes out, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsity_core import Trace, methods, run
from tests import tiny
from tests.traces import FOUR_STAGES, told_apart, trace
from tests.viz.figures import same
from viz.pipeline import pipeline_table, plot_pipeline, short
from viz.removed import removed_table

SIZES: dict[str, Any] = {
    "pair_flops": np.full(2, 256, np.int64),  # 4 query heads of 16 channels, 4 operations each
    "neurons": np.full(2, 64, np.int64),
    "neurons_left": np.asarray([48, 32], np.int64),
    "head_dim": 16,
    "ranked_channels": 4,
    "weight_bytes": 1000,
    "weight_bytes_left": 900,
    "token_flops": 2000,
    "token_flops_left": 1500,
    "index_bytes": 2**20,
}


def five_stages() -> Trace:
    pipeline = f"weights=leverage(ratio=0.25) {FOUR_STAGES}"
    return told_apart(pipeline, scoring_flops=np.full(2, 100, np.int64), **SIZES)


def after(table: Any, quantity: str) -> dict[str, float]:
    own = table[table["quantity"] == quantity]
    return dict(zip(own["stage"], own["after"], strict=True))


def test_each_stage_takes_in_what_the_one_before_it_gave_out() -> None:
    made = five_stages()
    table = pipeline_table(made, removed_table(made))
    for _, own in table.groupby("quantity"):
        same(own["before"].iloc[1:], own["after"].iloc[:-1])
    # 144 causal pairs over layers and heads; the gate takes 8 of them, the window 12, eviction 30, the reads 6
    assert after(table, "keys seen") == {"gate": 136 / 32, "prefill": 124 / 32, "eviction": 94 / 32, "decode": 88 / 32}
    assert table[table["quantity"] == "keys seen"]["before"].iloc[0] == 4.5
    # 256 operations a pair, of which each KV head has a half; 200 for the prefill's choice; the reads rank 94 pairs by a quarter
    flops = {"gate": 17408, "prefill": 15872 + 200, "eviction": 12032 + 200, "decode": 11264 + 200 + 1504}
    assert after(table, "attention") == {stage: pytest.approx(n / 1e9) for stage, n in flops.items()}
    assert after(table, "cache") == {"gate": 7.5, "eviction": 2}
    # the last query's cache: layer 0 keeps 0, 5, 6, 7 in each head and reads all but 6; layer 1 keeps eight keys, and reads four
    assert after(table, "read a step") == {"gate": 7.5, "eviction": 2, "decode": pytest.approx(10 / 16 * 2 + 1)}
    assert after(table, "channels") == {"decode": 4}
    assert after(table, "neurons") == {"weights": 40}
    assert after(table, "weights") == {"weights": 900 / 2**20}
    assert after(table, "weight operations") == {"weights": 1500 / 1e6}


def test_what_was_not_counted_is_not_told() -> None:
    table = pipeline_table(five_stages())
    assert not {"keys seen", "attention"} & set(table["quantity"])
    with pytest.raises(ValueError, match="does not tell the model's sizes: run the spec again"):
        pipeline_table(trace())


def test_the_pipes_are_as_wide_as_what_is_left_and_say_it() -> None:
    made = five_stages()
    figure = plot_pipeline(pipeline_table(made, removed_table(made)))
    names = list(figure.layout.yaxis.ticktext)
    assert names == [
        "neurons", "weights, MiB", "weights, MFLOP", "keys seen", "channels",
        "cache, MiB", "read a step, MiB", "attention, GFLOP",
    ]  # fmt: skip
    texts = [data for data in figure.data if data.mode == "text"]
    assert list(texts[0].text) == ["64", "40"] and list(texts[5].text) == ["8", "7.5", "2"]
    pipe = figure.data[3 * names.index("cache, MiB") + 1]
    half = len(pipe.y) // 2
    widths = np.asarray(pipe.y[:half]) - np.asarray(pipe.y[half:])[::-1]
    same(widths / widths[0], [1, 1, 7.5 / 8, 7.5 / 8, 2 / 8, 2 / 8])


@pytest.mark.parametrize(("value", "said"), [(2.5, "2.5"), (136.25, "136"), (0.0251, "0.0251"), (12345.6, "12,346")])
def test_quantities_are_said_in_three_digits(value: float, said: str) -> None:
    assert short(value) == said


def test_a_run_keeps_the_sizes_of_its_model_before_and_after_the_cut() -> None:
    model = tiny.model()
    made = run(model, tiny.ids(40), "weights=row_norm(ratio=0.5) eviction=h2o(budget=16)")
    sizes = made.sizes
    assert sizes is not None
    arch = model.arch
    assert sizes.pair_flops.tolist() == [4 * arch.n_heads * arch.head_dim] * arch.n_layers
    assert (sizes.neurons_left * 2 == sizes.neurons).all()
    cut = model.compress(methods.RowNorm(ratio=0.5)).model
    assert (sizes.weight_bytes, sizes.weight_bytes_left) == (model.n_bytes(), cut.n_bytes())
    table = pipeline_table(made, removed_table(made))
    assert after(table, "cache") == {"eviction": made.kv_bytes / 2**20}
