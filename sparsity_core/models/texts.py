"""The text that methods are calibrated, trained and measured on where no other text is given. It ships with the library."""

from __future__ import annotations

import hashlib
import lzma
from functools import lru_cache
from typing import TYPE_CHECKING

from sparsity_core.models.prompts import PROMPTS
from sparsity_core.work import ASSETS

if TYPE_CHECKING:
    import torch

    from sparsity_core.models.model import Model

_REFERENCE = ASSETS / "texts" / "python-reference.txt.xz"
_HELD_OUT = 0.2  # the share of the reference that only measures


@lru_cache(maxsize=1)
def _reference() -> str:
    """Python's language reference, as `help()` of Python 3.11.7 prints it, in the order of its topics' names."""
    return lzma.decompress(_REFERENCE.read_bytes()).decode()


def calibration_text() -> str:
    """The prompts of the library, then the first four fifths of Python's language reference: English and code."""
    text = _reference()
    prompts = [prompt.text for _, prompt in sorted(PROMPTS.items())]
    return "\n\n".join([*prompts, text[: int(len(text) * (1 - _HELD_OUT))]])


def evaluation_text() -> str:
    """The last fifth of Python's language reference. No method reads it."""
    text = _reference()
    return text[int(len(text) * (1 - _HELD_OUT)) :]


def text_digest(text: str) -> str:
    """12 hex digits that name a text in keys, recipes and provenance."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


@lru_cache(maxsize=1)
def calibration_digest() -> str:
    """The digest of `calibration_text()`."""
    return text_digest(calibration_text())


@lru_cache(maxsize=1)
def evaluation_digest() -> str:
    """The digest of `evaluation_text()`."""
    return text_digest(evaluation_text())


def windows(model: Model, text: str, *, count: int, length: int, seed: int = 0) -> torch.Tensor:
    """int64 [count, length]: random stretches of the tokenised text. Raises ValueError for a text shorter than one."""
    import torch

    ids = model.encode_all(text)
    if len(ids) < length:
        raise ValueError(f"the text has {len(ids):,} tokens, fewer than one stretch of {length:,}: give more text")
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - length + 1, (count,), generator=generator).tolist()
    return torch.tensor([ids[start : start + length] for start in starts])
