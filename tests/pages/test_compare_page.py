"""The Compare page: what it draws of many runs, what it says of their differences, and how soon it answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from sparsity_core.evaluate import Needle, NeedleFound, profile_of
from sparsity_core.record import RunSpec, Store, key_of
from tests.app.test_app import figures, open_page, said, titles
from tests.pages.test_pages import example, open_exports, opened
from tests.server import cache_with_models
from ui.address import read_address, write_address
from ui.bundle import BESIDE
from ui.compare import needles as ui_needles
from ui.compare import texts, written
from ui.session import EXAMPLE, Shown
from ui.tasks.compare import Measured, needle_run
from viz import compare as viz

METHODS = ["a2sf(budget=64)", "h2o(budget=64)", "tova(budget=64)", "random(budget=64)", "streaming_llm(budget=64)"]
SPECS = [replace(EXAMPLE, pipeline=f"eviction={method}") for method in METHODS]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSELENS_CACHE", str(cache_with_models(tmp_path)))
    ui_needles._known().clear()
    texts._known().clear()
    # The first is the bundled example; the others are it under other names, and the last the bundled run beside it.
    for at, spec in enumerate(SPECS[1:4], 1):
        made = replace(example().provenance, pipeline=spec.pipeline)
        kl = example().kl_to_dense * (1 + at)
        assert Store().put(spec, example().replaced(provenance=made, kl_to_dense=kl)) is None


def compared(tmp_path: Path, specs: list[RunSpec]) -> AppTest:
    link = {f"beside{at if at > 1 else ''}": spec.pipeline for at, spec in enumerate(specs[1:], 1)}
    at = opened(tmp_path, prompt="needle", pipeline=specs[0].pipeline, generate=str(EXAMPLE.generate), **link)
    open_page(at, "compare")
    assert not at.exception
    return at


def measured(loss: float, *, kl: float = 0.5) -> Measured:
    """A text of the bundled example's shape, under another loss and KL."""
    row = {**viz.text_row(example()), "kl": kl}
    return Measured(loss, row, profile_of(example()))


def test_many_pipelines_are_compared_and_a_choice_is_answered(tmp_path: Path) -> None:
    at = compared(tmp_path, SPECS)
    assert {"Quality against realised bytes", "What each wrote, against A", "Who decides like whom"} <= set(titles(at))
    assert "D: the floor" in said(at) and "The question is known" in said(at)
    tradeoff = figures(at)[0]
    assert [mark["name"].partition(":")[0] for mark in tradeoff["data"]] == ["best at its bytes", "dense", *"ABCDE"]
    at.number_input(key="layer").set_value(4).run()
    assert not at.exception and any(title.endswith("layer 4") for title in titles(at))


def test_who_loses_the_needle_is_drawn_and_a_line_that_names_nothing_is_a_sentence(tmp_path: Path) -> None:
    at = compared(tmp_path, SPECS[:2])
    assert any(title.startswith("Who loses what") for title in titles(at))
    drawn = figures(at)[-1]
    assert [row.partition(" (")[0] for row in drawn["data"][0]["y"]] == ["question", "numbers", "needle", "other"]
    area = next(each for each in at.text_area if (each.key or "").startswith("compare_spans_"))
    assert "7421" in area.value
    area.set_value("needle: no such words").run()
    assert not at.exception and any("The text has no 'no such words'" in e.value for e in at.error)


def test_a_run_without_a_named_span_is_left_out_by_name(tmp_path: Path) -> None:
    """What only one of them wrote: the others are drawn, and the sentence names the one that lacks it."""
    at = compared(tmp_path, [EXAMPLE, BESIDE])
    beside = Store().get(BESIDE)
    assert beside is not None
    own, other = ("".join(trace.texts[trace.n_prompt :]) for trace in (example(), beside))
    words = next(line.strip() for line in own.split("\n") if line.strip() not in EXAMPLE.prompt + other)
    area = next(each for each in at.text_area if (each.key or "").startswith("compare_spans_"))
    area.set_value(f"written: {words}").run()
    assert not at.exception and not at.error
    assert any(each.value.startswith("B: ") and "is left out: the text has no" in each.value for each in at.info)
    assert [row.partition(" (")[0] for row in figures(at)[-1]["data"][0]["y"]][-2:] == ["written", "other"]


def test_how_far_each_text_went_and_whether_the_question_is_known_are_told(tmp_path: Path) -> None:
    spec = replace(EXAMPLE, question="unknown")
    made = replace(example().provenance, question="unknown")
    assert Store().put(spec, example().replaced(provenance=made)) is None
    at = opened(tmp_path, prompt="needle", pipeline=spec.pipeline, generate=str(spec.generate), question="unknown")
    open_page(at, "compare")
    assert not at.exception and at.session_state["specs"] == [spec]
    assert "“Question: what is the code of the blue door?” from token 230 on, is not known" in said(at)
    assert "question unknown" in said(at)
    at = compared(tmp_path, [EXAMPLE, BESIDE])
    table = next(each.value for each in at.dataframe if "tokens written" in each.value)
    assert table["tokens written"].tolist() == [
        len(t.token_ids) - t.n_prompt + 1 for t in (example(), Store().get(BESIDE)) if t is not None
    ]


def test_a_link_says_whether_the_question_is_known() -> None:
    spec = replace(EXAMPLE, question="unknown")
    assert read_address(write_address([spec], {})).specs == (spec,)
    assert "question" not in write_address([EXAMPLE], {})
    with pytest.raises(ValueError, match="question is one of auto, known, unknown; got 'perhaps'"):
        read_address({"prompt": "needle", "question": "perhaps"})


def test_the_table_is_taken_away_in_three_forms(tmp_path: Path) -> None:
    at = compared(tmp_path, SPECS[:2])
    at.session_state["take_comparison"] = at.session_state["take_writing"] = True
    at.run()
    for table in ("comparison_", "writing_"):
        labels = {button.label for button in at.get("download_button") if button.key.startswith(table)}
        assert labels == {"CSV", "Markdown", "LaTeX"}
    assert {"quality", "kl", "contested", "agreement"} <= open_exports(at)


def test_another_span_measure_and_cost_are_drawn(tmp_path: Path) -> None:
    at = compared(tmp_path, SPECS[:2])
    at.session_state["compare_span"], at.session_state["compare_measure"] = "prompt", "disagrees"
    at.session_state["compare_cost"] = "held"
    at.run()
    figure = figures(at)[0]
    assert figure["layout"]["yaxis"]["title"]["text"] == "other top token than dense"
    assert figure["layout"]["xaxis"]["title"]["text"] == "KV bytes held (MiB)"


def test_each_parting_is_told_with_its_evictions(tmp_path: Path) -> None:
    beside = Store().get(BESIDE)
    assert beside is not None
    own = example()
    step = int(np.flatnonzero(own.token_ids != beside.token_ids)[0]) - 1
    attention = np.full((own.n_layers, own.n_heads, step + 1), 1 / (step + 1), np.float32)
    at = compared(tmp_path, [EXAMPLE, BESIDE])
    assert f"First other token: {step + 1}" in said(at)
    written._known()[f"attention of {step} {key_of(BESIDE)}"] = attention
    at.run()
    assert "of the dense attention of this query went to keys that were evicted" in said(at)
    at.button(key="parting_B").click().run()
    assert at.session_state["step"] == step


def test_a_difference_is_told_with_its_verdict_and_drawn_at_its_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(3, 1, texts.PASSAGES)
    known = {"A": base, "B": base + 1, "C": base + rng.normal(0, 0.1, len(base))}
    at = compared(tmp_path, SPECS[:3])
    assert [b.label for b in at.button if b.key == "run_tested"] == ["Measure"]
    for spec, (letter, losses) in zip(SPECS[:3], known.items(), strict=True):
        key = texts.key_of_texts(Shown(letter, spec, example()))
        texts._known()[key] = [measured(loss, kl=k) for k, loss in enumerate(losses)]
    at.run()
    assert not at.exception
    told = " ".join(m.value for m in at.markdown)
    assert "is **worse** than A" in told and "is **cannot" not in told
    assert "**cannot be told apart at n = 16** from A" in told
    assert not [button for button in at.button if button.key == "run_tested"]
    tradeoff = figures(at)[0]
    assert tradeoff["layout"]["yaxis"]["title"]["text"] == "mean KL to dense (nats), mean of 16 texts"
    marks = [mark for mark in tradeoff["data"] if mark["name"][0] in "ABC"]
    assert len(marks) == 3 and all(mark["y"] == [7.5] and mark["error_y"]["array"][0] > 0 for mark in marks)
    assert "bands" in open_exports(at)


def test_texts_of_ones_own_are_checked_line_by_line_and_measured_apart(tmp_path: Path) -> None:
    at = compared(tmp_path, SPECS[:2])
    at.session_state["texts_source"] = "own"
    at.run()
    assert not [b for b in at.button if b.key == "run_tested"] and "0 texts. Two are needed" in said(at)
    area = next(each for each in at.text_area if each.key == "texts_lines")
    area.set_value("One text.\n\nAnother one.").run()
    assert not at.exception and "2 texts. Two are needed" in said(at)
    assert [b.label for b in at.button if b.key == "run_tested"] == ["Measure"]
    assert at.session_state["own texts"] == ("One text.", "Another one.")
    area = next(each for each in at.text_area if each.key == "texts_lines")
    area.set_value("a\n" * 65).run()
    assert any("at most 64 texts" in e.value for e in at.error)


def test_a_needles_heatmap_is_drawn_and_its_cells_open_their_runs(tmp_path: Path) -> None:
    at = compared(tmp_path, SPECS[:2])
    assert [b.label for b in at.button if b.key == "run_haystack"] == ["Hide needles"]
    grid = ui_needles._Grid((256, 512, 1024), (0.0, 0.25, 0.5, 0.75, 1.0))
    needles = {
        (length, depth): Needle(length, depth, f"{EXAMPLE.prompt} {length} {depth}", "1234567", length, 100)
        for length in grid.lengths
        for depth in grid.depths
    }
    for place, spec in enumerate(SPECS[:2]):
        cells = [NeedleFound(n, place + n.depth, not place, " 1234567.") for n in needles.values()]
        ui_needles._known()[ui_needles._key(Shown("A", spec, example()), grid)] = cells
        assert Store().put(needle_run(spec, needles[512, 0.25]), example()) is None
    at.run()
    assert "A finds 15 of 15, B finds 0 of 15" in said(at) and not [b for b in at.button if b.key == "run_haystack"]
    drawn = next(f for f in figures(at) if "coloraxis" in f["layout"])
    assert [cells["y"] for cells in drawn["data"]] == [["0%", "25%", "50%", "75%", "100%"]] * 2
    at.session_state["haystack_wanted"] = ui_needles._place({"x": "512", "y": "25%"})
    at.run()
    assert not at.exception
    opened = at.session_state["specs"]
    assert [spec.prompt for spec in opened] == [needles[512, 0.25].prompt] * 2 and at.session_state["token"] == 100
    assert [spec.pipeline for spec in opened] == [spec.pipeline for spec in SPECS[:2]]
    assert "All pages show the runs of 512 tokens with the needle at 25%" in said(at)
    at.session_state["haystack_wanted"] = (1024, 0.25)
    at.run()
    assert any("no longer kept here" in w.value for w in at.warning)


def test_one_pipeline_is_told_how_to_become_many(tmp_path: Path) -> None:
    at = compared(tmp_path, [EXAMPLE])
    assert "One pipeline is shown. Add others in the sidebar" in said(at)
    assert len(figures(at)) == 3
