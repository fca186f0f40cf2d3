"""A pruned model written to a folder, or packed as a zip in the cache, with its report card."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsity_core import studies
from sparsity_core.kinds import WeightMethod
from sparsity_core.record import RunSpec
from sparsity_core.work import UNFINISHED, Progress, cache_dir, check_fits, make_room, new_folder, used
from ui.literal import literal
from ui.tasks.spectra import Measured, weight_method

_MOST_BYTES = 2**30  # of a checkpoint that a browser is handed
_BLOCK = 2**24  # bytes packed between two reports of progress


@dataclass(frozen=True)
class Made:
    """A checkpoint that was written: a folder of the user's, or a zip in the cache."""

    path: Path
    zipped: bool
    report: str  # JSON
    card: str  # Markdown
    measured: Measured


def write(spec: RunSpec, spelled: str, target: str, progress: Progress) -> Made:
    path = new_folder(Path(target).expanduser())
    return Made(path, False, *_fill(spec, weight_method(spelled), path, progress))


def pack(spec: RunSpec, spelled: str, progress: Progress) -> Made:
    method = weight_method(spelled)
    named = "".join(c if c.isalnum() else "-" for c in f"{Path(spec.model).name}-{method.name}")
    code = hashlib.sha256(f"{spec.model} {spec.dtype} {method}".encode()).hexdigest()[:8]
    path = cache_dir() / "checkpoints" / f"{named}-{code}.zip"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as building:
            folder = Path(building) / path.stem
            filled = _fill(spec, method, folder, lambda share, doing: progress(0.8 * share, doing), _MOST_BYTES)
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
    return Made(path, True, *filled)


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
    progress: Progress,
    most_bytes: int | None = None,
) -> tuple[str, str, Measured]:
    """Writes the pruned model to a folder. Returns its report card, as JSON and to be shown, and what was measured for it."""
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
    measured = Measured((model.fingerprint, model.dtype_name))
    if studies.find_study(*measured.who, method) is None:  # so that the page's map shows what the report card lists
        study = studies.study_of(compressed, lambda share, doing: progress(0.3 + 0.2 * share, doing))
        measured = measured.and_kept(study)
    report = compressed.report(progress=lambda share, doing: progress(0.5 + 0.4 * share, doing))
    progress(0.95, "writing")
    try:
        compressed.save_pretrained(path, report=report)
    except OSError as error:
        raise ValueError(
            f"{path} could not be written ({error.strerror or error}): choose a folder you can write"
        ) from error
    return json.dumps(report, indent=1), report_card(_literal(report)), measured


def _literal(report: dict[str, Any]) -> dict[str, Any]:
    return {k: literal(v) if isinstance(v, str) else v for k, v in report.items()} | {
        "notes": [literal(note) for note in report["notes"]]
    }
