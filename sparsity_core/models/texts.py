"""Text that every Python has: what methods are calibrated, trained and measured on where no other text is given."""

from __future__ import annotations

import pydoc_data.topics
from functools import lru_cache

import torch

from sparsity_core.models.model import Model
from sparsity_core.models.prompts import PROMPTS

_HELD_OUT = 0.2  # of the text: only to measure on


@lru_cache(maxsize=1)
def _topics() -> str:
    """The language reference that Python ships for `help()`, in the order of its topics' names."""
    return "\n\n".join(text.strip() for _, text in sorted(pydoc_data.topics.topics.items()))


def calibration_text() -> str:
    """English and code to calibrate and train on: prompts of ours, then the first part of Python's own reference."""
    text = _topics()
    prompts = [prompt.text for _, prompt in sorted(PROMPTS.items())]
    return "\n\n".join([*prompts, text[: int(len(text) * (1 - _HELD_OUT))]])


def evaluation_text() -> str:
    """The last fifth of Python's reference, which nothing is trained on."""
    text = _topics()
    return text[int(len(text) * (1 - _HELD_OUT)) :]


def windows(model: Model, text: str, *, count: int, length: int, seed: int = 0) -> torch.Tensor:
    """int64 [count, length]: random stretches of the tokenised text. Raises ValueError where it is shorter than one."""
    ids = model.encode_all(text)
    if len(ids) < length:
        raise ValueError(f"the text has {len(ids):,} tokens, fewer than one stretch of {length:,}: give more text")
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - length + 1, (count,), generator=generator).tolist()
    return torch.tensor([ids[start : start + length] for start in starts])
