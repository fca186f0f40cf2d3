"""A pruned model to take away: a checkpoint that others load, with its report card, or the model of every other page."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from sparsity_core.kinds import WeightMethod
from sparsity_core.record import RunSpec
from sparsity_core.work import Job, cache_dir
from ui import work
from ui.literal import literal
from ui.spectra import Choice

_MOST_BYTES = 2**30  # of a checkpoint that a browser is handed


def take_away(choice: Choice) -> None:
    """The buttons that write the checkpoint, and its report card once it is there."""
    name = literal(str(choice.method))
    st.markdown(f"The whole model under {name}, in a folder that `AutoModelForCausalLM.from_pretrained` loads.")
    folder, write, pack, use = st.columns([4, 1.7, 1.7, 2.6], vertical_alignment="bottom")
    target = folder.text_input(
        "Folder on the machine that runs SparseLens", key="spectra_folder", placeholder="~/models/pruned"
    ).strip()
    busy = work.pending("checkpoint")
    key = f"checkpoint {choice.spec.model} {choice.spec.dtype} {choice.method}"
    if write.button(
        "Write", icon=":material/save:", disabled=busy or not target, width="stretch", key="write_checkpoint"
    ):
        work.submit("checkpoint", {f"{key} {target}": partial(_write, choice.spec, choice.method, target)})
        st.rerun()
    if pack.button("Make a zip", icon=":material/folder_zip:", disabled=busy, width="stretch", key="zip_checkpoint"):
        work.submit("checkpoint", {key: partial(_zip, choice.spec, choice.method)})
        st.rerun()
    use.button(
        "Use it on every page",
        icon=":material/input:",
        width="stretch",
        key="use_weights",
        on_click=partial(_use, choice.method),
        help="puts this method among the settings in the sidebar; press Run there",
    )
    work.watch("checkpoint", _done)
    made = st.session_state.get("checkpoint")
    if made is None:
        return
    path, report, card = made
    if path.endswith(".zip") and Path(path).exists():
        st.download_button(
            f"Download {literal(Path(path).name)}, {Path(path).stat().st_size / 2**20:,.0f} MiB",
            data=Path(path).read_bytes,
            file_name=Path(path).name,
            mime="application/zip",
            icon=":material/download:",
            on_click="ignore",
            key="download_checkpoint",
        )
    else:
        st.success(literal(f"Written to {path}."))
    with st.container(border=True):
        st.markdown(card)
        st.download_button(
            "Report as JSON", data=report, file_name="report.json", mime="application/json", on_click="ignore"
        )


def _done(jobs: dict[str, Job]) -> None:
    (job,) = jobs.values()
    st.session_state["checkpoint"] = job.result


def _use(method: WeightMethod) -> None:
    st.session_state["A_weights"] = method.name
    st.session_state["A_weights_fold"] = True
    for knob in method.knobs():
        st.session_state[f"A_{method.name}_{knob.name}"] = getattr(method, knob.name)


def _write(
    spec: RunSpec, method: WeightMethod, target: str, progress: Callable[[float, str], None]
) -> tuple[str, str, str]:
    path = Path(target).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{target} exists already: choose a folder that is new or empty")
    return _made(spec, method, path, progress)


def _zip(spec: RunSpec, method: WeightMethod, progress: Callable[[float, str], None]) -> tuple[str, str, str]:
    named = "".join(c if c.isalnum() else "-" for c in f"{Path(spec.model).name}-{method.name}")
    code = hashlib.sha256(f"{spec.model} {spec.dtype} {method}".encode()).hexdigest()[:8]
    root = cache_dir() / "checkpoints"
    try:
        shutil.rmtree(root, ignore_errors=True)  # one at a time: each is as large as its model
        folder = root / f"{named}-{code}"
        _, report, card = _made(spec, method, folder, lambda share, doing: progress(0.9 * share, doing), _MOST_BYTES)
        progress(0.9, "packing")
        path = shutil.make_archive(str(folder), "zip", root_dir=root, base_dir=folder.name)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise ValueError(
            f"the zip could not be written to {root} ({error.strerror or error}): free some space, or write to a folder"
        ) from error
    return path, report, card


def _made(
    spec: RunSpec,
    method: WeightMethod,
    path: Path,
    progress: Callable[[float, str], None],
    most_bytes: int | None = None,
) -> tuple[str, str, str]:
    from sparsity_core.models import load
    from sparsity_core.weights import report_card

    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    compressed = method.compress(model, lambda share, doing: progress(0.4 * share, doing))
    size = sum(p.numel() * p.element_size() for p in compressed.model.hf.parameters())
    if most_bytes is not None and size > most_bytes:
        raise ValueError(
            f"the checkpoint has {size / 2**30:.1f} GiB, more than a browser should be handed: write it to a folder"
        )
    report = compressed.report(progress=lambda share, doing: progress(0.4 + 0.5 * share, doing))
    progress(0.95, "writing")
    try:
        compressed.save_pretrained(path, report=report)
    except OSError as error:
        raise ValueError(
            f"{path} could not be written ({error.strerror or error}): choose a folder you can write"
        ) from error
    return str(path), json.dumps(report, indent=1), report_card(_literal(report))


def _literal(report: dict[str, Any]) -> dict[str, Any]:
    return {k: literal(v) if isinstance(v, str) else v for k, v in report.items()} | {
        "notes": [literal(note) for note in report["notes"]]
    }
