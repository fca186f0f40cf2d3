"""The Spectra page: what it opens with, that figures follow what is chosen, links, and models pruned for other pages."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest
from transformers import AutoModelForCausalLM

from sparsity_core import methods, studies
from sparsity_core.kinds.pipeline import Pipeline
from sparsity_core.kinds.weights import WeightMethod
from sparsity_core.models.loading import load
from sparsity_core.models.model import Model
from tests import tiny
from tests.app.test_app import figures, open_page, said, unfold
from tests.pages.test_pages import decoded, opened
from tests.server import cache_with_models
from ui.session import EXAMPLE
from ui.spectra import example_method
from viz import spectra


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))


def spectra_page(tmp_path: Path, **link: str) -> AppTest:
    at = opened(tmp_path, **link)
    for name, value in link.items():
        at.query_params[name] = value
    open_page(at, "spectra")
    assert not at.exception
    return at


def bundled() -> studies.Uncut:
    found = studies.bundled_uncut(EXAMPLE.model, EXAMPLE.dtype)
    assert found is not None, "no study is bundled: run `make assets`"
    return found


def study(method: WeightMethod) -> studies.WeightStudy:
    uncut = bundled()
    found = studies.find_study(uncut.fingerprint, uncut.dtype, method)
    assert found is not None
    return found


def data(at: AppTest, name: str) -> list[dict[str, Any]]:
    """The traces of the figure that has one of this name."""
    (found,) = [f["data"] for f in figures(at) if name in [trace.get("name") for trace in f["data"]]]
    return found


def cells(at: AppTest) -> np.ndarray:
    (found,) = [t for figure in figures(at) for t in figure["data"] if t["type"] == "heatmap"]
    return decoded(found["z"])


def test_the_page_opens_on_the_bundled_study(tmp_path: Path) -> None:
    at, method = spectra_page(tmp_path), example_method()
    found = study(method)
    assert at.selectbox(key="S_method").value == method.name
    before, after, bracket = data(at, "D")
    layer, matrix = at.number_input(key="S_layer").value, at.session_state["S_matrix"]
    np.testing.assert_allclose(np.sort(decoded(after["x"])), np.sort(found.spectrum(layer, matrix)), rtol=1e-5)
    np.testing.assert_allclose(np.sort(decoded(before["x"])), np.sort(bundled().spectrum(layer, matrix)), rtol=1e-5)
    gap = decoded(bracket["y"])
    assert abs(gap[1] - gap[0]) == pytest.approx(found.of(layer, matrix)["ks"])
    np.testing.assert_allclose(cells(at), found.measure("ks").T, rtol=1e-5)
    assert data(at, "kept (1,152)")
    assert f"{found.of(layer, matrix)['ks']:.4f}" in " ".join(text.value for text in at.markdown)


def test_the_figures_follow_layer_matrix_measure_and_axes(tmp_path: Path) -> None:
    at, found = spectra_page(tmp_path), study(example_method())
    at.number_input(key="S_layer").set_value(3).run()
    at.session_state["S_matrix"] = "down"
    at.run()
    _, after, _ = data(at, "D")
    np.testing.assert_allclose(np.sort(decoded(after["x"])), np.sort(found.spectrum(3, "down")), rtol=1e-5)
    at.session_state["spectra_distance"] = "energy_lost"
    at.session_state["spectra_view"] = "log"
    at.run()
    np.testing.assert_allclose(cells(at), found.measure("energy_lost").T, rtol=1e-5)
    assert any(figure["layout"]["yaxis"].get("type") == "log" for figure in figures(at)[:1])
    assert {name: at.query_params[name] for name in ("layer", "matrix", "weights")} == {
        "layer": "3", "matrix": "down", "weights": str(example_method())
    }  # fmt: skip


@pytest.mark.parametrize(
    ("link", "chosen"),
    [
        ({"weights": "row_norm(ratio=0.25)", "layer": "4", "matrix": "up"}, ("row_norm", 0.25, 4, "up")),
        ({"weights": "row_norm(ratio=0.33)", "layer": "999", "matrix": "sideways"}, ("row_norm", 0.33, 29, "gate")),
        ({"weights": "leverage", "layer": "²", "matrix": ""}, ("leverage", 0.25, 15, "gate")),
    ],
    ids=["inside", "outside", "unreadable"],
)
def test_a_link_opens_its_view_inside_the_model(
    tmp_path: Path, link: dict[str, str], chosen: tuple[str, float, int, str]
) -> None:
    at = spectra_page(tmp_path, **link)
    state = tuple(at.session_state[key] for key in ("S_method", "S_ratio", "S_layer", "S_matrix"))
    assert state == chosen
    assert not at.warning


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("row_nrom(ratio=0.25)", "did you mean 'row\\_norm'"),
        ("row_norm(ratio=2)", "ratio is at most 0.999; got 2"),
        ("a2sf(budget=64)", "is no method of the weights stage: write eviction=a2sf"),
        ("[press](http://elsewhere.example)", "\\[press\\]"),
        ("(" * 400, "annot read"),
    ],
    ids=lambda value: value[:24],
)
def test_a_link_that_names_no_weights_method_shows_the_example(tmp_path: Path, weights: str, sentence: str) -> None:
    at = spectra_page(tmp_path, weights=weights)
    assert sentence.lower() in said(at).lower()
    assert len(at.warning) == 1
    assert at.session_state["S_method"] == example_method().name


def test_knobs_that_do_not_fit_are_a_sentence(tmp_path: Path) -> None:
    at = spectra_page(tmp_path, weights="row_norm(ratio=0.25)")
    at.number_input(key="S_row_norm_multiple").set_value(0).run()
    assert not at.exception
    (warning,) = [w.value for w in at.warning]
    assert "multiple is at least 1; got 0" in warning
    at.number_input(key="S_row_norm_multiple").set_value(8).run()
    assert not at.warning
    assert at.query_params["weights"] == "row_norm(ratio=0.25, multiple=8)"


def test_choices_outlive_a_visit_to_another_page_and_the_layer_goes_along(tmp_path: Path) -> None:
    at = spectra_page(tmp_path)
    at.selectbox(key="S_method").set_value("row_norm").run()
    at.number_input(key="S_layer").set_value(7).run()
    open_page(at, "")
    assert at.number_input(key="layer").value == 7
    at.slider(key="step").set_value(99).run()
    at.number_input(key="layer").set_value(9).run()
    open_page(at, "spectra")
    assert (at.session_state["S_method"], at.session_state["S_layer"]) == ("row_norm", 9)
    open_page(at, "")
    assert (at.session_state["step"], at.session_state["layer"]) == (99, 9)


def finish(at: AppTest, most: float = 400) -> None:
    deadline = time.monotonic() + most
    while pending := at.session_state.get("pending"):
        assert time.monotonic() < deadline, f"not finished: {pending}"
        time.sleep(0.3)
        at.run()
    assert not at.exception


@pytest.mark.slow
def test_the_slider_answers_from_the_model_itself(tmp_path: Path, smollm: Model) -> None:
    method = studies.at_ratio(example_method(), 0.4)
    at = spectra_page(tmp_path)
    at.select_slider(key="S_ratio").set_value(0.4).run()
    finish(at)
    layer, matrix = at.session_state["S_layer"], at.session_state["S_matrix"]
    (expected,) = [i for i in smollm.compress(method).spectra if (i.layer, i.matrix) == (layer, matrix)]
    _, after, bracket = data(at, "D")
    np.testing.assert_allclose(np.sort(decoded(after["x"])), np.sort(expected.after), rtol=1e-4)
    gap = decoded(bracket["y"])
    assert abs(gap[1] - gap[0]) == pytest.approx(expected.ks, abs=1e-3)


# --- a pruned model on every other page ---


def wanted(at: AppTest) -> list[str]:
    at.button(key="run").click().run()
    return [spec.pipeline for spec in at.session_state["wanted"]]


def test_the_run_bar_puts_a_weights_method_before_the_others(tmp_path: Path) -> None:
    at = opened(tmp_path)
    unfold(at, "A_weights_fold")
    at.selectbox(key="A_weights").set_value("row_norm").run()
    at.number_input(key="A_row_norm_ratio").set_value(0.1).run()
    assert not at.exception
    (pipeline,) = wanted(at)
    parsed = Pipeline.parse(pipeline)
    assert str(parsed.weights) == "row_norm(ratio=0.1)"
    assert parsed.eviction == Pipeline.parse(EXAMPLE.pipeline).eviction


def test_what_the_page_looks_at_can_become_the_model_of_every_page(tmp_path: Path) -> None:
    at = spectra_page(tmp_path, weights="row_norm(ratio=0.25, multiple=8)")
    at.button(key="use_weights").click().run()
    assert ["is set for every run" in told.value for told in at.success] == [True]
    open_page(at, "")
    assert at.selectbox(key="A_weights").value == "row_norm"
    (pipeline,) = wanted(at)
    assert str(Pipeline.parse(pipeline).weights) == "row_norm(ratio=0.25, multiple=8)"


def test_a_ratio_beside_the_range_is_a_sentence_in_the_run_bar(tmp_path: Path) -> None:
    at = opened(tmp_path)
    unfold(at, "A_weights_fold")
    at.selectbox(key="A_weights").set_value("row_norm").run()
    at.number_input(key="A_row_norm_ratio").set_value(1.5).run()
    assert not at.exception
    (warning,) = [w.value for w in at.warning]
    assert "ratio is at most 0.999; got 1.5" in warning
    assert at.button(key="run").disabled


def test_a_folder_that_holds_something_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    at = spectra_page(tmp_path)
    at.text_input(key="spectra_folder").set_value(str(tmp_path / "full")).run()
    at.button(key="write_checkpoint").click().run()
    finish(at)
    assert "exists already" in said(at)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_the_names_of_distances_are_measures() -> None:
    assert set(spectra.DISTANCES) <= set(studies.MEASURES)


# --- a model of one's own, from nothing to a checkpoint ---


@pytest.fixture(scope="module")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("own") / "tiny <b>llama</b>", "llama")


def saved(folder: Path, family: str) -> str:
    tiny.transformer(family, torch.float32).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_model_of_ones_own_is_measured_cut_compared_and_written(tmp_path: Path, own_model: str) -> None:
    at = spectra_page(tmp_path, model=own_model, prompt="needle", weights="row_norm(ratio=0.5)")
    assert not figures(at)
    at.button(key="measure").click().run()
    finish(at)
    assert not figures(at)
    at.button(key="compute_study").click().run()
    finish(at)
    method = methods.get("row_norm")(ratio=0.5)
    compressed = load(own_model, device="cpu", dtype="float32").compress(method)
    np.testing.assert_allclose(
        cells(at),
        np.asarray([[s.ks for s in compressed.spectra if s.matrix == m] for m in ("gate", "up", "down")]),
        rtol=1e-5,
    )
    at.select_slider(key="S_ratio").set_value(0.3).run()
    finish(at)
    other = load(own_model, device="cpu", dtype="float32").compress(methods.get("row_norm")(ratio=0.3))
    (expected,) = [s for s in other.spectra if (s.layer, s.matrix) == (at.session_state["S_layer"], "gate")]
    bracket = decoded(data(at, "D")[2]["y"])
    assert abs(bracket[1] - bracket[0]) == pytest.approx(expected.ks)
    assert at.button(key="compute_study")  # the other layers at this ratio

    folder = tmp_path / "pruned.zip"  # a folder, whatever its name
    folder.mkdir(mode=0o700)
    at.text_input(key="spectra_folder").set_value(str(folder)).run()
    at.button(key="write_checkpoint").click().run()
    finish(at)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [shown.value.replace("\\", "") for shown in at.success] == [f"Written to {folder}."]
    written = AutoModelForCausalLM.from_pretrained(folder)
    assert written.config.intermediate_size == len(other.kept[0])
    assert not [b for b in at.button if b.key == "compute_study"], (
        "the report card lists every layer, and so does the map"
    )
    np.testing.assert_allclose(cells(at)[0], [s.ks for s in other.spectra if s.matrix == "gate"], rtol=1e-5)
    shown = " ".join(text.value for text in at.markdown)
    assert "perplexity after" in shown and "<b>" not in shown.replace("\\<b\\>", "")
    earlier = tmp_path / "checkpoints" / "another.zip"
    earlier.parent.mkdir()
    earlier.write_bytes(b"of another visitor")
    at.button(key="zip_checkpoint").click().run()
    finish(at)
    assert sorted(earlier.parent.iterdir())[0] == earlier  # it stays, and nothing else is left beside the new one
    (packed,) = set(earlier.parent.iterdir()) - {earlier}
    with zipfile.ZipFile(packed) as archive:
        assert {"config.json", "model.safetensors", "report.json"} <= {Path(name).name for name in archive.namelist()}
    assert at.get("download_button")
    packed.unlink()  # as results used longest ago are, to make room
    at.run()
    assert "The zip made room for newer results: make it again." in [shown.value for shown in at.info]


def test_a_study_that_is_kept_without_spectra_gives_way_to_the_computed_one(tmp_path: Path) -> None:
    folder = saved(tmp_path / "qwen", "qwen2")  # that no other test has measured in this process
    model, method = load(folder, device="cpu", dtype="float32"), methods.get("svd_truncation")(ratio=0.25)
    light = studies.study(model, method)[0].light()
    assert studies.keep_record(light, model.fingerprint, model.dtype_name) is None
    at = spectra_page(tmp_path, model=folder, prompt="needle", weights=str(method))
    at.button(key="measure").click().run()
    finish(at)
    assert "D" not in [trace.get("name") for figure in figures(at) for trace in figure["data"]]
    assert "has not been computed here" not in said(at) and "The distances below are known" in said(at)
    at.button(key="compute_study").click().run()
    finish(at)
    layer, matrix = at.session_state["S_layer"], at.session_state["S_matrix"]
    computed = studies.find_study(model.fingerprint, model.dtype_name, method)
    assert computed is not None
    np.testing.assert_allclose(
        np.sort(decoded(data(at, "D")[1]["x"])), np.sort(computed.spectrum(layer, matrix)), rtol=1e-5
    )
