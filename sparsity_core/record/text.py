"""The tokens of a run, as the model and as people read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from sparsity_core.record.part import Axes, Part


@dataclass(frozen=True, eq=False)
class TextRecord(Part):
    """T tokens, the first `n_prompt` of them the prompt."""

    token_ids: Annotated[np.ndarray, Axes("int", "key")]
    texts: list[str]  # the text that each token adds; "" for a piece of a character but its last
    tokens: list[str]  # as shown
    groups: Annotated[np.ndarray, Axes("int", "key")]  # tokens of one group spell one character together
    classes: list[str]
    n_prompt: int
    continuation: str  # what generate wrote, its last token included; "" for run
    n_at_once: int = 0  # tokens of the prompt that generate read at once, the rest a token at a time; 0: all of it

    def check(self, sizes: dict[str, int]) -> list[str]:
        wrong, n = super().check(sizes), len(self.token_ids)
        wrong += [name for name in ("texts", "tokens", "classes") if len(getattr(self, name)) != n]
        return wrong if isinstance(self.n_prompt, int) and 1 <= self.n_prompt <= n else [*wrong, "n_prompt"]
