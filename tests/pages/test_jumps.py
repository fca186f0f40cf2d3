"""The step at which runs open, replay's speed, and the jumps to the chosen token's next eviction and to the next spike."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparsity_core.record import Store
from tests.pages.test_pages import PAIR, example, opened
from tests.traces import NEVER, kept_all, trace
from ui.bundle import BESIDE
from ui.view import View, next_eviction, next_spike, opening_step


def test_runs_open_where_half_of_what_they_drop_for_good_is_gone() -> None:
    assert opening_step([trace()]) == 5  # queries 4 to 7 each find four keys fewer: 8 of 16 by query 5
    assert opening_step([kept_all(), trace()]) == 5
    late = trace(evicted_at=np.where(trace().evicted_at < NEVER, 7, NEVER))  # the same 16 keys, all gone at query 7
    assert opening_step([trace(), late]) == 7  # 12 of 32 by query 6
    assert opening_step([late]) == 7


def test_runs_that_drop_nothing_open_where_they_are_farthest_from_the_dense_model() -> None:
    near, far = ({2: 0.5, 4: 0.25}, {5: 0.75})
    one, other, same = (kept_all().replaced(kl_to_dense=_kl(at)) for at in (near, far, {}))
    assert opening_step([one]) == 2 and opening_step([one, other]) == 5
    assert opening_step([same]) == opening_step([kept_all(comparison=None)]) == NEVER - 1


def _kl(at: dict[int, float]) -> np.ndarray:
    """A KL [query] that is 0 but where it is given, and unknown of the last query."""
    return np.asarray([*(at.get(query, 0.0) for query in range(NEVER - 1)), np.nan], np.float32)


def test_a_first_visit_opens_in_mid_replay_and_a_link_with_a_step_there(tmp_path: Path) -> None:
    own = example()
    gone = own.evicted_at[own.evicted_at < own.n_tokens]
    at = opened(tmp_path)
    step = at.session_state["step"]
    assert (gone < step).sum() < gone.size / 2 <= (gone <= step).sum()
    assert f"Tokens at step {step}, layer 15" in [title.value for title in at.subheader]
    assert at.query_params["step"] == str(step)
    assert opened(tmp_path, step="272").session_state["step"] == 272
    beside = Store().get(BESIDE)
    assert beside is not None
    assert opened(tmp_path, **PAIR).session_state["step"] == opening_step([own, beside])


def test_the_next_eviction_is_the_first_after_the_step_in_any_layer_of_the_head() -> None:
    trace = example()
    token, head = 57, 1
    found, at = [], View(layer=0, head=head, token=token, step=0)
    while (jump := next_eviction(trace, at)) is not None:
        found.append((jump["step"], jump["layer"]))
        at = View(layer=jump["layer"], head=head, token=token, step=jump["step"])
    gone = trace.evicted_at[:, head, token]
    assert found == sorted((int(step), layer) for layer, step in enumerate(gone) if step < trace.n_tokens)
    assert len(found) > 20
    for step, layer in found[:3]:
        assert not trace.keep(layer)[head, step, token] and trace.keep(layer)[head, step - 1, token]


def test_a_jump_moves_step_and_layer_and_the_last_spike_ends_it(tmp_path: Path) -> None:
    trace = example()
    at = opened(tmp_path, layer="15", head="0", token="57", step="0")
    assert not [button for button in at.button if button.key == "jump_spike"]
    at.session_state["jump"] = True
    at.run()
    jump = next_eviction(trace, View(15, 0, 57, 0))
    assert jump
    at.button(key="jump_eviction").click().run()
    assert not at.exception
    assert (at.session_state["step"], at.session_state["layer"]) == (jump["step"], jump["layer"])
    assert (at.query_params["step"], at.query_params["layer"]) == (str(jump["step"]), str(jump["layer"]))
    spike = next_spike([trace], jump["step"])
    assert spike
    at.button(key="jump_spike").click().run()
    assert at.session_state["step"] == spike
    at.slider(key="step").set_value(trace.n_tokens - 1).run()
    assert at.button(key="jump_spike").disabled and at.button(key="jump_eviction").disabled
    assert next_spike([trace], int(np.nanargmax(trace.kl_to_dense)) - 1) == int(np.nanargmax(trace.kl_to_dense))


def test_a_speed_outlives_the_folded_menu(tmp_path: Path) -> None:
    at = opened(tmp_path)
    assert at.session_state["play_speed"] == "1"
    at.session_state["jump"] = True
    at.run()
    at.session_state["play_speed"] = "4"
    at.run()
    at.session_state["jump"] = False
    at.run().run()
    assert not at.exception and at.session_state["play_speed"] == "4"
