"""Which stage removed which key: by hand, in shares that add up, and through a file."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity_core import Pipeline, Trace, generate, run
from sparsity_core.record import removed_at, removed_pairs
from tests import tiny, traces

IDS = tiny.ids(75)
STAGES = [
    "prefill=sliding_window(window=9)",
    "prefill=minference(vertical=5, slash=5, n_sink=2, probes=8)",
    "eviction=h2o(budget=16)",
    "eviction=snapkv(budget=16, observation_window=4)",
    "decode=quest(tokens=0.25, page=4, dense_layers=0)",
    "prefill=assa(block=16, window=5) eviction=a2sf(budget=16)",
    "prefill=sliding_window(window=30) decode=quest(tokens=0.25, page=4, dense_layers=0)",
]


def causal(trace: Trace) -> int:
    return trace.n_kv_heads * trace.n_tokens * (trace.n_tokens + 1) // 2


@pytest.mark.parametrize("pipeline", STAGES)
@pytest.mark.parametrize("generates", [False, True])
def test_what_is_read_and_what_each_stage_removed_add_up_to_the_causal_pairs(pipeline, generates):
    model = tiny.model()
    trace = (
        generate(model, IDS, pipeline, max_new_tokens=9, stop_at_eos=False).trace
        if generates
        else run(model, IDS, pipeline)
    )
    for layer in range(trace.n_layers):
        found, counts = trace.removed_by(layer), removed_pairs(trace, layer)
        lower = np.tril(np.ones(found.shape[1:], bool))
        assert counts.tolist() == [int(((found == i) & lower).sum()) for i in range(1 + len(trace.stages))]
        assert counts.sum() == causal(trace) and counts[0] > 0
        assert not found[:, ~lower].any()
        stages = [text.partition("=")[0] for text in trace.stages]
        if "decode" not in stages:
            assert ((found == 0) & lower == trace.keep(layer)).all()
        assert (counts[1:] > 0).all()
        for step in (0, 40, trace.n_tokens - 1):
            assert (removed_at(trace, step)[layer, :, : step + 1] == found[:, step, : step + 1]).all()


def test_the_dense_model_loses_nothing():
    trace = run(tiny.model(), IDS)
    assert not trace.removed_by(0).any() and removed_pairs(trace, 0).tolist() == [causal(trace)]


def test_what_a_decode_stage_read_is_what_it_counted():
    trace = run(tiny.model(), IDS, "decode=quest(tokens=0.25, page=4, dense_layers=0, reduction=sum)")
    read = trace.removed_by(1) == 0
    np.testing.assert_allclose(np.tril(read).sum(1), trace.selected[1])


def test_a_key_is_read_where_one_query_head_of_its_kv_head_reads_it():
    """`selected` is the mean over a KV head's query heads, each with pages of its own; what is read is their union."""
    trace = run(tiny.model(), IDS, "decode=quest(tokens=0.25, page=4, dense_layers=0)")
    read = np.tril(trace.removed_by(1) == 0).sum(1)
    heads = trace.n_heads // trace.n_kv_heads
    assert (read >= trace.selected[1]).all() and (read <= heads * trace.selected[1]).all()
    assert (read > trace.selected[1]).any()


def test_a_later_stage_takes_nothing_from_what_an_earlier_one_is_charged_with():
    """In the first layer, where no stage before it has changed what comes in."""
    alone = run(tiny.model(), IDS, "prefill=sliding_window(window=30)").removed_by(0)
    both = run(tiny.model(), IDS, "prefill=sliding_window(window=30) eviction=h2o(budget=16)").removed_by(0)
    assert ((alone == 1) == (both == 1)).all() and (both == 2).any()


def test_by_hand():
    """The first head evicts the second to fifth token, before queries 4, 5, 6 and 7."""
    found = traces.trace().removed_by(0)[0]
    assert found[3].tolist() == [0, 0, 0, 0, 0, 0, 0, 0]
    assert found[4].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    assert found[7].tolist() == [0, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("pipeline", STAGES)
def test_masks_and_choices_outlast_a_file(pipeline, tmp_path):
    trace = run(tiny.model(), IDS, pipeline)
    trace.save(tmp_path / "trace.npz")
    again = Trace.load(tmp_path / "trace.npz")
    for layer in range(trace.n_layers):
        assert (again.removed_by(layer) == trace.removed_by(layer)).all()
        assert (again.keep(layer) == trace.keep(layer)).all()


def test_the_masks_of_a_record_are_those_that_were_made():
    for method in (
        "lsh(buckets=8, rounds=1, window=3)",
        "flexprefill(coverage=0.7, block=16)",
        "bigbird(block=8, window_blocks=1)",
    ):
        trace = run(tiny.model(), IDS, f"prefill={method}")
        assert trace.prefill is not None
        for layer in range(trace.n_layers):
            rows = trace.prefill.mask(layer).rows(0, 75, np.arange(75))
            np.testing.assert_array_equal(
                np.broadcast_to(rows.sum(-1), trace.prefill.shown[layer].shape), trace.prefill.shown[layer]
            )


def test_a_text_too_long_to_keep_each_choice_says_so():
    trace = run(tiny.model(), IDS, "decode=quest(tokens=0.25, page=4, dense_layers=0)")
    longer = trace.replaced(chosen=np.zeros((0, 0, 0, 0), np.uint8))
    with pytest.raises(ValueError, match="was not kept: of so long a text"):
        longer.removed_by(0)
    assert str(Pipeline.parse(longer.provenance.pipeline)) in longer.stages[0]
