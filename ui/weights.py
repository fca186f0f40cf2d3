"""A pruned model to take away: a checkpoint that others load, with its report card, or the model of every other page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import streamlit as st

from sparsity_core.kinds import Pipeline, WeightMethod
from sparsity_core.record import RunSpec
from sparsity_core.work import Job, Progress, used
from ui import shared, work, zips
from ui.lineup import pipelines_asked
from ui.literal import literal
from ui.session import forget_widgets
from ui.spectra import Choice, keep, known_values
from ui.tasks import checkpoints
from ui.tasks.checkpoints import Made


def take_away(choice: Choice) -> None:
    """The buttons that write the checkpoint, and its report card once it is there."""
    name = literal(str(choice.method))
    st.markdown(f"The whole model under {name}, in a folder that `AutoModelForCausalLM.from_pretrained` loads.")
    folder, write, pack, use = st.columns([4, 1.7, 1.7, 2.6], vertical_alignment="bottom")
    target = ""
    if shared.is_shared():
        folder.caption("This server is shared, so it writes to no folder of its own: take the model away as a zip.")
    else:
        target = folder.text_input(
            "Folder on the machine that runs SparseLens", key="spectra_folder", placeholder="~/models/pruned"
        ).strip()
    busy = work.pending("checkpoint")
    key = f"checkpoint {choice.spec.model} {choice.spec.dtype} {choice.method}"
    if not shared.is_shared() and write.button(
        "Write", icon=":material/save:", disabled=busy or not target, width="stretch", key="write_checkpoint"
    ):
        _begin(choice, f"{key} {target}", partial(checkpoints.write, choice.spec, str(choice.method), target))
        st.rerun()
    if pack.button("Make a zip", icon=":material/folder_zip:", disabled=busy, width="stretch", key="zip_checkpoint"):
        _begin(choice, key, partial(checkpoints.pack, choice.spec, str(choice.method)))
        st.rerun()
    use.button(
        "Use it on every page",
        icon=":material/input:",
        width="stretch",
        key="use_weights",
        on_click=partial(_use, choice.method),
        help="puts this method among the settings of runs, beside the other pages",
    )
    if st.session_state.get("used weights") == str(choice.method):
        st.success(f"{name} is set for every run. Open another page and press Run there to see what it does.")
    work.watch("checkpoint", _done)
    made: Made | None = st.session_state.get("checkpoint")
    if made is None:
        return
    if not made.zipped:
        st.success(literal(f"Written to {made.path}."))
    elif not made.path.exists():
        st.info("The zip made room for newer results: make it again.")
    else:
        used(made.path)
        st.download_button(
            f"Download {literal(made.path.name)}, {made.path.stat().st_size / 2**20:,.0f} MiB",
            data=made.path.read_bytes,
            file_name=made.path.name,
            mime="application/zip",
            icon=":material/download:",
            on_click="ignore",
            key="download_checkpoint",
        )
    with st.container(border=True):
        st.markdown(made.card)
        st.download_button(
            "Report as JSON", data=made.report, file_name="report.json", mime="application/json", on_click="ignore"
        )


def _begin(choice: Choice, key: str, piece: Callable[[Progress], Made]) -> None:
    work.submit("checkpoint", {key: piece}, partial(_keep, known_values(), choice.spec))


def _keep(known: dict[str, Any], spec: RunSpec, key: str, made: Made) -> None:
    keep(known, spec, made.measured)


def _done(jobs: dict[str, Job]) -> None:
    (job,) = jobs.values()
    st.session_state["checkpoint"] = job.result
    if job.result.zipped:
        zips.hold(job.result.path)


def _use(method: WeightMethod) -> None:
    st.session_state["used weights"] = str(method)
    texts = pipelines_asked()
    texts[0] = str(replace(Pipeline.parse(texts[0]), weights=method))
    forget_widgets("A")
