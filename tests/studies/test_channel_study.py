"""What the Channels page shows: masses and recalls against a loop by hand, its tables, its figures, and the page itself."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from sparsity_core import Pipeline, generate, load, methods, run
from sparsity_core.methods.decode.double_sparsity.calibration import calibrate
from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS, Channels, find_channels, keep_channels
from sparsity_core.models.loading import EMBEDDED
from sparsity_core.models.prompts import PROMPTS
from sparsity_core.record.store import Store
from sparsity_core.studies.channel_records import SHARES
from sparsity_core.studies.channels import read_at, study_channels
from tests import tiny, traces
from tests.app.test_app import figures, finish, open_page
from tests.pages.test_pages import PAIR, opened
from tests.server import cache_with_models
from tests.tiny import ids
from ui.channels import Choice, answer_specs, curve_specs
from ui.session import EXAMPLE, Shown
from viz import channels as viz

IDS = ids(80)
TEXT = "The tide comes in at four. " * 40


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(tmp_path))
    made = tiny.model()
    assert keep_channels(calibrate(made, TEXT, blocks=2, length=64)) is not None
    return made


def test_all_channels_of_one_query_head_are_the_exact_choice(tmp_path):
    """With a KV head per query head and every channel, ranking by labels is ranking by logits; fp16 may swap near ties."""
    model = tiny.model("gpt2")
    calibrate(model, TEXT, blocks=2, length=64).save(tmp_path / "channels.safetensors")
    found = study_channels(model, IDS, calibration=str(tmp_path / "channels.safetensors"))
    whole = list(found.channels).index(model.arch.head_dim)
    assert found.recall[:, :, :, whole].min() > 0.95
    assert (found.recall[..., 0] == 1).all() and np.allclose(found.mass[..., 0], 1, atol=1e-5)  # a share of 1 reads all


def test_mass_and_recall_are_what_a_loop_over_queries_finds(model):
    layer, r, share = 1, 4, 0.25
    study = study_channels(model, IDS)
    read = read_at(model, IDS, layer, channels=r, statistic="k")
    mass, recall = np.zeros(model.arch.n_kv_heads), np.zeros(model.arch.n_kv_heads)
    for head in range(model.arch.n_kv_heads):
        for i, query in enumerate(read.queries):
            n_read = int(np.ceil(share * (query + 1)))
            exact = read.exact[head, i, : query + 1]
            assert exact.sum() == pytest.approx(1, abs=1e-5)
            chosen = set(np.argsort(read.rank[head, i, : query + 1])[:n_read])
            ideal = set(np.argsort(-exact, kind="stable")[:n_read])
            mass[head] += exact[list(chosen)].sum() / len(read.queries)
            recall[head] += len(chosen & ideal) / n_read / len(read.queries)
    at = (STATISTICS.index("k"), layer, slice(None), study.channels.index(r), SHARES.index(share))
    np.testing.assert_allclose(study.mass[at], mass, atol=1e-5)
    np.testing.assert_allclose(study.recall[at], recall, atol=1e-5)


def test_the_study_agrees_with_what_a_run_selects(model):
    """The run's own record of a layer, at the queries that the study sampled."""
    read = read_at(model, IDS, 0, channels=8)
    trace = run(model, IDS, Pipeline(decode=methods.DoubleSparsity(tokens=0.25, channels=8, dense_layers=0)))
    for i, query in enumerate(read.queries):
        n_read = int(np.ceil(0.25 * (query + 1)))
        chosen = read.rank[:, i] < n_read
        np.testing.assert_allclose(
            (read.exact[:, i] * chosen).sum(-1),
            trace.selected_mass[0, :, query].reshape(model.arch.n_kv_heads, -1).mean(1),
            atol=1e-5,
        )


def test_a_text_too_short_to_choose_from_is_refused(model):
    with pytest.raises(ValueError, match="at least 8"):
        study_channels(model, IDS[:7])


def test_a_calibration_of_other_weights_is_not_found(model, tmp_path):
    assert find_channels("0" * 12) is None
    found = find_channels(model.fingerprint)
    assert found is not None and found.recipe["fingerprint"] == model.fingerprint
    path = tmp_path / "channels" / f"{model.fingerprint}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # damaged: as if it were not there
    assert find_channels(model.fingerprint) is None


def _channels() -> Channels:
    values = np.arange(2 * 4 * 6, dtype=np.float32).reshape(2, 4, 6)
    others = values[..., ::-1].copy()
    return Channels({"qk": values, "q": others, "k": values, "variance": values}, 2, {})


def test_outliers_are_the_largest_of_each_row():
    table = viz.magnitude_table(_channels(), "qk", head=1)
    marked = table[table["place"] < 2]
    assert marked.groupby("layer")["channel"].apply(set).tolist() == [{4, 5}, {4, 5}]
    assert table.query("layer == 1 and channel == 0")["magnitude"].item() == (36 + 42) / 2  # query heads 2 and 3
    figure = viz.plot_magnitudes(table, 2, "qk", selected=1)
    assert len(figure.data[1].x) == 4
    own = viz.magnitude_table(_channels(), "qk", layer=0)
    assert own["head"].unique().tolist() == [0, 1]


def test_overlap_counts_shared_channels():
    table = viz.overlap_table(_channels(), 2).set_index(["statistic", "beside"])["overlap"]
    assert table["qk", "k"] == 1 and table["qk", "q"] == 0 and table["q", "q"] == 1


def test_a_decode_step_tells_right_from_wrong(model):
    read = read_at(model, IDS, 1, channels=4)
    dropped = np.arange(80) < 3
    table = viz.read_table(read, [f"t{i}" for i in range(80)], 1, 79, 0.25, dropped)
    assert len(table) == 80 and table["read"].sum() == table["ideal"].sum() == 20
    right = table["fate"] == "read, rightly"
    assert (right == (table["read"] & table["ideal"])).all()
    assert table["dropped"].sum() == 3
    assert sum(len(data.x) for data in viz.plot_read(table).data) == 83


def test_the_curve_is_relative_to_the_dense_model(model):
    pipelines = {s: Pipeline(decode=methods.DoubleSparsity(tokens=s, channels=8)) for s in (1.0, 0.25)}
    points = {("double_sparsity qk", s): viz.curve_point(run(model, IDS, p)) for s, p in pipelines.items()}
    table = viz.curve_table(points).set_index("share")
    assert table.loc[1.0, "relative"] == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(viz.plot_curve(table.reset_index()).data[0].y, table["relative"].sort_index())
    assert table.loc[1.0, "mass"] == pytest.approx(1, abs=1e-6) and 0 < table.loc[0.25, "mass"] < 1


def test_how_often_a_token_was_read_is_a_share_of_those_who_could(model):
    trace = run(model, IDS, Pipeline(decode=methods.DoubleSparsity(tokens=0.25, channels=8, dense_layers=1)))
    table = viz.selected_table(trace, 0, (0, 80)).set_index(["layer", "position"])
    assert table["share"].between(0, 1 + 1e-6).all()
    assert table.loc[(1, 79), "share"] == trace.selected[1, 0, 79]  # its own query alone could
    assert (table.loc[0, "share"] == 1).all()  # a dense layer reads everything
    assert table.loc[(1, 0), "reads"] == trace.selected[1, 0, 0]


def test_the_page_opens_on_the_shipped_calibration_and_measures_the_text(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))
    at = opened(tmp_path, **PAIR)
    open_page(at, "channels")
    assert not at.exception
    assert [b.label for b in at.button if b.key == "calibrate"] == []  # the embedded model's calibration ships
    assert len(figures(at)) == 3
    next(b for b in at.button if b.key == "study_channels").click().run()
    finish(at, purpose="channels")
    next(b for b in at.button if b.key == "look_at_layer").click().run()
    finish(at, purpose="reads")
    assert not at.exception
    assert len(figures(at)) == 7
    read = [int(n) for caption in at.caption for n in re.findall(r"of (\d+) keys are read", caption.value)]
    assert len(read) == 2 and read[0] == read[1] <= 273, read  # A and B


def test_a_link_with_a_decode_method_fills_the_run_bar(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))
    at = opened(tmp_path, pipeline="decode=double_sparsity(tokens=0.125, channels=16)", prompt="needle")
    assert at.selectbox(key="A_decode").value == "double_sparsity"
    assert at.number_input(key="A_double_sparsity_tokens").value == 0.125
    finish(at)  # a link to what was never computed here computes it
    assert at.session_state["specs"][0].pipeline == "decode=double_sparsity(tokens=0.125, channels=16)"
    assert not at.exception
    assert any("how often each token was read" in h.value for h in at.subheader)


@pytest.mark.parametrize(
    ("link", "looked_at"),
    [
        ({"statistic": "k", "r": "8", "share": "0.125"}, ["k", 8, 0.125]),
        ({"statistic": "<b>", "r": "128", "share": "much"}, ["qk", 32, 0.25]),  # r: of a model with larger heads
    ],
)
def test_the_link_holds_what_the_page_looks_at_and_nonsense_in_it_is_left_out(tmp_path, monkeypatch, link, looked_at):
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))
    at = opened(tmp_path, **link)
    for name, value in link.items():
        at.query_params[name] = value
    open_page(at, "channels")
    assert not at.exception
    assert [at.session_state[f"channels_{name}"] for name in link] == looked_at
    spelled = {name: str(value) for name, value in zip(link, looked_at, strict=True)}
    assert {name: at.query_params[name] for name in link} in (spelled, {n: [v] for n, v in spelled.items()})


def test_curve_and_answers_keep_the_weights_that_were_pruned():
    spec = replace(EXAMPLE, pipeline="weights=row_norm(ratio=0.25) eviction=a2sf(budget=64)")
    trace = Store().get(EXAMPLE)
    assert trace is not None
    item, choice = Shown("A", spec, trace), Choice("qk", 32, 0.25)
    for made in (*curve_specs(item, choice).values(), *answer_specs(item, choice).values()):
        assert made.pipeline.startswith("weights=row_norm(ratio=0.25)")


def test_drift_and_what_was_ready_are_drawn_as_the_trace_has_them():
    trace = traces.trace(
        drift_steps=np.asarray([8, 16], np.int32),
        drift=np.asarray([[np.nan, np.nan], [0.75, 0.5]], np.float32),
        prefetch_hits=np.asarray([np.nan, 0.8], np.float32),
        bytes_ahead=0,
        bytes_late=0,
    )
    table = viz.drift_table(trace)
    assert table.to_dict("list") == {"layer": [1, 1], "read": [8, 16], "stayed": [0.75, 0.5]}
    assert viz.plot_drift(table).data[0].z.tolist() == [[0.75, 0.5]]
    ready = viz.prefetch_table(trace, [0.5, 0.25].__getitem__)
    assert ready["layer"].tolist() == [1] and ready["ready"].tolist() == [pytest.approx(0.8)]
    bars, chance = viz.plot_prefetch(ready).data
    assert list(bars.y) == [pytest.approx(0.8)] and list(chance.y) == [0.25]


def test_the_page_shows_what_an_offloaded_generation_had_ready(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))
    at = opened(tmp_path, pipeline="decode=double_sparsity(tokens=0.25, offload=True)", prompt="needle", generate="6")
    finish(at)
    open_page(at, "channels")
    assert not at.exception
    assert any("what was ready when a layer asked for it" in h.value for h in at.subheader)
    trace = Store().get(at.session_state["specs"][0])
    assert np.nanmin(trace.prefetch_hits) > 0.4  # a quarter by chance


def test_an_eighth_of_the_context_finds_the_needle_where_eviction_of_as_much_does_not():
    model, prompt = load(EMBEDDED), PROMPTS["needle"].text
    budget = len(model.encode(prompt)) // 8
    read, *kept = (
        generate(model, prompt, Pipeline.parse(spelled), max_new_tokens=8, against_dense=False).text
        for spelled in (
            "decode=double_sparsity(tokens=0.125)",
            f"eviction=h2o(budget={budget})",
            f"eviction=streaming_llm(budget={budget})",
        )
    )
    assert "7421" in read
    assert not any("7421" in text for text in kept)


def test_torch_is_not_needed_to_read_a_calibration():
    code = (
        "import sys\nfrom sparsity_core.methods.decode.double_sparsity import channels\n"
        "from viz.channels import plot_curve, plot_read, plot_selected\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
