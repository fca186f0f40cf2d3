"""Forgetting factors of layers and heads, fitted to the attention that later queries give, and the files that hold them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsity_core import methods, run
from sparsity_core.kinds import LayerShape, Pipeline
from sparsity_core.methods.eviction.a2sf.factors import SHIPPED, Factors
from sparsity_core.methods.eviction.a2sf.fitting import GRID, attention_lost, best, fit_factors
from sparsity_core.models import EMBEDDED, calibration_digest, calibration_text, windows
from tests import tiny
from tests.cli.test_cli import as_json, call, with_tiny
from tests.methods.qkv import dense_qkv
from tests.oracles import attention_probabilities, evict_step_by_step

__all__ = ["with_tiny"]  # a fixture
IDS = tiny.ids(48)


@pytest.fixture
def made(tmp_path):
    """Factors of the tiny model, as a file."""
    values = np.array([[0.1, 0.9], [0.5, 0.0], [1.0, 0.3]])
    path = tmp_path / "factors.json"
    Factors(values, {"model": tiny.model().name, "fingerprint": tiny.model().fingerprint}).save(path)
    return path


def test_what_is_lost_is_what_later_queries_give_to_keys_that_are_gone():
    """Key 0, gone from query 2 on, loses .2; from query 1 on .5 + .2; key 1 from query 2 on .3; what stays nothing."""
    p = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]).expand(3, -1, -1)
    at = torch.tensor([[2, 2**31 - 1, 2**31 - 1], [1, 2, 3], [3, 3, 3]], dtype=torch.int32)
    assert attention_lost(p, at).tolist() == pytest.approx([0.2, 1.0, 0.0])


def test_each_head_takes_what_loses_least_and_ratios_count_alike():
    """The best single α loses .5 at the tight ratio and .1 at the loose one, so that .1 there and .02 here weigh the same.

    Head 0 wants the first α by .1 / .5 at the tight ratio and the second by .04 / .1 at the loose one; head 1 the second by
    .1 / .5 and the first by .01 / .1.
    """
    tight, loose = [[[0.4, 0.5], [0.6, 0.5]]], [[[0.14, 0.1], [0.09, 0.1]]]
    assert best(np.array([tight])).tolist() == [[0, 1]]
    assert best(np.array([loose])).tolist() == [[1, 0]]
    assert best(np.array([tight, loose])).tolist() == [[1, 1]]


def test_the_fit_is_the_least_of_a_naive_scan():
    """Of every layer, head and α: the rule key by key over the dense q, k and v, and its losses pair by pair."""
    length, budget = 40, 12
    found = fit_factors(tiny.model(), ratios="0.3", blocks=1, length=length, seed=3)
    ids = windows(tiny.model(), calibration_text(), count=1, length=length, seed=3)[0].tolist()
    lost = np.zeros((3, 2, len(GRID)))
    for layer, (q, k, v) in enumerate(dense_qkv(tiny.model(), ids)):
        p = attention_probabilities(q[None], k[None])[0].view(2, 2, length, length).sum(1)
        for place, factor in enumerate(GRID):
            gone = evict_step_by_step(q[None], k[None], v[None], budget=budget, decay=factor)[1][0]
            for head in range(2):
                for key in range(length):
                    lost[layer, head, place] += float(p[head, min(length, int(gone[head, key])) :, key].sum())
    np.testing.assert_array_equal(found.values, np.array(GRID)[lost.argmin(-1)])
    assert found.recipe["lost"][0] == pytest.approx(lost.min(-1).mean() / (2 * length), abs=1e-5)
    assert found.recipe["lost_by_best_single"][0] == pytest.approx(lost.mean((0, 1)).min() / (2 * length), abs=1e-5)
    assert found.recipe["lost"][0] < found.recipe["lost_by_best_single"][0]
    assert found.recipe["text"] == calibration_digest() and found.recipe["fingerprint"] == tiny.model().fingerprint


def test_a_file_s_factors_are_those_of_a_list(made):
    spelled = f"eviction=a2sf(budget=12, factors={str(made)!r})"
    listed = "eviction=a2sf(budget=12, forgetting_factor=[[0.1, 0.9], [0.5, 0.0], [1.0, 0.3]])"
    one, two = run(tiny.model(), IDS, spelled), run(tiny.model(), IDS, listed)
    np.testing.assert_array_equal(one.evicted_at, two.evicted_at)
    np.testing.assert_array_equal(one.nll, two.nll)
    method = Pipeline.parse(spelled).eviction
    assert str(Pipeline(eviction=method)) == spelled
    assert method.files() == {"factors": str(made)} and len(method.inputs()["factors"]) == 16
    assert methods.A2SF(factors="auto").files() == {} and methods.A2SF().inputs() == {}
    assert not method.cuts_once  # asked without a model
    again = Factors.load(made)
    np.testing.assert_array_equal(again.values, Factors.load(made).values)
    once = replace(method, variant="prefill_only").rule(LayerShape(1, 3, 2, model=tiny.model()))
    assert once.decay == (0.5, 0.0)


def test_those_that_ship_are_the_embedded_model_s():
    found = Factors.load(SHIPPED)
    assert found.values.shape == (30, 3) and set(found.values.ravel()) <= set(GRID)
    assert found.recipe["model"] == EMBEDDED and found.recipe["text"] == calibration_digest()
    assert all(own <= one for own, one in zip(found.recipe["lost"], found.recipe["lost_by_best_single"], strict=True))
    assert methods.A2SF(factors="auto").inputs()["factors"] != "absent"
    with pytest.raises(
        ValueError, match=r"factors are of smollm2-135m .*\(30, 3\)\) and not of tiny-llama \(3, 2\): make"
    ):
        run(tiny.model(), IDS, "eviction=a2sf(budget=12, factors=auto)")


def test_another_model_s_factors_are_refused(made):
    """Of the same shape, too: a fingerprint of other weights."""
    note = json.loads(made.read_text())
    note["recipe"]["fingerprint"] = "of others"
    made.write_text(json.dumps(note))
    with pytest.raises(
        ValueError, match="make some by `sparselens train a2sf --model tiny-llama`, or leave factors out"
    ):
        run(tiny.model(), IDS, f"eviction=a2sf(budget=12, factors={str(made)!r})")
    shape = LayerShape(0, 3, 2, model=tiny.model())
    with pytest.raises(ValueError, match="and not of tiny-llama"):
        methods.A2SF(budget=12, factors=str(made)).rule(shape)


@pytest.mark.parametrize(
    "held", ["", "[]", '{"factors": [[0.5, 2.0]], "recipe": {}}', '{"factors": [["a"]], "recipe": {}}']
)
def test_what_holds_no_factors_is_said(held, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(held)
    with pytest.raises(ValueError, match="holds no forgetting factors, a list for each layer of numbers from 0 to 1"):
        Factors.load(path)
    with pytest.raises(ValueError, match=r"there are no factors at .*nowhere"):
        Factors.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"ratios": "0.2, 1"}, "ratios are shares of a stretch that its cache holds, above 0 and below 1; got 0.2, 1"),
        ({"ratios": ""}, "ratios are shares"),
        ({"ratios": "half"}, "ratios is a list of numbers"),
        ({"blocks": 0}, "1 block or more of 8 to"),
        ({"length": 4}, "1 block or more of 8 to"),
        ({"text": "too short", "length": 32}, "fewer than one stretch"),
    ],
)
def test_a_fit_that_cannot_be_is_refused(how, said):
    with pytest.raises(ValueError, match=said):
        fit_factors(tiny.model(), **how)


@pytest.mark.usefixtures("with_tiny")
def test_the_command_fits_and_says_what_it_wins(capsys, tmp_path):
    asked = ["train", "a2sf", "--blocks", "1", "--length", "40", "--ratios", "0.3", "--out", str(tmp_path / "out")]
    found = as_json(capsys, *asked)
    made = Factors.load(found["factors"])
    made.check(tiny.model())
    assert made.recipe == found["recipe"] and made.recipe["ratios"] == [0.3]
    status, _, err = call(capsys, *asked)
    assert status == 2 and "exists already" in err
