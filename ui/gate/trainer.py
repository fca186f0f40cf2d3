"""The section of the Gate page that trains a gate."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import streamlit as st

from sparsity_core.methods.gate.dcp.records import Training, command_of
from sparsity_core.record import Provenance
from ui import shared, work
from ui.figure import show_figure
from ui.gate.training import curve_of, train, training_place
from ui.literal import code, literal
from ui.session import Shown
from viz import gate as viz

_OFFERED = ("gamma", "steps", "length", "learning_rate", "seed")


def train_section(item: Shown) -> None:
    st.subheader("Train a gate for this model", anchor=False)
    if shared.is_shared():
        st.caption("This server is shared, and a training takes hours of it: train on your own machine.")
        return
    values: dict[str, Any] = {}
    for column, name in zip(st.columns(len(_OFFERED)), _OFFERED, strict=True):
        default, help_ = getattr(Training, name), Training.__dataclass_fields__[name].metadata["help"]
        whole = isinstance(default, int)
        look: dict[str, Any] = {"step": 1} if whole else {"format": "%.4g", "step": default / 10}
        with column:
            values[name] = st.number_input(
                name.replace("_", " "), value=default, help=help_, key=f"gate_{name}", **look
            )
    own = st.toggle("Train on the prompt in the sidebar", key="gate_own_text", help="when off, the default text")
    text = item.spec.prompt if own else None
    try:
        training = replace(Training(), **values)
    except ValueError as error:
        st.warning(literal(str(error)), icon=":material/warning:")
        return
    place = training_place(item.spec, training, text)
    if not work.pending("train_gate") and not place.exists():
        st.caption(
            f"{training.steps} steps of {training.length} tokens. The embedded model takes about 5 s for a step of "
            "512 tokens on two cores. A cancelled training continues where it stopped."
        )
        if st.button("Train", key="train_gate", icon=":material/model_training:"):
            train(item.spec, training, text)
            st.rerun()
    work.watch("train_gate", lambda jobs: None)
    curve = st.fragment(_curve, run_every=2.0) if work.pending("train_gate") else _curve
    curve(item, training, place)
    if place.exists():
        st.success(f"Trained. Paste {code(str(place))} as the adapter under Gate in the sidebar, and press Run.")


def _curve(item: Shown, training: Training, place: Path) -> None:
    """The training as far as it has come."""
    curve = curve_of(place)
    if curve["loss"]:
        table = viz.training_table({"curve": curve})
        command = command_of({"model": item.spec.model, "start": None, **asdict(training)})
        show_figure(
            viz.plot_training(table, training.distil),
            table,
            name="live_training",
            caption=f"Training of a gate of γ = {training.gamma:g}.",
            read=f"{len(table)} of {training.steps} steps.",
            sources=Provenance(model=item.spec.model, command=command),
        )
