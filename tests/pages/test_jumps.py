"""Replay's speed, and the jumps to the next eviction of the chosen token and to the next spike."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.pages.test_pages import example, opened
from ui.view import View, next_eviction, next_spike


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
