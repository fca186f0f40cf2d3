"""The Channels page's choices and the work behind its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import streamlit as st

from sparsity_core import methods
from sparsity_core.channel_records import SHARES, STATISTICS, Channels, ChannelStudy, Read, find_channels
from sparsity_core.method import Pipeline
from sparsity_core.store import key_of
from sparsity_core.trace import RunSpec, Trace
from ui import work
from ui.figure import Origin
from ui.session import Shown, trace_of

ANSWER = 24  # tokens of a continuation
_KEPT = 16  # studies and looks, in this process
_CURVES = ("qk", "q", "k")


@dataclass(frozen=True)
class Choice:
    """What the page looks at beside the layer and head of every page."""

    statistic: str
    channels: int
    share: float


def choose(calibrated: Channels) -> Choice:
    dim = calibrated.magnitudes["qk"].shape[2]
    for name, first in (("channels_statistic", "qk"), ("channels_r", max(1, dim // 2)), ("channels_share", 0.25)):
        st.session_state[name] = st.session_state.get(name, first)  # set again, so that it outlives other pages
    statistic, r, share = st.columns([2, 2, 3], vertical_alignment="bottom")
    with statistic:
        st.segmented_control("Statistic", STATISTICS, key="channels_statistic", required=True)
    with r:
        st.select_slider("Channels r", _powers(dim), key="channels_r", help="of each head, kept in the label cache")
    with share:
        st.select_slider(
            "Share read",
            SHARES,
            key="channels_share",
            format_func=lambda s: "all" if s == 1 else f"1/{round(1 / s)}",
            help="of the context, at each decode step",
        )
    held = st.session_state
    return Choice(held.channels_statistic, held.channels_r, held.channels_share)


def _powers(dim: int) -> list[int]:
    return [r for r in (4, 8, 16, 32, 64, 128) if r < dim] + [dim]


def method_of(choice: Choice, **others: Any) -> Any:
    return methods.DoubleSparsity(tokens=choice.share, channels=choice.channels, statistic=choice.statistic, **others)


def calibration_of(item: Shown) -> Channels | None:
    return find_channels(item.trace.provenance.fingerprint)


def study_of(item: Shown) -> ChannelStudy | None:
    return _known().get(_study_key(item))


def read_of(item: Shown, layer: int, choice: Choice) -> Read | None:
    return _known().get(_read_key(item, layer, choice))


def calibrate_model(item: Shown) -> None:
    work.submit("calibrate", {f"calibrate {item.trace.provenance.fingerprint}": partial(_calibrate, item.spec)})


def study_text(item: Shown) -> None:
    key = _study_key(item)
    work.submit("channels", {key: partial(_study, item.spec, _ids(item), key, _known())})


def look_at_layer(shown: list[Shown], layer: int, choice: Choice) -> None:
    keys = {_read_key(item, layer, choice): item for item in shown}
    work.submit(
        "reads",
        {key: partial(_look, item.spec, _ids(item), layer, choice, key, _known()) for key, item in keys.items()},
    )


def curve_specs(item: Shown, choice: Choice) -> dict[tuple[str, float], RunSpec]:
    """The runs of the curve: Double Sparsity by statistic and share, and two eviction methods that keep as many keys."""
    read = replace(item.spec, generate=0)
    n = item.trace.n_prompt
    found = {
        (f"double_sparsity {statistic}", share): replace(
            read, pipeline=str(Pipeline(decode=method_of(replace(choice, statistic=statistic, share=share))))
        )
        for statistic in _CURVES
        for share in (SHARES if statistic == "qk" else SHARES[1:])  # all of them read everything alike
    }
    for name in ("h2o", "streaming_llm"):
        for share in SHARES[1:]:
            method: Any = methods.get(name)(budget=max(8, round(share * n)))  # type: ignore[call-arg]
            found[name, share] = replace(read, pipeline=str(Pipeline(eviction=method)))
    return found


def answer_specs(item: Shown, choice: Choice) -> dict[tuple[str, float], RunSpec]:
    """The prompt continued by the dense model, by Double Sparsity, and by eviction methods with as many keys."""
    budget = max(8, round(choice.share * item.trace.n_prompt))
    pipelines = {
        "dense": Pipeline(),
        "double_sparsity": Pipeline(decode=method_of(choice)),
        **{
            name: Pipeline(eviction=methods.get(name)(budget=budget))  # type: ignore[call-arg, arg-type]
            for name in ("h2o", "streaming_llm", "a2sf")
        },
    }
    return {
        (name, choice.share): replace(item.spec, generate=ANSWER, pipeline=str(pipeline))
        for name, pipeline in pipelines.items()
    }


def curve_traces(specs: dict[tuple[str, float], RunSpec]) -> dict[tuple[str, float], Trace]:
    return {name: trace for name, spec in specs.items() if (trace := trace_of(spec)) is not None}


def curve_purpose(specs: dict[tuple[str, float], RunSpec]) -> str:
    return f"curve {key_of(next(iter(specs.values())))}"


def origin(item: Shown, choice: Choice, calibrated: Channels) -> Origin:
    """What stands behind a figure of channels."""
    spec = item.spec
    command = (
        f"python -m sparsity_core calibrate --model {spec.model} --device {spec.device} --dtype {spec.dtype} "
        "--out channels"
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


@st.cache_resource(show_spinner=False)
def _known() -> dict[str, Any]:
    """Studies and looks of this process, the last ones."""
    return {}


def _keep(key: str, value: Any, known: dict[str, Any]) -> None:
    known[key] = value
    while len(known) > _KEPT:
        known.pop(next(iter(known)))


def _study_key(item: Shown) -> str:
    return f"channels {item.trace.provenance.fingerprint} {hash(_ids(item))}"


def _read_key(item: Shown, layer: int, choice: Choice) -> str:
    return f"reads {item.trace.provenance.fingerprint} {hash(_ids(item))} {layer} {choice.statistic} {choice.channels}"


def _ids(item: Shown) -> tuple[int, ...]:
    return tuple(item.trace.token_ids.tolist())


def _model(spec: RunSpec, progress: Callable[[float, str], None]) -> Any:
    from sparsity_core.models import load

    progress(0.0, f"loading {spec.model}")
    return load(spec.model, device=spec.device, dtype=spec.dtype)


def _calibrate(spec: RunSpec, progress: Callable[[float, str], None]) -> None:
    from sparsity_core.channels import channels_for

    channels_for(_model(spec, progress), progress=progress)


def _study(
    spec: RunSpec, ids: tuple[int, ...], key: str, known: dict[str, Any], progress: Callable[[float, str], None]
) -> None:
    from sparsity_core.channel_study import study_channels

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
    from sparsity_core.channel_study import read_at

    model = _model(spec, progress)
    _keep(
        key,
        read_at(model, ids, layer, channels=choice.channels, statistic=choice.statistic, progress=progress),
        known,
    )
