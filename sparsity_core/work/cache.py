"""Where results and converted models are kept, and what tells one state of a model from another."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

EMBEDDED = "smollm2-135m"
ASSETS = Path(__file__).parents[1] / "assets"  # what ships with the library for the embedded model


def cache_dir() -> Path:
    """Where results and converted models are kept: SPARSELENS_CACHE, or the user's cache folder."""
    return Path(os.environ.get("SPARSELENS_CACHE") or user_cache_path("sparselens"))


def weights_on_disk(model: str) -> str:
    """What tells one state of a local model's files from another: path, sizes, times. Empty for a model of another kind."""
    path = Path(os.path.expanduser(model))
    if model == EMBEDDED or not os.path.exists(path):  # pathlib's raises for a name that is too long
        return ""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(f.name, f.stat()) for f in files if f.suffix in (".safetensors", ".gguf", ".json") and f.is_file()]
    return f"{path.resolve()} " + " ".join(f"{name}:{s.st_size}:{s.st_mtime_ns}" for name, s in states)
