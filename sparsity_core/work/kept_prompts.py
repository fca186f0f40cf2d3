"""Texts too long for a link, kept on disk under a name made from their content."""

from __future__ import annotations

import contextlib
import hashlib
import re

from sparsity_core.work.cache import cache_dir
from sparsity_core.work.files import read_regular
from sparsity_core.work.shelf import shelve, used


def keep_prompt(text: str) -> str:
    """Keeps a text too long for a link, as far as the disk lets it. Returns the name by which `kept_prompt` finds it."""
    name = f"long-{_digest(text)}"
    path = cache_dir() / "prompts" / f"{name}.txt"
    with contextlib.suppress(OSError):
        if kept_prompt(name) is None:
            shelve(path, text.encode("utf-8", "surrogatepass"))
    return name


def kept_prompt(name: str) -> str | None:
    """The text of this name; None where it is not on this machine, or no longer what it was."""
    if not re.fullmatch("long-[0-9a-f]{16}", name):
        return None
    path = cache_dir() / "prompts" / f"{name}.txt"
    try:
        text = read_regular(path).decode("utf-8", "surrogatepass")
    except (OSError, UnicodeDecodeError):
        return None
    if name != f"long-{_digest(text)}":
        return None
    used(path)
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
