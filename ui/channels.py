"""The Channels page's choices and the work behind its figures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from shlex import quote
from typing import Any

import pandas as pd
import streamlit as st

from sparsity_core import methods
from sparsity_core.kinds import Pipeline
from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS, Channels, find_channels
from sparsity_core.record import RunSpec, Trace, key_of
from sparsity_core.studies import SHARES, ChannelStudy, Read, channel_counts
from ui import work
from ui.figure import Origin
from ui.session import Shown, trace_of
from viz.channels import curve_point, overlap_table, share_name

ANSWER = 24  # tokens of a continuation
_KEPT = 16  # studies and looks, in this process
_CURVES = ("qk", "q", "k")
_LINKED: dict[str, type] = {"statistic": str, "r": int, "share": float}


@dataclass(frozen=True)
class Choice:
    """What the page looks at beside the layer and head of every page."""

    statistic: str
    channels: int
    share: float


def choose(calibrated: Channels) -> Choice:
    dim = calibrated.magnitudes["qk"].shape[2]
    counts = channel_counts(dim)
    for (name, kind), offered, first in zip(
        _LINKED.items(), (STATISTICS, counts, SHARES), ("qk", counts[-2:][0], 0.25), strict=True
    ):
        value = st.session_state.get(f"channels_{name}", st.query_params.get(name, first))
        with contextlib.suppress(ValueError):  # a link may say anything
            value = kind(value)
        st.session_state[f"channels_{name}"] = value if value in offered else first
    statistic, r, share = st.columns([2, 2, 3], vertical_alignment="bottom")
    with statistic:
        st.segmented_control("Statistic", STATISTICS, key="channels_statistic", required=True)
    with r:
        st.select_slider("Channels r", counts, key="channels_r", help="of each head, kept in the label cache")
    with share:
        st.select_slider(
            "Share read",
            SHARES,
            key="channels_share",
            format_func=share_name,
            help="of the context, at each decode step",
        )
    held = st.session_state
    return Choice(held.channels_statistic, held.channels_r, held.channels_share)


def channels_link() -> dict[str, str]:
    """The page's part of the address."""
    held = {name: st.session_state.get(f"channels_{name}") for name in _LINKED}
    return {name: str(value) for name, value in held.items() if value is not None}


def method_of(choice: Choice) -> Any:
    return methods.DoubleSparsity(tokens=choice.share, channels=choice.channels, statistic=choice.statistic)


def calibration_of(item: Shown) -> Channels | None:
    try:
        return _stored(item.trace.provenance.fingerprint)
    except LookupError:
        return None


@st.cache_resource(show_spinner=False, max_entries=8)
def _stored(fingerprint: str) -> Channels:
    found = find_channels(fingerprint)
    if found is None:
        raise LookupError(fingerprint)  # an exception is not cached, so a later calibration is found
    return found


@st.cache_resource(show_spinner=False, max_entries=32)
def overlaps(key: str, _calibrated: Channels, r: int) -> pd.DataFrame:
    return overlap_table(_calibrated, r)


def study_of(item: Shown) -> ChannelStudy | None:
    return known_values().get(_study_key(item))


def read_of(item: Shown, layer: int, choice: Choice) -> Read | None:
    return known_values().get(_read_key(item, layer, choice))


def calibrate_model(item: Shown) -> None:
    work.submit("calibrate", {f"calibrate {item.trace.provenance.fingerprint}": partial(_calibrate, item.spec)})


def study_text(item: Shown) -> None:
    key = _study_key(item)
    work.submit("channels", {key: partial(_study, item.spec, _ids(item), key, known_values())})


def look_at_layer(shown: list[Shown], layer: int, choice: Choice) -> None:
    keys = {_read_key(item, layer, choice): item for item in shown}
    work.submit(
        "reads",
        {key: partial(_look, item.spec, _ids(item), layer, choice, key, known_values()) for key, item in keys.items()},
    )


def curve_specs(item: Shown, choice: Choice) -> dict[tuple[str, float], RunSpec]:
    """The runs of the curve: Double Sparsity by statistic and share, and two eviction methods that keep as many keys."""
    found = {
        (f"double_sparsity {statistic}", share): _with(
            item, 0, decode=method_of(replace(choice, statistic=statistic, share=share))
        )
        for statistic in _CURVES
        for share in (SHARES if statistic == "qk" else SHARES[1:])  # all of them read everything alike
    }
    evicting = {
        (name, share): _with(item, 0, eviction=_keeping(name, item, share))
        for name in ("h2o", "streaming_llm")
        for share in SHARES[1:]
    }
    return found | evicting


def answer_specs(item: Shown, choice: Choice) -> dict[tuple[str, float], RunSpec]:
    """The prompt continued by the dense model, by Double Sparsity, and by eviction methods with as many keys."""
    stages: dict[str, dict[str, Any]] = {"dense": {}, "double_sparsity": {"decode": method_of(choice)}}
    for name in ("h2o", "streaming_llm", "a2sf"):
        stages[name] = {"eviction": _keeping(name, item, choice.share)}
    return {(name, choice.share): _with(item, ANSWER, **stage) for name, stage in stages.items()}


def _keeping(name: str, item: Shown, share: float) -> Any:
    """An eviction method that keeps as many keys as a share of the prompt has."""
    return methods.get(name)(budget=max(8, round(share * item.trace.n_prompt)))  # type: ignore[call-arg]


def _with(item: Shown, generate: int, **stages: Any) -> RunSpec:
    """The item's prompt and model, its weights pruned as they are, under other stages."""
    weights = Pipeline.parse(item.spec.pipeline).weights
    return replace(item.spec, generate=generate, pipeline=str(Pipeline(weights=weights, **stages)))


def traces_of(specs: dict[tuple[str, float], RunSpec]) -> dict[tuple[str, float], Trace]:
    return {name: trace for name, spec in specs.items() if (trace := trace_of(spec)) is not None}


def points_of(specs: dict[tuple[str, float], RunSpec]) -> dict[tuple[str, float], dict[str, float | str]]:
    """What the curve needs of each run that is known: a few numbers, where all their traces would not fit in memory."""
    found = {}
    for name, spec in specs.items():
        with contextlib.suppress(LookupError):
            found[name] = _point(key_of(spec), spec)
    return found


@st.cache_resource(show_spinner=False, max_entries=512)
def _point(key: str, _spec: RunSpec) -> dict[str, float | str]:
    trace = trace_of(_spec)
    if trace is None:
        raise LookupError(key)
    return curve_point(trace)


def origin(item: Shown, choice: Choice, calibrated: Channels) -> Origin:
    """What stands behind a figure of channels."""
    spec = item.spec
    command = (
        f"python -m sparsity_core calibrate --model {quote(spec.model)} --device {quote(spec.device)} "
        f"--dtype {quote(spec.dtype)} --out channels"
    )
    fields = {
        "model": spec.model,
        "weights": item.trace.provenance.fingerprint,
        "method": str(method_of(choice)),
        "prompt": item.trace.provenance.prompt_hash,
        "calibration": ", ".join(f"{k} {v}" for k, v in calibrated.recipe.items() if isinstance(v, str | int)),
        "command": command,
    }
    return Origin(fields, f"{spec.model}, {method_of(choice)}.", command)


def tell_fetched(trace: Trace) -> str:
    """How much an offloaded generation fetched, and how much of that too late, as a sentence."""
    total = trace.bytes_ahead + trace.bytes_late
    if not total:
        return "Nothing was fetched from the host's memory."
    return (
        f"{total / 2**20:,.1f} MiB were fetched from the host's memory; {trace.bytes_late / total:.0%} of it only when a "
        "layer asked, because the prediction had missed it."
    )


@st.cache_resource(show_spinner=False)
def known_values() -> dict[str, Any]:
    """Studies and looks of this process, the last ones."""
    return {}


def _keep(key: str, value: Any, known: dict[str, Any]) -> None:
    known[key] = value
    while len(known) > _KEPT:
        known.pop(next(iter(known)))


def _study_key(item: Shown) -> str:
    weights = Pipeline.parse(item.spec.pipeline).weights
    return f"channels {item.trace.provenance.fingerprint} {weights} {hash(_ids(item))}"


def _read_key(item: Shown, layer: int, choice: Choice) -> str:
    return f"{_study_key(item)} {layer} {choice.statistic} {choice.channels}"


def _ids(item: Shown) -> tuple[int, ...]:
    return tuple(item.trace.token_ids.tolist())


def _model(spec: RunSpec, progress: Callable[[float, str], None]) -> Any:
    """The model of a spec, its weights pruned as the spec says."""
    from sparsity_core.inference import pruned
    from sparsity_core.models import load

    progress(0.0, f"loading {spec.model}")
    return pruned(load(spec.model, device=spec.device, dtype=spec.dtype), Pipeline.parse(spec.pipeline), progress)


def _calibrate(spec: RunSpec, progress: Callable[[float, str], None]) -> None:
    from sparsity_core.methods.decode.double_sparsity.calibration import channels_for

    channels_for(_model(replace(spec, pipeline="dense"), progress), progress=progress)


def _study(
    spec: RunSpec, ids: tuple[int, ...], key: str, known: dict[str, Any], progress: Callable[[float, str], None]
) -> None:
    from sparsity_core.studies import study_channels

    _keep(key, study_channels(_model(spec, progress), ids, progress=progress), known)


def _look(
    spec: RunSpec,
    ids: tuple[int, ...],
    layer: int,
    choice: Choice,
    key: str,
    known: dict[str, Any],
    progress: Callable[[float, str], None],
) -> None:
    from sparsity_core.studies import read_at

    model = _model(spec, progress)
    _keep(
        key,
        read_at(model, ids, layer, channels=choice.channels, statistic=choice.statistic, progress=progress),
        known,
    )
