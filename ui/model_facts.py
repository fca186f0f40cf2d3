"""What the run bar says of a model before it is loaded, from its small files. Whatever cannot be read is not known.

No model here has been checked yet: any fault of its files, of whatever class, means "not known" and takes nothing away.
"""

from __future__ import annotations

import stat
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparsity_core.models import checked_config, count_apart
from sparsity_core.work import EMBEDDED, cache_dir
from ui.address import is_hub_id
from ui.trust import may_touch

_MOST_TOKENIZER = 2**26  # bytes
_MOST_LETTERS = 200_000  # of a text that is counted while one types
_SECONDS = 2  # that counting may take


def count_tokens(model: str, text: str) -> int | None:
    """The length of a text in tokens; None where the model's tokenizer is not on this machine or cannot be read."""
    folder = _folder(model)
    if folder is None:
        return None
    path = folder / "tokenizer.json"
    try:
        state = path.stat()
        if model == EMBEDDED:
            return len(_embedded(str(path), state.st_mtime_ns).encode(text).ids)
        if not stat.S_ISREG(state.st_mode) or state.st_size > _MOST_TOKENIZER or len(text) > _MOST_LETTERS:
            return None
        return _counted(str(path), state.st_mtime_ns, text)
    except Exception:
        return None


def most_positions(model: str) -> int | None:
    """How many tokens a model reads; None where it is not on this machine or its configuration does not say."""
    folder = _folder(model)
    if folder is None:
        return None
    try:
        return _positions(str(folder), (folder / "config.json").stat().st_mtime_ns)
    except Exception:
        return None


def _folder(model: str) -> Path | None:
    """The folder of a model that lies on this machine and may be looked at."""
    if model == EMBEDDED:
        return cache_dir() / "models" / model
    if is_hub_id(model) or not may_touch({model}):
        return None
    try:
        return Path(model).expanduser()
    except RuntimeError:  # ~nobody
        return None


@lru_cache(maxsize=16)
def _positions(folder: str, changed: int) -> int | None:
    found = checked_config(Path(folder), folder).get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


@lru_cache(maxsize=16)
def _counted(path: str, changed: int, text: str) -> int | None:
    """None where a tokenizer of unknown origin fails or takes too long: it is asked in a process that ends."""
    try:
        return count_apart(Path(path), text, _SECONDS)
    except ValueError:
        return None


@lru_cache(maxsize=1)
def _embedded(path: str, changed: int) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)
