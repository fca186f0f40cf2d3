"""Texts too long for a link, kept on disk under a name made from their content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re

from sparsity_core.work.cache import cache_dir


def keep_prompt(text: str) -> str:
    """Keeps a text too long for a link, as far as the disk lets it. Returns the name by which `kept_prompt` finds it."""
    name = f"long-{_digest(text)}"
    path = cache_dir() / "prompts" / f"{name}.txt"
    with contextlib.suppress(OSError):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            building = path.with_suffix(f".{os.getpid()}")
            building.write_bytes(text.encode("utf-8", "surrogatepass"))
            os.replace(building, path)
    return name


def kept_prompt(name: str) -> str | None:
    """The text of this name; None where it is not on this machine, or no longer what it was."""
    if not re.fullmatch("long-[0-9a-f]{16}", name):
        return None
    try:
        text = (cache_dir() / "prompts" / f"{name}.txt").read_bytes().decode("utf-8", "surrogatepass")
    except (OSError, UnicodeDecodeError):
        return None
    return text if name == f"long-{_digest(text)}" else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
