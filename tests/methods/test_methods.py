"""What every method says of itself, and the budgets of layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsity_core import methods
from sparsity_core.kinds.eviction import EvictionMethod, LayerShape
from sparsity_core.kinds.knobs import REDUCTIONS
from sparsity_core.kinds.registry import register


def test_a_factor_list_must_fit_the_model():
    layer = LayerShape(index=1, n_layers=3, n_kv_heads=2)
    assert methods.A2SF(forgetting_factor=[0.1, [0.2, 0.4], 0.3]).rule(layer).decay == (0.2, 0.4)
    with pytest.raises(ValueError, match="lists 2 layers and the model has 3"):
        methods.A2SF(forgetting_factor=[0.1, 0.2]).rule(layer)
    with pytest.raises(ValueError, match="lists 3 heads and the model has 2 KV heads"):
        methods.A2SF(forgetting_factor=[0.1, [0.2, 0.4, 0.6], 0.3]).rule(layer)


def test_a_pyramid_too_small_for_its_protected_keys_is_refused_by_layer():
    method = methods.A2SF(budget=10, layer_budget="pyramid", recent=6)
    assert method.rule(LayerShape(0, 3, 2)).budget == 15
    with pytest.raises(ValueError, match=r"layer 2 keeps 5 keys, fewer than the 0 sinks \+ 6 recent keys it protects"):
        method.rule(LayerShape(2, 3, 2))


@given(budget=st.integers(1, 5000), n_layers=st.integers(1, 100))
def test_a_pyramid_spends_as_much_as_a_uniform_budget(budget, n_layers):
    method = methods.LocalWindow(budget=budget, layer_budget="pyramid")
    budgets = [method.budget_of(LayerShape(i, n_layers, 1)) for i in range(n_layers)]
    assert sum(budgets) == n_layers * budget
    assert min(budgets) >= 1
    assert budgets == sorted(budgets, reverse=True)


def test_a_pyramid_runs_from_three_halves_to_one_half():
    method = methods.LocalWindow(budget=8, layer_budget="pyramid")
    assert [method.budget_of(LayerShape(i, 5, 1)) for i in range(5)] == [12, 10, 8, 6, 4]


def test_dense_layers_keep_everything():
    method = methods.A2SF(budget=8, dense_layers=2)
    assert [method.rule(LayerShape(i, 4, 1)).budget for i in range(4)] == [None, None, 8, 8]


@pytest.mark.parametrize("name", methods.names())
def test_every_method_says_what_it_is(name):
    cls = methods.get(name)
    assert cls.name == name
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(")
    assert cls.source
    assert getattr(methods, cls.__name__) is cls
    assert all(own.metadata["help"] for own in cls.knobs())
    for own in cls.knobs():
        assert own.metadata["choices"] is None or own.default in own.metadata["choices"]
    str(cls())  # its defaults are valid


def test_eviction_methods_of_the_papers_are_there():
    assert {"a2sf", "h2o", "tova", "snapkv", "streaming_llm", "local_window", "random"} <= set(
        methods.names("eviction")
    )
    assert methods.names("no such stage") == []
    assert REDUCTIONS[0] == methods.H2O().reduction == "sum"
    with pytest.raises(AttributeError, match="there is no method class 'A3SF'"):
        methods.A3SF  # noqa: B018


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="two methods are named a2sf"):

        @register
        class A2SF(EvictionMethod):
            name = "a2sf"


def test_knobs_that_name_files_say_so():
    named = {name: [k.name for k in methods.get(name).knobs() if k.metadata["path"]] for name in methods.names()}
    assert {name: files for name, files in named.items() if files} == {
        "a2sf": ["factors"],
        "prunenet": ["policy"],
        "dcp": ["adapter"],
        "duo_attention": ["pattern"],
        "double_sparsity": ["calibration"],
    }
    assert methods.PruneNet().inputs() == {}  # what ships is no file of the user's
    assert methods.PruneNet(policy="nowhere/at.all").inputs() == {"policy": "absent"}


@pytest.mark.parametrize("name", methods.names("weights"))
def test_every_weights_method_has_a_ratio_and_says_whether_it_reads_text(name):
    method = methods.get(name)()
    assert str(replace(method, ratio=0.5)).startswith(f"{name}(ratio=0.5")
    assert method.reads_text == ("calibration text" in method.inputs())
