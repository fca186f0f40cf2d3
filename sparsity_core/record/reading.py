"""What the decode stage read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from sparsity_core.record.part import Axes, Part


@dataclass(frozen=True, eq=False)
class ReadingRecord(Part):
    """How often each key was read, and how much of the exact attention that was. Layers that read everything hold nan."""

    selected: Annotated[np.ndarray, Axes("float", "layer", "kv_head", "key")]  # how many queries read each key
    selected_mass: Annotated[np.ndarray, Axes("float", "layer", "head", "key")]  # exact attention that each query read
    selected_recall: Annotated[
        np.ndarray, Axes("float", "layer", "kv_head", "key")
    ]  # share of the exact top keys that it read
    chosen: Annotated[np.ndarray, Axes("int", "layer", "kv_head", "key", "byte_of_keys", optional=True)] = field(
        default_factory=lambda: np.zeros((0, 0, 0, 0), np.uint8)
    )  # a bit for each query and key: whether any query head of the KV head read it; empty where it was not kept

    def unread(self, layer: int, start: int, end: int) -> np.ndarray:
        """bool [kv_head, R, C]: which of the keys 0 … end − 1 queries start … end − 1 did not read.

        Raises ValueError where that was not kept: of long texts it would take more memory than the trace.
        """
        if not self.chosen.size:
            raise ValueError(
                "which keys each query read was not kept: of so long a text it takes more than 16 MiB. Choose a shorter text"
            )
        bits = np.unpackbits(self.chosen[layer, :, start:end], axis=2, count=self.selected.shape[2])
        return np.asarray(bits[..., :end] == 0)


@dataclass(frozen=True, eq=False)
class DriftRecord(Part):
    """The channels of a decode stage that ranks them again while it runs."""

    drift_steps: Annotated[np.ndarray, Axes("int", "ranking")]  # tokens read by then
    drift: Annotated[
        np.ndarray, Axes("float", "layer", "ranking")
    ]  # share of the calibrated channels still chosen; nan: reads all
