"""A method looks the same everywhere, and what one figure shows together differs."""

from __future__ import annotations

import itertools

import pytest

from sparsity_core import methods
from tests.traces import named
from viz import cost
from viz.channels.names import STATISTIC_LOOKS
from viz.looks import HUES, OKABE_ITO, distinct_looks, look_of

ALL = [*methods.names(), "dense"]


def test_no_two_methods_share_a_line_or_a_mark() -> None:
    looks = [look_of(name) for name in ALL] + list(STATISTIC_LOOKS.values())
    assert len({(look.colour, look.dash) for look in looks}) == len(looks)
    assert len({(look.colour, look.symbol) for look in looks}) == len(looks)


def test_methods_have_hues_of_okabe_and_ito() -> None:
    assert set(HUES) < set(OKABE_ITO)
    references = {"dense", "random", "random_neurons", "oracle_top_k", "oracle_top_p"}
    assert {look_of(name).colour for name in ALL if name not in references} <= set(HUES)


@pytest.mark.parametrize(
    "names", [[*ALL, "h2o", "a2sf", "a2sf"], ["a2sf"] * 30, ["x", "y", "somebody's own"] * 4], ids=["all", "one", "new"]
)
def test_any_number_of_pipelines_in_one_figure_differ(names: list[str]) -> None:
    looks = distinct_looks(names)
    assert looks[0] == look_of(names[0])
    for a, b in itertools.combinations(looks, 2):
        assert (a.colour, a.dash) != (b.colour, b.dash)
        assert (a.colour, a.symbol) != (b.colour, b.symbol)


def test_pipelines_of_one_method_keep_its_colour() -> None:
    assert {look.colour for look in distinct_looks(["h2o"] * 5)} == {look_of("h2o").colour}


@pytest.mark.parametrize(
    ("pipeline", "method"),
    [
        ("weights=leverage(ratio=0.25)", "leverage"),
        ("decode=quest()", "quest"),
        ("gate=dcp()", "dcp"),
        ("weights=leverage(ratio=0.25) eviction=h2o(budget=8)", "h2o"),
        ("dense", "dense"),
    ],
)
def test_a_pipeline_is_coloured_by_whatever_method_it_has(pipeline: str, method: str) -> None:
    assert cost.method_of(named(pipeline)) == method
