"""The calibration, the studies, the looks and the runs that the Channels page draws."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from sparsity_core import methods
from sparsity_core.kinds import Pipeline
from sparsity_core.methods.decode.double_sparsity.channels import Channels, find_channels
from sparsity_core.record import RunSpec, Trace, key_of
from sparsity_core.studies import SHARES, ChannelStudy, Read
from ui import work
from ui.channels.choice import Choice, method_of
from ui.session import Shown, trace_of
from ui.tasks import channels
from viz.channels import curve_point, overlap_table

ANSWER = 24  # tokens of a continuation


_KEPT = 16  # studies and looks, in this process


_CURVES = ("qk", "q", "k")


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
    work.submit("calibrate", {f"calibrate {item.trace.provenance.fingerprint}": partial(channels.calibrate, item.spec)})


def study_text(item: Shown) -> None:
    work.submit(
        "channels", {_study_key(item): partial(channels.study, item.spec, _ids(item))}, partial(_keep, known_values())
    )


def look_at_layer(shown: list[Shown], layer: int, choice: Choice) -> None:
    keys = {_read_key(item, layer, choice): item for item in shown}
    work.submit(
        "reads",
        {
            key: partial(channels.look, item.spec, _ids(item), layer, choice.channels, choice.statistic)
            for key, item in keys.items()
        },
        partial(_keep, known_values()),
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
    """An eviction method whose budget is a share of the prompt."""
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


@st.cache_resource(show_spinner=False)
def known_values() -> dict[str, Any]:
    """Studies and looks of this process, the last ones."""
    return {}


def _keep(known: dict[str, Any], key: str, value: Any) -> None:
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
