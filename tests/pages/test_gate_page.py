"""What the Gate page and the Tokens page show of a gate: tables worked out by hand, figures by their data, the page itself."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from sparsity_core.methods.gate.dcp.records import ASSETS, Training, command_of, family, recipe_of, sparse_sigmoid
from sparsity_core.record.spec import RunSpec
from sparsity_core.record.store import Store
from sparsity_core.studies.gate_look import GateLook
from tests.app.test_app import figures, finish, open_page
from tests.pages.test_pages import opened
from tests.server import cache_with_models
from tests.traces import EVICTED_AT, TOKENS, named, trace
from ui.gate import family_specs, training_place
from ui.gate.training import curve_of
from ui.session import EXAMPLE, Shown
from ui.tokens import strip_cells, tell_token
from ui.view import View
from viz import cost, gate, strip

# Token 1 is dropped by 4 in layer 0 (where head 1 has evicted it at 3 already) and 2 by 5 in both layers.
GATED_AT = np.asarray([[8, 4, 5, 8, 8, 8, 8, 8], [8, 8, 5, 8, 8, 8, 8, 8]], np.int32)


def gated_trace():
    evicted_at = np.broadcast_to(GATED_AT[:, None], (2, 2, 8)).copy()
    evicted_at[0, 1, 1] = 3
    return named("gate=dcp", evicted_at=evicted_at, gated_at=GATED_AT)


def test_links_are_who_dropped_whom():
    table = gate.link_table(gated_trace(), 0, (0, 8))
    assert table.to_dict("list") == {
        "position": [1, 2],
        "token": [TOKENS[1], TOKENS[2]],
        "dropped_by": [4, 5],
        "by_token": [TOKENS[4], TOKENS[5]],
        "distance": [3, 3],
    }
    assert gate.link_table(gated_trace(), 0, (2, 8))["position"].tolist() == [2]
    figure = gate.plot_links(table, (0, 8), selected=5)
    grey, mine, droppers, dropped = figure.data
    assert (np.nanmin(grey.x), np.nanmax(grey.x)) == pytest.approx((1, 5))
    assert (np.nanmin(mine.x), np.nanmax(mine.x), np.nanmax(mine.y)) == pytest.approx((2, 5, 1.5))
    assert list(droppers.x) == [4, 5] and list(dropped.x) == [1, 2]
    empty = gate.link_table(trace(), 0, (0, 8))
    assert not len(empty) and gate.plot_links(empty, (0, 8)).data


def test_the_strip_pairs_the_token_that_drops_with_those_it_dropped():
    at = View(layer=0, head=0, token=5, step=7)
    table = strip.strip_table(gated_trace(), 0, 0, 7)
    assert table["dropped_by"].tolist() == [-1, 4, 5, -1, -1, -1, -1, -1]
    assert table["dropped_in"].dropna().tolist() == [4, 5]
    cells = strip_cells(table, at)
    assert [c.index for c in cells if c.paired] == [2]
    assert cells[1].note == f"dropped by token 4, “{TOKENS[4]}”"
    other = strip_cells(table, View(layer=0, head=0, token=1, step=7))
    assert [c.index for c in other if c.paired] == [4]
    assert "was dropped in layer 0 by token 4" in tell_token(gated_trace(), View(layer=0, head=0, token=1, step=7))
    assert "It dropped 1 token itself" in tell_token(gated_trace(), at)


def test_pairs_are_the_look_below_its_diagonal():
    x = np.arange(9, dtype=np.float32).reshape(3, 3) - 5.0
    look = GateLook(layer=1, start=2, x=x)
    table = gate.interaction_table(look, TOKENS)
    assert table[["query", "key", "x"]].to_numpy().tolist() == [[3, 2, -2], [4, 2, 1], [4, 3, 2]]
    assert table["drops"].tolist() == [True, False, False]
    figure = gate.plot_interactions(look, TOKENS, step=3, token=2)
    heat, drops = figure.data
    assert np.isnan(heat.z[0]).all() and heat.z[1][0] == -2 and heat.z[2][1] == 2
    assert list(drops.x) == [2] and list(drops.y) == [3]
    assert len(figure.layout.shapes) == 2


def test_the_drawn_sigmoid_is_the_one_that_is_trained():
    import torch

    from sparsity_core.methods.gate.dcp.sigmoid import log_sparse_sigmoid

    x = np.linspace(-3, 3, 61)
    for a in (1.0, 1.5, 2.0, 4.0, 8.0):
        expected = log_sparse_sigmoid(torch.from_numpy(x), a).exp().numpy()
        np.testing.assert_allclose(sparse_sigmoid(x, a), expected, atol=1e-6)
    figure = gate.plot_sigmoid(gate.sigmoid_table(), {"token 3": -0.5, "its lowest": 9.0}, 0.0)
    assert [tuple(d.x) + tuple(d.y) for d in figure.data[-2:]] == [(-0.5, 0.0), (3.0, 1.0)]


def test_kept_context_is_a_count_over_what_each_query_sees():
    table = gate.kept_table(trace())
    for layer in range(2):
        ends = np.asarray(EVICTED_AT[layer])
        for row in table[table["layer"] == layer].itertuples():
            query = row.first
            seen = [(ends[head][:query] > query).sum() for head in range(2)]
            assert row.kept == pytest.approx(np.mean(seen) / query)
    assert gate.plot_kept(table).data[0].z.shape == (2, 7)


def test_kinds_are_shares_of_their_tokens():
    table = gate.kinds_table(gated_trace()).set_index(["layer", "kind"])
    assert table.loc[(0, "word"), "tokens"] == 3
    assert table.loc[(0, "word"), "dropped"] == pytest.approx(2 / 3)
    assert table.loc[(1, "word"), "dropped"] == pytest.approx(1 / 3)
    assert table.loc[(1, "space"), "dropped"] == 0
    drawn = gate.plot_kinds(table.reset_index()).data[0]
    assert "word (3)" in list(drawn.y) and drawn.z.shape == (5, 2)


def test_the_family_curve_and_the_training_curve_draw_their_tables():
    points = {("dcp", "gamma=0.3"): gate.point_of(gated_trace()), ("h2o", "budget=3"): gate.point_of(trace())}
    table = gate.family_table(points)
    assert table["kept"].tolist() == [gated_trace().density(), trace().density()]
    assert table["relative"].tolist() == pytest.approx([math.e**3] * 2)
    assert [d.name for d in gate.plot_family(table).data] == ["dcp", "h2o"]
    curve = gate.training_table({"curve": {"loss": [1.0, 0.5], "kept": [0.2, 0.4]}})
    assert curve["loss_mean"].tolist() == [1.0, 0.75]
    assert list(gate.plot_training(curve, True).data[3].y) == pytest.approx([0.2, 0.3])
    assert cost.method_of(gated_trace()) == "dcp"


def test_the_shipped_family_says_how_it_was_trained():
    shipped = family()
    assert len(shipped) >= 3 and list(shipped) == sorted(shipped)
    for gamma, path in shipped.items():
        recipe = recipe_of(path)
        assert recipe["gamma"] == gamma
        assert len(recipe["curve"]["loss"]) == recipe["steps"]
        length = "" if recipe["length"] == 512 else f"--length {recipe['length']} "
        assert command_of(recipe) == (
            f"sparselens train dcp --model smollm2-135m --gamma {gamma:g} --steps {recipe['steps']} {length}"
            f"--a-first 2 --seed {recipe['seed']} --start GATE --file TEXT --out gate"
        )
        assert path.stat().st_size < 5_000_000
    assert family("no such model") == {}
    assert recipe_of(ASSETS / "missing") is None
    assert (ASSETS / "README.md").exists()


def test_the_curve_runs_every_gate_and_keeps_the_weights_that_were_pruned():
    stored = Store().get(EXAMPLE)
    spec = RunSpec(EXAMPLE.model, EXAMPLE.prompt, "weights=row_norm(ratio=0.25) gate=dcp", generate=24)
    found = family_specs(Shown("A", spec, stored))
    assert {name for name, _ in found} == {"dcp", "local_window", "streaming_llm", "h2o", "a2sf"}
    assert all(s.pipeline.startswith("weights=row_norm(ratio=0.25)") and s.generate == 0 for s in found.values())
    assert sum(name == "dcp" for name, _ in found) == 3 * len(family())


def test_the_gate_page_from_a_link_to_every_section(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))
    at = opened(tmp_path, pipeline="gate=dcp(gamma=0.3)", prompt="needle", layer="3", token="10", step="60")
    assert at.selectbox(key="A_gate").value == "dcp"
    finish(at)
    assert not at.exception
    assert any("which token dropped which" in h.value for h in at.subheader)
    open_page(at, "gate")
    finish(at, purpose="gate_look")
    assert not at.exception
    assert {"What layer 3 thinks of each pair", "What is kept, and of what kind", "How this gate was trained"} <= {
        h.value for h in at.subheader
    }
    assert len(figures(at)) == 5
    at.segmented_control(key="gate_section").set_value("cost").run()
    assert not at.exception
    assert at.button(key="run_family")
    at.segmented_control(key="gate_section").set_value("train").run()
    at.number_input(key="gate_gamma").set_value(-1.0).run()
    assert any("gamma, what a kept pair costs, is at least 0" in w.value for w in at.warning)
    at.number_input(key="gate_gamma").set_value(0.5).run()
    at.number_input(key="gate_steps").set_value(2).run()
    at.number_input(key="gate_length").set_value(24).run()
    place = training_place(at.session_state["specs"][0], Training(gamma=0.5, steps=2, length=24), None)
    place.parent.mkdir(exist_ok=True)
    place.with_suffix(".curve").write_text('{"loss": [3.0], "kept": [1.0]}')  # as a training leaves that was ended
    assert curve_of(place) == {"loss": [3.0], "kept": [1.0]}
    at.button(key="train_gate").click().run()
    finish(at, purpose="train_gate")
    assert not at.exception
    assert len(curve_of(place)["loss"]) == 2 and not list(place.parent.glob("*.curve"))
    assert place.exists() and any(str(place) in s.value for s in at.success)


def test_a_look_that_fails_says_so_and_waits_for_a_button(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))
    at = opened(tmp_path, pipeline="gate=dcp(gamma=0.3)", prompt="needle", layer="7")  # no look of another test
    finish(at)
    monkeypatch.setenv("SPARSELENS_JOB_SECONDS", "soon")
    open_page(at, "gate")
    finish(at, purpose="gate_look")
    assert not at.exception
    (said,) = [e.value for e in at.error]
    assert "a number of seconds above 0; got 'soon'" in said
    monkeypatch.delenv("SPARSELENS_JOB_SECONDS")
    at.button(key="look_at_gate").click().run()
    finish(at, purpose="gate_look")
    assert not at.exception and len(figures(at)) == 5


def test_without_a_gate_the_page_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    at = opened(tmp_path)
    open_page(at, "gate")
    assert not at.exception
    assert any("choose one under Gate in the sidebar" in i.value for i in at.info)


def test_torch_is_not_needed_to_read_a_gates_recipe():
    code = (
        "import sys, sparsity_core.methods.gate.dcp.records, ui.gate.looks, ui.gate.training, viz.gate\n"
        "from viz.gate import plot_family, plot_links\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
