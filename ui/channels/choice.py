"""What the Channels page looks at, its part of the address, and where its figures come from."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import streamlit as st

from sparsity_core import methods
from sparsity_core.kinds import Pipeline
from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS, Channels
from sparsity_core.models import calibration_digest
from sparsity_core.record import Provenance, Trace, command_line
from sparsity_core.studies import SHARES, channel_counts
from ui.literal import code
from ui.session import Shown
from viz.channels import share_name

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


def origin(item: Shown, choice: Choice, calibrated: Channels) -> Provenance:
    """What stands behind a figure of channels."""
    spec = item.spec
    command = command_line("calibrate", model=spec.model, device=spec.device, dtype=spec.dtype, out="channels")
    recipe = ", ".join(f"{k} {v}" for k, v in calibrated.recipe.items() if isinstance(v, str | int))
    return Provenance(
        model=spec.model,
        fingerprint=item.trace.provenance.fingerprint,
        prompt_hash=item.trace.provenance.prompt_hash,
        command=command,
        facts={"method": str(method_of(choice)), "calibration": recipe},
    )


def other_calibrations(shown: list[Shown], calibrated: Channels) -> list[str]:
    """Sentences, as Markdown, that say where a run read by another calibration than the one that the page shows."""
    told = []
    if calibrated.recipe.get("text") != calibration_digest():
        told.append("This calibration was made on another text than the one that SparseLens calibrates on here.")
    for item in shown:
        named = getattr(Pipeline.parse(item.spec.pipeline).decode, "calibration", "auto")
        if named != "auto":
            told.append(
                f"{item.letter} chose its channels by the calibration {code(named)}. What is shown below is the model's own "
                "calibration, which may choose others."
            )
    return told


def tell_fetched(trace: Trace) -> str:
    """How much an offloaded generation fetched, and how much of that too late, as a sentence."""
    total = trace.bytes_ahead + trace.bytes_late
    if not total:
        return "Nothing was fetched from the host's memory."
    return (
        f"{total / 2**20:,.1f} MiB were fetched from the host's memory; {trace.bytes_late / total:.0%} of it only when a "
        "layer asked, because the prediction had missed it."
    )


def tell_thinned(trace: Trace) -> str:
    """How many channels the prompt's keys kept, and how the cache is smaller for it, as a sentence."""
    assert trace.thinning is not None
    kept = trace.thinning.channels_kept
    left = f"{kept.sum(2).min()} of {kept.shape[2]} channels" if kept.size else "all channels"
    return (
        f"{trace.thinning.thinned.mean():,.0f} keys of each head, on average, are held in {left}; the cache takes "
        f"{trace.kv_bytes / trace.kv_bytes_dense:.0%} of the dense one's bytes."
    )
