"""A run's tokens: their ids, and how people read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsity_core.models import Model
from sparsity_core.record import TextRecord, pieces, shown, token_classes


@dataclass(frozen=True)
class Words:
    """The known tokens of a text. `classes` is a list that generation adds to."""

    ids: list[int]
    texts: list[str]  # the text that each token adds
    groups: list[int]  # tokens of one group spell one character together
    classes: list[str]

    @classmethod
    def of(cls, model: Model, ids: list[int]) -> Words:
        return cls(ids, *pieces(model.tokenizer, ids), token_classes(model.tokenizer, ids))

    def record(self, n_prompt: int, continuation: str = "", n_at_once: int = 0) -> TextRecord:
        return TextRecord(
            token_ids=np.asarray(self.ids, np.int32),
            texts=self.texts,
            tokens=shown(self.texts, self.groups),
            groups=np.asarray(self.groups, np.int32),
            classes=self.classes,
            n_prompt=n_prompt,
            continuation=continuation,
            n_at_once=n_at_once if n_at_once < n_prompt else 0,
        )
