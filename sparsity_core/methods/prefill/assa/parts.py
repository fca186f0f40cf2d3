"""A text's parts, by rule: blocks, sentences and paragraphs, and the tokens that structure points at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_SENTENCE = re.compile(r"[.!?。！？]\s*$|\n")  # of a token that ends a sentence
_PARAGRAPH = re.compile(r"\n")
_NUMBER_OR_CAPITAL = re.compile(r"^\s*(\d|[A-Z])")


@dataclass(frozen=True, eq=False)
class Parts:
    """Which part of each kind every token is of, numbered from 0 without gaps: int64 [T], ascending."""

    segments: torch.Tensor  # what a budget is for
    sentences: torch.Tensor
    paragraphs: torch.Tensor
    marked: torch.Tensor  # float32 [T]: 1 for a token that begins a sentence, is capitalised or is a number, else 0

    @classmethod
    def of(cls, texts: Sequence[str], n: int, block: int, by: str, device: torch.device) -> Parts:
        """The parts of a text of n tokens; `by` says what a segment is, a "block" of tokens or a "sentence"."""
        sentences, paragraphs = _ended(texts[:n], _SENTENCE), _ended(texts[:n], _PARAGRAPH)
        segments = torch.arange(n) // block if by == "block" else sentences
        first = torch.cat([torch.ones(1, dtype=torch.int64), sentences.diff()]) > 0
        shown = torch.tensor([bool(_NUMBER_OR_CAPITAL.match(text)) for text in texts[:n]])
        found = (segments, sentences, paragraphs, (first | shown).float())
        return cls(*(each.to(device) for each in found))

    def before(self, n: int) -> Parts:
        """Those of the first n tokens."""
        return Parts(*(each[:n] for each in (self.segments, self.sentences, self.paragraphs, self.marked)))


def _ended(texts: Sequence[str], end: re.Pattern[str]) -> torch.Tensor:
    ends = torch.tensor([bool(end.search(text)) for text in texts], dtype=torch.int64)
    return ends.cumsum(0) - ends
