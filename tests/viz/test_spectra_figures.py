"""Studies of a tiny model against the library that they come from, and the Spectra page's figures by their data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sparsity_core import methods, studies
from sparsity_core.evaluate.perplexities import perplexity
from sparsity_core.models.texts import evaluation_text
from sparsity_core.studies.policy_history import History
from sparsity_core.studies.spectra_records import MEASURES, Ranked, Uncut, WeightStudy
from sparsity_core.weights.ffn import feed_forwards
from sparsity_core.weights.spectrum import ks_distance, singular_values
from tests import tiny
from viz import spectra
from viz.looks import method_colour, method_symbol
from viz.theme import style

FAMILIES = ("llama", "gpt2")  # three matrices, and two


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))


def studied(method, family: str = "llama", **options) -> tuple[WeightStudy, Ranked | None]:
    return studies.study(tiny.model(family), method, perplexity=False, **options)


# --- studies ---


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_is_before_any_cut(family):
    model = tiny.model(family)
    uncut = studies.study_uncut(model)
    blocks = feed_forwards(model)
    assert uncut.matrices == tuple(blocks[0].matrices)
    assert (uncut.n_layers, uncut.n_neurons) == (len(blocks), blocks[0].n_neurons)
    for block in blocks:
        for name, weight in block.matrices.items():
            expected = torch.linalg.svdvals(weight.double()).numpy()
            np.testing.assert_allclose(uncut.spectrum(block.layer, name), expected, rtol=1e-6)
        np.testing.assert_allclose(uncut.row_norm[block.layer], block.first.double().norm(dim=1), rtol=1e-6)
        rank = torch.linalg.matrix_rank(block.first.double())
        assert float(uncut.leverage[block.layer].sum()) == pytest.approx(float(rank), rel=1e-5)


@pytest.mark.parametrize("name", ["row_norm", "leverage", "random_neurons", "svd_truncation"])
def test_a_study_is_what_compression_does(name):
    method = methods.get(name)(ratio=0.4)
    study, ranked = studied(method)
    compressed = tiny.model().compress(method)
    for layer, kept in enumerate(compressed.kept):
        assert np.flatnonzero(study.kept[layer]).tolist() == kept.tolist()
    for item in compressed.spectra:
        found = study.of(item.layer, item.matrix)
        assert (found["ks"], found["ks_at"]) == pytest.approx((item.ks, item.ks_at))
        np.testing.assert_allclose(study.spectrum(item.layer, item.matrix), item.after, rtol=1e-6, atol=1e-6)
    assert study.true_cut == pytest.approx(compressed.true_cut)
    assert (ranked is not None) == method.one_ranking


def test_kept_neurons_are_rounded_to_the_multiple_that_the_method_names():
    method = methods.get("leverage")(ratio=0.3, multiple=8)
    kept = studies.kept_neurons(np.arange(96.0), method)
    assert np.flatnonzero(kept).tolist() == list(range(96 - 64, 96))  # 67.2 of 96 stay, rounded to 8s
    assert kept.sum() == len(tiny.model().compress(method).kept[0])


def test_any_ratio_from_one_ranking_is_what_compression_does_at_it():
    model = tiny.model()
    _, ranked = studied(methods.get("leverage")(ratio=0.25))
    assert ranked is not None
    for layer in range(model.arch.n_layers):
        grams = studies.layer_grams(model, layer)
        for ratio in (0.1, 0.5, 0.75):
            other, _ = studied(methods.get("leverage")(ratio=ratio))
            kept = studies.kept_neurons(ranked.importance[layer], methods.get("leverage")(ratio=ratio))
            assert (kept == other.kept[layer]).all()
            for matrix in other.matrices:
                live = grams.cut(matrix, kept)
                expected = ks_distance(
                    torch.from_numpy(live.before), singular_values(_rows(model, layer, matrix)[kept])
                )
                assert live.measures["ks"] == pytest.approx(expected.statistic)
                assert live.measures == pytest.approx(other.of(layer, matrix), rel=1e-5)


def _rows(model, layer: int, matrix: str) -> torch.Tensor:
    return feed_forwards(model)[layer].matrices[matrix]


def test_a_ratio_of_nought_moves_nothing():
    study, _ = studied(methods.get("row_norm")(ratio=0.0))
    assert study.kept.all() and study.true_cut == 0
    for name in ("ks", "scaled_ks", "wasserstein", "energy_lost"):
        np.testing.assert_allclose(study.measure(name), 0, atol=1e-9)


def test_perplexity_is_that_of_the_whole_and_of_the_pruned_model():
    model, method = tiny.model(), methods.get("row_norm")(ratio=0.5)
    study, _ = studies.study(model, method)
    options = {"text": evaluation_text(), "block": tiny.MAX_POSITIONS, "most_blocks": 2}
    assert study.dense_perplexity == pytest.approx(perplexity(model, **options).perplexity)
    assert study.perplexity == pytest.approx(perplexity(model.compress(method).model, **options).perplexity)
    assert f"2 blocks of {tiny.MAX_POSITIONS}" in study.convention
    again, _ = studies.study(model, method, dense=study.dense_perplexity)
    assert (again.perplexity, again.dense_perplexity) == (study.perplexity, study.dense_perplexity)


def test_what_is_kept_is_found_again_as_it_was():
    model, method = tiny.model(), methods.get("leverage")(ratio=0.25)
    who = (model.fingerprint, model.dtype_name)
    study, ranked = studied(method)
    uncut = studies.study_uncut(model)
    assert ranked is not None
    assert studies.find_study(*who, method) is None
    assert [studies.keep_record(record, *who) for record in (uncut, ranked, study)] == [None] * 3
    found = studies.find_study(*who, method)
    assert found is not None
    for name in ("measures", "after", "bits"):
        np.testing.assert_array_equal(getattr(found, name), getattr(study, name))
    assert (found.method, found.matrices, found.notes) == (study.method, study.matrices, study.notes)
    assert math.isnan(found.perplexity)
    other = methods.get("leverage")(ratio=0.6)
    assert studies.find_study(*who, other) is None
    again = studies.find_ranked(*who, other)
    assert again is not None and (again.importance == ranked.importance).all()
    own = studies.find_uncut(*who)
    assert own is not None and (own.leverage == uncut.leverage).all()
    light = study.light()
    assert light.spectrum(0, light.matrices[0]) is None and (light.measures == study.measures).all()


def test_a_damaged_file_counts_as_absent_and_a_full_disk_is_a_sentence(tmp_path: Path):
    model, method = tiny.model(), methods.get("row_norm")(ratio=0.25)
    who = (model.fingerprint, model.dtype_name)
    study, _ = studied(method)
    studies.keep_record(study, *who)
    (path,) = tmp_path.glob("spectra/*/study-*.npz")
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"PK\x03\x04 no archive"):
        path.write_bytes(damaged)
        assert studies.find_study(*who, method) is None
    (tmp_path / "file").write_text("")
    problem = studies.keep_record(study, *who, tmp_path / "file")
    assert problem is not None and "could not be kept" in problem


def test_contenders_are_every_method_with_several_seeds_of_the_random_one():
    found = studies.contenders(0.5)
    assert {m.name for m in found} == set(methods.names("weights"))
    assert {getattr(m, "ratio", 0.5) for m in found} == {0.5}
    assert len([m for m in found if m.name == "random_neurons"]) == studies.SEEDS
    assert len(set(map(str, found))) == len(found)


def test_a_policys_training_is_read_from_its_card(tmp_path: Path):
    card = {
        "fingerprint": "abc",
        "variant": "corrected",
        "ratio": 0.25,
        "history": {
            "ks": [[0.25, 0.75], [0.25, 0.5]],
            "reward": [[4.0, 2.0], [4.0, 2.5]],
            "ks_of_starts": {"norm": [0.5, 1.0]},
        },
    }
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "abc-corrected.json").write_text(json.dumps(card))
    (tmp_path / "policies" / "broken.json").write_text("{")
    method = methods.get("prunenet")()
    found = studies.find_history("abc", method)
    assert found == History(ks=(0.5, 0.375), reward=(3.0, 3.25), starts={"norm": 0.75}, ratio=0.25)
    assert studies.find_history("abd", method) is None
    assert studies.find_history("abc", methods.get("prunenet")(variant="official")) is None
    assert studies.find_history("abc", methods.get("leverage")()) is None
    table = spectra.history_table(found)
    assert table.to_dict("list") == {"episode": [1, 2], "ks": [0.5, 0.375], "reward": [3.0, 3.25]}
    figure = spectra.plot_history(table, method="prunenet", starts=found.starts)
    assert [list(line.y) for line in figure.data] == [[0.5, 0.375], [3.0, 3.25], [0.75, 0.75]]


# --- figures ---

BEFORE, AFTER = np.asarray([4.0, 3.0, 2.0, 1.0]), np.asarray([2.5, 2.0, 1.0])


def test_the_spectrum_table_by_hand():
    table = spectra.spectrum_table(BEFORE, AFTER)
    after = table[table["state"] == "after"]
    assert after["sigma"].tolist() == [2.5, 2.0, 1.0]
    assert after["rank"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(after["at_most"], [1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(after["above"], [0, 1 / 3, 2 / 3], atol=1e-12)


@pytest.mark.parametrize("view", spectra.VIEWS)
def test_the_bracket_spans_d_at_the_value_where_it_is_reached(view):
    # at 2.5 the distribution functions are ½ and 1
    table = spectra.spectrum_table(BEFORE, AFTER)
    figure = spectra.plot_spectrum(table, {"ks": 0.5, "ks_at": 2.5}, method="leverage", view=view)
    before, after, bracket = figure.data
    assert (before.name, after.name, bracket.name) == ("before", "after", "D")
    assert after.line.color == method_colour("leverage") and before.line.dash != after.line.dash
    across, along = (bracket.x, bracket.y) if view == "distribution" else (bracket.y, bracket.x)
    assert list(across) == [2.5, 2.5]
    assert max(along) - min(along) == pytest.approx(0.5)
    assert sorted(along) == pytest.approx([0.5, 1.0] if view == "distribution" else [0.0, 0.5])
    (note,) = figure.layout.annotations
    assert note.text == "<b>D = 0.500</b> at σ = 2.5"
    if view == "log":
        assert figure.layout.yaxis.type == "log" and note.y == pytest.approx(math.log10(2.5))


def test_no_bracket_where_nothing_moved():
    figure = spectra.plot_spectrum(spectra.spectrum_table(BEFORE, BEFORE), {"ks": 0.0, "ks_at": 1.0}, method="leverage")
    assert [line.name for line in figure.data] == ["before", "after"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_map_holds_every_layer_and_matrix(family):
    study, _ = studied(methods.get("row_norm")(ratio=0.5), family)
    table = spectra.distance_table(study)
    selected = (1, study.matrices[-1])
    figure = spectra.plot_distances(table, "ks", selected)
    (cells,) = figure.data
    np.testing.assert_allclose(cells.z, study.measure("ks").T.astype(np.float32))
    assert list(figure.layout.yaxis.ticktext) == list(study.matrices)
    row = len(study.matrices) - 1
    assert {(s.x0, s.x1, s.y0, s.y1) for s in figure.layout.shapes} == {(0.5, 1.5, row - 0.5, row + 0.5)}
    assert table["cut"].unique() == pytest.approx([1 - study.kept[0].mean()])


def test_kept_and_cut_neurons_differ_by_more_than_colour():
    kept = np.asarray([True, False, True])
    table = spectra.neuron_table(
        np.asarray([3.0, 1.0, 2.0]), np.asarray([1.0, 2, 3]), np.asarray([0.1, 0.2, 0.3]), kept
    )
    figure = spectra.plot_neurons(table, first="gate")
    assert [(list(t.customdata), list(t.x), list(t.y)) for t in figure.data] == [
        ([0, 2], [1, 3], [3, 2]),
        ([0, 2], [0.1, 0.3], [3, 2]),
        ([1], [2], [1]),
        ([1], [0.2], [1]),
    ]
    assert len({t.marker.symbol for t in figure.data}) == len({t.marker.color for t in figure.data}) == 2
    assert "neuron %{customdata}" in figure.data[0].hovertemplate
    unranked = spectra.neuron_table(np.zeros(0), np.ones(3), np.asarray([0.1, 0.2, 0.3]), kept)
    assert [list(t.y) for t in spectra.plot_neurons(unranked, first="up").data] == [[0.1, 0.3], [0.2]]


def outcome(method: str, ks: float, perplexity: float) -> WeightStudy:
    measures = np.zeros((2, 1, len(MEASURES)))
    measures[:, :, MEASURES.index("ks")] = [[ks - 0.125], [ks + 0.125]]
    return WeightStudy(
        model="hand-made", fingerprint="0", dtype="float32", method=method, ratio=0.25, matrices=("up",), n_neurons=8,
        measures=measures, after=np.zeros((0, 0, 0), np.float32), bits=np.zeros((2, 1), np.uint8), true_cut=0.1,
        perplexity=perplexity, dense_perplexity=10.0, convention="a text", seconds=1.0,
    )  # fmt: skip


def test_methods_are_compared_by_mean_distance_and_rise_in_perplexity():
    rows = [("leverage(ratio=0.25)", 0.25, 12.0)]
    rows += [(f"random_neurons(ratio=0.25, seed={i})", 0.5 + i / 8, 110.0 + 100 * i) for i in range(3)]
    table = spectra.comparison_table([outcome(*row) for row in rows], "up")
    assert table["mean_ks"].tolist() == [0.25, 0.5, 0.625, 0.75]
    assert table["perplexity_rise"].tolist() == [2, 100, 200, 300]
    figure = spectra.plot_comparison(table, "up", "leverage(ratio=0.25)")
    one, many, ring = figure.data
    assert (one.x[0], one.y[0]) == (0.25, 2) and one.error_y.array is None
    assert (many.x[0], many.y[0]) == (0.625, 200)
    assert (many.error_y.array[0], many.error_y.arrayminus[0]) == (100, 100)
    assert (many.error_x.array[0], many.error_x.arrayminus[0]) == (0.125, 0.125)
    assert (one.marker.color, one.marker.symbol) == (method_colour("leverage"), method_symbol("leverage"))
    assert (ring.name, list(ring.x), list(ring.y)) == ("chosen", [0.25], [2])
    assert figure.layout.yaxis.type == "log"
    assert [note.text for note in figure.layout.annotations] == ["leverage", "random_neurons (3 seeds)"]
    free = spectra.comparison_table([outcome("leverage(ratio=0.25)", 0.25, 9.0), outcome(*rows[1])], "up")
    assert spectra.plot_comparison(free, "up").layout.yaxis.type == "linear"  # a logarithm has no place for a fall


def test_every_weights_method_has_a_look_of_its_own():
    looks = {(method_colour(name), method_symbol(name)) for name in methods.names("weights")}
    assert len(looks) == len(methods.names("weights"))


@pytest.mark.parametrize("theme", ["light", "dark", "paper"])
def test_every_figure_can_be_drawn_in_every_theme(theme):
    study, ranked = studied(methods.get("leverage")(ratio=0.5))
    assert ranked is not None
    uncut = studies.study_uncut(tiny.model())
    neurons = spectra.neuron_table(ranked.importance[0], uncut.row_norm[0], uncut.leverage[0], study.kept[0])
    after = study.spectrum(0, "gate")
    assert after is not None
    drawn = [
        spectra.plot_spectrum(
            spectra.spectrum_table(uncut.spectrum(0, "gate"), after), study.of(0, "gate"), method="x"
        ),
        spectra.plot_distances(spectra.distance_table(study)),
        spectra.plot_neurons(neurons, first="gate"),
        spectra.plot_comparison(spectra.comparison_table([outcome("leverage(ratio=0.25)", 0.25, 12.0)], "up"), "up"),
        spectra.plot_history(pd.DataFrame({"episode": [1], "ks": [0.5], "reward": [2.0]}), method="x"),
    ]
    for figure in drawn:
        assert json.loads(style(figure, theme).to_json())["data"]


def test_the_bundled_study_is_of_the_embedded_model_and_small():
    uncut = studies.bundled_uncut("smollm2-135m", "float32")
    assert isinstance(uncut, Uncut)
    assert studies.bundled_uncut("smollm2-136m", "float32") is None
    files = list(studies.SHIPPED_SPECTRA.rglob("*.npz"))
    assert sum(path.stat().st_size for path in files) < 3 * 2**20


def test_singular_values_that_rose_are_counted() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(24, 16))
    before = np.linalg.svd(weight, compute_uv=False)
    assert spectra.risen(before, np.linalg.svd(weight[:18], compute_uv=False)) == 0
    assert spectra.risen(before, before) == 0
    changed = before[:12].copy()
    changed[:3] *= 1.5
    assert spectra.risen(before, rng.permutation(changed)) == 3 / 12
