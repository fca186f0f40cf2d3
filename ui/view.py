"""Where one looks in a trace: layer, head, token and step, shared by every page and every figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from sparsity_core.record import RunSpec, Trace
from ui.address import VIEW
from ui.compat import rerun_here
from ui.knobs import choose_one, held
from ui.session import Shown
from viz import again, cost

_PLAY_SECONDS = 0.5
_SPEEDS = {"1": "1 ×", "2": "2 ×", "4": "4 ×", "8": "8 ×"}


@dataclass(frozen=True)
class View:
    layer: int
    head: int | str  # a KV head, or "first"/"last" to drop
    token: int
    step: int

    @property
    def heads(self) -> str:
        """Which heads a figure shows, in words."""
        return _HEADS[self.head] if isinstance(self.head, str) else f"KV head {self.head}"

    @property
    def mean_heads(self) -> str:
        """The same of a figure that has means where the first or last head to drop is chosen."""
        return "mean of the KV heads" if isinstance(self.head, str) else self.heads

    @property
    def all_heads(self) -> str:
        """The same of a figure that counts over all heads there."""
        return "all KV heads together" if isinstance(self.head, str) else self.heads

    def window(self, n_tokens: int) -> tuple[int, int]:
        """The tokens [a, b) around the chosen one that detailed figures draw."""
        return again.window_around(self.token, n_tokens)


_HEADS = {"first": "first head to drop", "last": "last head to drop"}


def view_bar(shown: list[Shown]) -> View:
    """The steppers for layer, head, token and step; choices made in figures arrive here too."""
    trace = max((s.trace for s in shown), key=lambda t: t.n_tokens)
    _apply_requests(trace, *_openings(shown))
    row = st.container(horizontal=True, vertical_alignment="bottom")  # it wraps where it is too narrow for all
    # The value is given too: a widget that the browser has yet to draw begins with it, even where another run of the script
    # came before the browser heard what this one set.
    seen, heads = _view(), [*range(trace.n_kv_heads), *_HEADS]
    row.number_input(
        "Layer", 0, trace.n_layers - 1, seen.layer, key="layer", help="or click a row of the atlas", width=130
    )
    row.selectbox(
        "KV head",
        heads,
        heads.index(seen.head),
        format_func=lambda h: _HEADS.get(h, f"head {h}"),
        key="head",
        help="one KV head, or when the first or the last of the layer's heads drops a token",
        width=170,
    )
    row.number_input(
        "Token",
        0,
        trace.n_tokens - 1,
        seen.token,
        key="token",
        help="or click a token in the strip or the atlas",
        width=130,
    )
    row.slider(
        "Step",
        0,
        max(1, trace.n_tokens - 1),  # a slider needs two ends
        seen.step,
        key="step",
        disabled=trace.n_tokens == 1,
        help="the query that is being read: prompt first, then what the model generates",
        width="stretch",
    )
    playing = st.session_state.get("playing", False)
    if row.button(
        "Pause" if playing else "Replay",
        icon=":material/pause:" if playing else ":material/play_arrow:",
        width=130,
        help="replay the run step by step",
    ):
        st.session_state.playing = not playing
        if not playing and st.session_state.step >= trace.n_tokens - 1:
            request(step=0)
        st.rerun()
    _jumps(row, shown)
    if playing:
        _advance(trace.n_tokens)
    return _view()


def _jumps(row: DeltaGenerator, shown: list[Shown]) -> None:
    """The places worth jumping to, and how fast a replay goes; drawn when it is opened."""
    opened = row.popover("Jump", icon=":material/move_down:", key="jump", on_change="rerun", width=120)
    with opened:
        held("play_speed", "1", lambda: choose_one("Replay's speed", _SPEEDS, "play_speed"), drawn=bool(opened.open))
        if not opened.open:
            return
        at = _view()
        gone, spike = next_eviction(shown[0].trace, at), next_spike([item.trace for item in shown], at.step)
        st.button(
            f"Next eviction of token {at.token}",
            key="jump_eviction",
            icon=":material/content_cut:",
            disabled=gone is None,
            on_click=request,
            kwargs=gone,
            help="in the layer where it is dropped next, to the first query without it",
            width="stretch",
        )
        st.button(
            "Next KL spike",
            key="jump_spike",
            icon=":material/show_chart:",
            disabled=spike is None,
            on_click=request,
            kwargs=None if spike is None else {"step": spike},
            help="to the next query whose prediction is far from the dense model's",
            width="stretch",
        )


def next_eviction(trace: Trace, at: View) -> dict[str, int] | None:
    """Layer and step of the next eviction of the chosen token, after the step, in the chosen head; None after the last."""
    if at.token >= trace.n_tokens:
        return None
    steps = trace.dropped_at(at.head)[:, at.token]
    later = [
        (int(step), layer)
        for layer, step in enumerate(steps)
        if step < trace.n_tokens and (step, layer) > (at.step, at.layer)
    ]
    return {"step": min(later)[0], "layer": min(later)[1]} if later else None


def next_spike(traces: list[Trace], step: int) -> int | None:
    """The next query after the step at which any of the runs is far from the dense model; None after the last."""
    return min(
        (at for trace in traces if trace.compared for at in cost.spikes(trace.kl_to_dense) if at > step), default=None
    )


def opening_step(traces: list[Trace]) -> int:
    """The step at which runs that nobody has moved through are shown: half of what they drop for good is gone by then.

    Where they drop nothing for good it is the query farthest from the dense model, and the last one where none is.
    """
    gone = np.concatenate([trace.evicted_at[trace.evicted_at < trace.n_tokens] for trace in traces])
    if gone.size:
        return int(np.quantile(gone, 0.5, method="inverted_cdf"))
    far = [np.nan_to_num(trace.kl_to_dense) for trace in traces if trace.compared]
    worst = max(far, key=lambda kl: kl.max(initial=0), default=np.zeros(1))
    return int(worst.argmax()) if worst.max(initial=0) > 0 else max(trace.n_tokens for trace in traces) - 1


def _openings(shown: list[Shown]) -> tuple[int, int | None]:
    """The opening step of the runs on the page, and that of the runs before them where these are others."""
    runs = tuple(item.spec for item in shown)
    before: tuple[tuple[RunSpec, ...], int] | None = st.session_state.get("opening")
    if before is not None and before[0] == runs:
        return before[1], None
    step = opening_step([item.trace for item in shown])
    st.session_state.opening = (runs, step)
    return step, before[1] if before is not None else None


def _view() -> View:
    return View(**{name: st.session_state[name] for name in VIEW})


def end_view() -> None:
    """To be called at the end of a page with a view bar: the browser has been told all that the bar was set to."""
    st.session_state.stale = {}


def request(**changes: int) -> None:
    """Asks for another layer, head, token or step; it takes effect when the page runs again."""
    st.session_state.requests = {**st.session_state.get("requests", {}), **changes}


def go(**changes: int) -> None:
    """`request`, and draws again at once."""
    request(**changes)
    rerun_here()


@st.fragment(run_every=_PLAY_SECONDS)
def _advance(n_tokens: int) -> None:
    if "shown_step" not in st.session_state or st.session_state.shown_step != st.session_state.step:
        st.session_state.shown_step = st.session_state.step  # the run that drew this step is not a tick of the clock
        return
    stride = max(1, n_tokens // 100) * int(st.session_state.get("play_speed", 1))
    following = min(st.session_state.step + stride, n_tokens - 1)
    st.session_state.playing = following < n_tokens - 1
    request(step=following)
    st.rerun()


def _apply_requests(trace: Trace, opening: int, opened_before: int | None) -> None:
    """Fills in what is not chosen yet, takes what figures asked for, and keeps everything inside the trace.

    A step at which other runs opened, and from which nobody moved, becomes the opening step of these.
    A run of the script that is ended within its page, as by another Back, may have told the browser nothing. What the
    browser sends then is stale, and what was meant is set again.
    """
    linked: dict[str, Any] = st.session_state.get("view", {})
    requests = st.session_state.pop("requests", {})
    stale, meant = st.session_state.setdefault("stale", {}), st.session_state.setdefault("meant", {})
    middle = trace.n_layers // 2
    defaults = {"layer": middle, "head": 0, "token": _telling_token(trace, middle), "step": opening}
    limits = {"layer": trace.n_layers - 1, "token": trace.n_tokens - 1, "step": trace.n_tokens - 1}
    before = st.session_state.get("last_step", limits["step"])
    st.session_state.last_step = limits["step"]
    for name, default in defaults.items():
        held = st.session_state.get(name, linked.get(name, default))
        value = requests.get(name, meant[name] if held in stale.get(name, ()) and name in st.session_state else held)
        if name == "head":
            value = value if value in _HEADS else _whole(value, 0)
            value = value if value in _HEADS or 0 <= value < trace.n_kv_heads else 0
        else:
            value = min(max(0, _whole(value, default)), limits[name])
        if name == "step" and name in st.session_state and name not in requests and value == opened_before:
            value = opening
        elif name == "step" and before != limits["step"]:
            # A slider of another length is another widget to Streamlit, and starts at its least unless it is told.
            value = limits["step"] if value >= before else value
        elif name not in stale and st.session_state.get(name) == value:
            continue
        stale[name] = {*stale.get(name, ()), held} - {value}
        st.session_state[name] = meant[name] = value
    st.session_state.view = {}


def _whole(value: Any, otherwise: int) -> int:
    try:
        return int(value)
    except ValueError:  # a link may say anything
        return otherwise


def _telling_token(trace: Trace, layer: int) -> int:
    """The key of the layer's first head that held out longest before it was dropped."""
    evicted_at = trace.evicted_at[layer, 0]
    lifetime = np.where(evicted_at < trace.n_tokens, evicted_at - np.arange(trace.n_tokens), -1)
    return int(lifetime.argmax())
