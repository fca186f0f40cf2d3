"""A pruned model to take away: a checkpoint that others load, with its report card, or the model of every other page."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from sparsity_core import studies
from sparsity_core.kinds import WeightMethod
from sparsity_core.record import RunSpec
from sparsity_core.work import UNFINISHED, Job, Progress, cache_dir, check_fits, make_room, new_folder, used
from ui import shared, work, zips
from ui.literal import literal
from ui.spectra import Choice, keep, known_values

_MOST_BYTES = 2**30  # of a checkpoint that a browser is handed
_BLOCK = 2**24  # bytes packed between two reports of progress


@dataclass(frozen=True)
class Made:
    """A checkpoint that was written: a folder of the user's, or a zip in the cache."""

    path: Path
    zipped: bool
    report: str  # JSON
    card: str  # Markdown


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
        work.submit(
            "checkpoint", {f"{key} {target}": partial(_write, choice.spec, choice.method, target, known_values())}
        )
        st.rerun()
    if pack.button("Make a zip", icon=":material/folder_zip:", disabled=busy, width="stretch", key="zip_checkpoint"):
        work.submit("checkpoint", {key: partial(_zip, choice.spec, choice.method, known_values())})
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


def _done(jobs: dict[str, Job]) -> None:
    (job,) = jobs.values()
    st.session_state["checkpoint"] = job.result
    if job.result.zipped:
        zips.hold(job.result.path)


def _use(method: WeightMethod) -> None:
    st.session_state["used weights"] = str(method)
    st.session_state["A_weights"] = method.name
    st.session_state["A_weights_fold"] = True
    for knob in method.knobs():
        st.session_state[f"A_{method.name}_{knob.name}"] = getattr(method, knob.name)


def _write(spec: RunSpec, method: WeightMethod, target: str, known: dict[str, Any], progress: Progress) -> Made:
    path = new_folder(Path(target).expanduser())
    report, card = _fill(spec, method, path, known, progress)
    return Made(path, False, report, card)


def _zip(spec: RunSpec, method: WeightMethod, known: dict[str, Any], progress: Progress) -> Made:
    named = "".join(c if c.isalnum() else "-" for c in f"{Path(spec.model).name}-{method.name}")
    code = hashlib.sha256(f"{spec.model} {spec.dtype} {method}".encode()).hexdigest()[:8]
    path = cache_dir() / "checkpoints" / f"{named}-{code}.zip"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as building:
            folder = Path(building) / path.stem
            report, card = _fill(
                spec, method, folder, known, lambda share, doing: progress(0.8 * share, doing), _MOST_BYTES
            )
            packed = _packed(folder, lambda share, doing: progress(0.8 + 0.2 * share, doing))
            check_fits(packed.stat().st_size)
            os.replace(packed, path)
        used(path)
        make_room()
    except OSError as error:
        raise ValueError(
            f"the zip could not be written to {path.parent} ({error.strerror or error}): free some space, or write to a "
            "folder"
        ) from error
    return Made(path, True, report, card)


def _packed(folder: Path, progress: Progress) -> Path:
    """A zip of a folder, beside it. Weights are stored as they are: compressing them takes a minute and saves a tenth."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    total, done = sum(path.stat().st_size for path in files), 0
    packed = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for path in files:
            entry = zipfile.ZipInfo.from_file(path, path.relative_to(folder.parent))
            with path.open("rb") as read, archive.open(entry, "w", force_zip64=True) as write:
                while block := read.read(_BLOCK):
                    write.write(block)
                    done += len(block)
                    progress(done / total, f"packing {done / 2**20:,.0f} of {total / 2**20:,.0f} MiB")
    return packed


def _fill(
    spec: RunSpec,
    method: WeightMethod,
    path: Path,
    known: dict[str, Any],
    progress: Progress,
    most_bytes: int | None = None,
) -> tuple[str, str]:
    """Writes the pruned model to a folder. Returns its report card, as JSON and to be shown."""
    from sparsity_core.inference import release_pruned
    from sparsity_core.models import load
    from sparsity_core.weights import report_card

    release_pruned()  # this work makes a copy of its own
    progress(0.0, f"loading {spec.model}")
    model = load(spec.model, device=spec.device, dtype=spec.dtype)
    compressed = method.compress(model, lambda share, doing: progress(0.3 * share, doing))
    size = sum(p.numel() * p.element_size() for p in compressed.model.hf.parameters())
    if most_bytes is not None and size > most_bytes:
        raise ValueError(
            f"the checkpoint has {size / 2**30:.1f} GiB, more than a browser should be handed: write it to a folder"
        )
    who = (model.fingerprint, model.dtype_name)
    if studies.find_study(*who, method) is None:  # so that the page's map shows what the report card lists
        keep(
            studies.study_of(compressed, lambda share, doing: progress(0.3 + 0.2 * share, doing)),
            who,
            known,
        )
    report = compressed.report(progress=lambda share, doing: progress(0.5 + 0.4 * share, doing))
    progress(0.95, "writing")
    try:
        compressed.save_pretrained(path, report=report)
    except OSError as error:
        raise ValueError(
            f"{path} could not be written ({error.strerror or error}): choose a folder you can write"
        ) from error
    return json.dumps(report, indent=1), report_card(_literal(report))


def _literal(report: dict[str, Any]) -> dict[str, Any]:
    return {k: literal(v) if isinstance(v, str) else v for k, v in report.items()} | {
        "notes": [literal(note) for note in report["notes"]]
    }
