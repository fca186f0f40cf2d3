"""The figures of judges, on a study whose numbers are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sparsity_core.studies import ALL_LAYERS, FORESIGHT, JudgeStudy
from viz import judges
from viz.looks import look_of

KNOWS, ERRS = "eviction=a2sf(budget=256)", "gate=dcp()"
STUDY = JudgeStudy(
    step=9,
    width=2,
    horizon=4,
    keys=np.array([0, 2, 4, 6, 8], np.int32),
    places=np.array([ALL_LAYERS, 3], np.int32),
    kl=np.array([[0.1, 0.2, 0.3, 0.5, 0.4], [0.1, 0.2, 0.3, 0.4, 0.5]], np.float32),
    nll=np.array([[0.1, -0.2, 0.0, 0.5, 0.4]] * 2, np.float32),
    noise=1e-12,
    judges=(ERRS, KNOWS, FORESIGHT),
    ranks=np.array([[[0, 1, 2, 3, 4]] * 2, [[0, 1, 2, 4, 3]] * 2, [[1, 1, 1, 1, 1]] * 2], np.float32) / 4,
    left_out=(),
)
TOKENS = [f"t{i}" for i in range(10)]


def test_the_best_judge_comes_first_and_one_that_says_nothing_last() -> None:
    table = judges.verdicts_table(STUDY, ALL_LAYERS)
    assert table["judge"].tolist() == [KNOWS, ERRS, FORESIGHT]
    np.testing.assert_allclose(table["rho"], [1.0, 0.9, np.nan])
    assert (table["drops"] == 5).all()
    figure = judges.plot_verdicts(table)
    assert [(mark.y[0], mark.x[0]) for mark in figure.data] == [
        ("a2sf", pytest.approx(1)),
        ("dcp", pytest.approx(0.9)),
    ]
    assert figure.data[0].marker.color == look_of("a2sf").colour
    assert figure.data[1].error_x.array[0] == pytest.approx(table["high"][1] - 0.9)


def test_a_layer_from_which_nothing_was_dropped_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was dropped from layer 7"):
        judges.verdicts_table(STUDY, 7)


def test_a_line_holds_the_layers_that_lost_tokens_by_themselves() -> None:
    table = judges.judge_layers_table(STUDY, [KNOWS, ERRS])
    assert table[["judge", "layer"]].to_numpy().tolist() == [[KNOWS, 3], [ERRS, 3]]
    np.testing.assert_allclose(table["rho"], [0.9, 1.0])
    assert [line.name for line in judges.plot_judge_layers(table).data] == ["a2sf", "dcp"]


def test_each_drop_is_a_mark_with_its_tokens() -> None:
    table = judges.drops_table(STUDY, TOKENS, KNOWS, ALL_LAYERS)
    assert table["token"].tolist() == ["t0t1", "t2t3", "t4t5", "t6t7", "t8t9"]
    np.testing.assert_allclose(table["rank"], [0, 0.25, 0.5, 1.0, 0.75])
    figure = judges.plot_drops(table)
    np.testing.assert_allclose(figure.data[0].y, STUDY.kl[0])
    assert figure.layout.yaxis.type == "log" and judges.plot_drops(table, "nll").layout.yaxis.type is None
