"""Sentences with numbers in them: each number is measured, or the sentence says that it was not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from sparsity_core import methods, studies
from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS, Channels
from sparsity_core.models import calibration_digest
from sparsity_core.record import Store
from tests import tiny, traces
from ui.bundle import BESIDE, DENSE
from ui.channels import other_calibrations, tell_fetched
from ui.figure import generated_tokens
from ui.session import EXAMPLE, Shown
from ui.summary import figures_table, tell_bytes
from ui.tokens import tell_mass


def test_the_mass_that_was_read_is_measured_or_said_not_to_be() -> None:
    mass = np.full((2, 4, 8), np.nan, np.float32)
    read = {"selected": np.ones((2, 2, 8), np.float32), "selected_recall": np.full((2, 2, 8), np.nan, np.float32)}
    unknown = traces.trace(**read, selected_mass=mass)
    assert "was not measured here" in tell_mass(unknown) and "%" not in tell_mass(unknown)
    known = traces.trace(**read, selected_mass=np.where(np.arange(8) > 5, 0.25, mass))
    assert tell_mass(known) == "In the layers that choose, what was read held 25% of the exact attention."


def test_bytes_are_told_in_three_digits_or_four_of_the_largest_unit() -> None:
    told = {0: "0.0 KiB", 512: "0.5 KiB", 2**20 - 1: "1024 KiB", 2936012: "2.8 MiB", 10 * 2**20 - 1: "10 MiB"}
    told |= {358718669: "342 MiB", 1023 * 2**20: "1023 MiB", 3 * 2**29: "1.5 GiB", 2**41: "2048 GiB"}
    assert {n: tell_bytes(n) for n in told} == told


def test_of_nothing_fetched_no_share_came_late() -> None:
    assert tell_fetched(traces.trace()) == "Nothing was fetched from the host's memory."
    hits = np.asarray([np.nan, 0.75], np.float32)
    told = tell_fetched(traces.trace(prefetch_hits=hits, bytes_ahead=3 * 2**20, bytes_late=2**20))
    assert told.startswith("4.0 MiB were fetched") and "25% of it only when" in told


def test_a_calibration_that_is_not_the_runs_own_is_told() -> None:
    named = Shown("B", traces.spec("decode=double_sparsity(calibration='/a/b')"), traces.trace())
    shown = [Shown("A", traces.spec("decode=double_sparsity(channels=4)"), traces.trace()), named]
    recipe = {"text": calibration_digest(), "fingerprint": "f"}
    own = Channels({name: np.ones((1, 2, 4), np.float32) for name in STATISTICS}, 1, recipe)
    assert other_calibrations(shown[:1], own) == []
    (told,) = other_calibrations(shown, own)
    assert told.startswith("B chose its channels by the calibration `/a/b`.")
    (told,) = other_calibrations(shown[:1], replace(own, recipe={**recipe, "text": "another"}))
    assert "on another text" in told


def test_a_run_of_so_many_new_tokens_says_so_many() -> None:
    trace = Store().get(EXAMPLE)
    assert trace is not None and generated_tokens(EXAMPLE, trace) == EXAMPLE.generate == 24
    assert generated_tokens(traces.spec(), traces.trace(n_prompt=8)) == 0


def test_no_part_of_a_job_says_that_all_of_it_is_done() -> None:
    told: list[tuple[float, str]] = []
    for name in ("row_norm", "svd_truncation", "head_pruning", "slicegpt"):
        studies.study(
            tiny.model(), methods.get(name)(ratio=0.25), progress=lambda share, doing: told.append((share, doing))
        )
    assert len(told) > 20
    assert not [doing for share, doing in told if doing == "done"]


def channels_of_a_thinned_run() -> None:
    from sparsity_core import run
    from tests import tiny, traces
    from ui.channels import while_running
    from ui.session import Shown

    pipeline = "decode=think(sparsity=0.5, recent=4)"
    while_running(Shown("A", traces.spec(pipeline), run(tiny.model(), tiny.ids(40), pipeline)))


def test_the_channels_page_tells_what_left_the_keys() -> None:
    at = AppTest.from_function(channels_of_a_thinned_run, default_timeout=60).run()
    assert not at.exception
    assert at.subheader[0].value == "A: channels that left the keys for good"
    assert at.markdown[0].value.startswith(
        "16 keys of each head, on average, are held in 8 of 16 channels; the cache takes 9"
    )


def test_two_runs_stand_in_one_table_with_the_dense_model_and_their_difference() -> None:
    stored = [Store().get(spec) for spec in (EXAMPLE, BESIDE, DENSE)]
    example, beside, whole = (trace for trace in stored if trace is not None)
    shown = [Shown("A", EXAMPLE, example), Shown("B", BESIDE, beside)]
    table = figures_table(shown)
    assert table["pipeline"].tolist() == ["dense", "a2sf(budget=64)", "streaming_llm(budget=64)", "B − A"]
    dense, a, b, more = (row for _, row in table.iterrows())
    assert dense["KV cache"] == example.kv_bytes_dense and dense["keys kept"] == 1 and dense["regret"] == 0
    assert a["perplexity"] - dense["perplexity"] == pytest.approx(a["to dense"])
    for name in ("perplexity", "KV cache", "regret", "same top token"):
        assert more[name] == pytest.approx(b[name] - a[name])
    assert figures_table([*shown, Shown("C", DENSE, whole)])["pipeline"].tolist()[0] == "a2sf(budget=64)"
