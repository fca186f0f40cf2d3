"""Where results and converted models are kept, and what tells one state of a model from another."""

from __future__ import annotations

import os
import re
from pathlib import Path

from platformdirs import user_cache_path

EMBEDDED = "smollm2-135m"
ASSETS = Path(__file__).parents[1] / "assets"  # what ships with the library for the embedded model


def cache_dir() -> Path:
    """Where results and converted models are kept: SPARSELENS_CACHE, or the user's cache folder."""
    return Path(os.environ.get("SPARSELENS_CACHE") or user_cache_path("sparselens"))


def weights_on_disk(model: str) -> str:
    """What tells one state of a model's files from another: a local one's path, sizes and times, a hub one's commit.

    Empty for the embedded model, and for one that is not on this machine.
    """
    path = Path(os.path.expanduser(model))
    if model == EMBEDDED:
        return ""
    if not os.path.exists(path):  # pathlib's raises for a name that is too long
        return _commit(model)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(f.name, f.stat()) for f in files if f.suffix in (".safetensors", ".gguf", ".json") and f.is_file()]
    return f"{path.resolve()} " + " ".join(f"{name}:{s.st_size}:{s.st_mtime_ns}" for name, s in states)


def _commit(hub_id: str) -> str:
    """The commit of a hub model whose files were downloaded last; empty where there are none."""
    from huggingface_hub.constants import HF_HUB_CACHE

    if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", hub_id):
        return ""
    try:
        return (Path(HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}" / "refs" / "main").read_text().strip()[:64]
    except OSError:
        return ""
