"""What the run bar says of a model before it is loaded, from its small files. Whatever cannot be read is not known.

No model here has been checked yet: any fault of its files, of whatever class, means "not known" and takes nothing away.
"""

from __future__ import annotations

import stat
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparsity_core.models import checked_config
from sparsity_core.work import EMBEDDED, cache_dir
from ui.address import is_hub_id
from ui.trust import may_touch

_MOST_TOKENIZER = 2**26  # bytes


def count_tokens(model: str, text: str) -> int | None:
    """The length of a text in tokens; None where the model's tokenizer is not on this machine or cannot be read."""
    folder = _folder(model)
    if folder is None:
        return None
    try:
        state = (folder / "tokenizer.json").stat()
        return _counted(str(folder / "tokenizer.json"), state.st_mtime_ns, text)
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
def _counted(path: str, changed: int, text: str) -> int:
    try:
        return len(_tokenizer(path, changed).encode(text).ids)
    except BaseException as fault:
        if isinstance(fault, Exception) or type(fault).__name__ == "PanicException":  # of Rust, and no Exception
            raise ValueError("the tokenizer cannot read this text") from fault
        raise


@lru_cache(maxsize=4)
def _tokenizer(path: str, changed: int) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_buffer(_bounded(Path(path), _MOST_TOKENIZER))


def _bounded(path: Path, most: int) -> bytes:
    """The bytes of a regular file of at most so many. Raises ValueError for anything else."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode) or state.st_size > most:
        raise ValueError(f"{path} is no file of at most {most:,} bytes")
    return path.read_bytes()
