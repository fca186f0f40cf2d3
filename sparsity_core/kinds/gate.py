"""The gate stage: a method that learned which tokens to drop, and the trained gate that it finds for a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sparsity_core.kinds.method import Ruled

if TYPE_CHECKING:
    import torch


class Gate(Protocol):
    """Trained interaction weights: query n drops key k for good where x[n, k] = q_n · k_k + bias ≤ threshold."""

    @property
    def rank(self) -> int:
        """Channels of the projections."""

    @property
    def hidden_size(self) -> int:
        """Channels of the hidden states that it reads."""

    @property
    def bias(self) -> torch.Tensor:
        """[L]"""

    @property
    def propagate_in_depth(self) -> bool:
        """Whether a token dropped in a layer stays dropped in the layers above."""

    @property
    def recipe(self) -> dict[str, Any]:
        """How it was trained, as plain JSON values."""

    def project(self, layer: int, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(queries, keys), [B, T, rank] each, of what a layer's attention reads [B, T, hidden]."""


@dataclass(frozen=True)
class GateMethod(Ruled):
    """Decides, by what it learned, which earlier tokens a token drops for good."""

    stage = "gate"

    def gate(self, model: Any) -> Gate:
        """The trained gate for a `models.Model`. Raises ValueError where there is none."""
        raise TypeError(f"{type(self).__name__} must define gate")

    def recipe(self) -> dict[str, Any] | None:
        """How its gate was trained, as far as files tell before a model is loaded; None where they do not."""
        return None

    @property
    def drops_at(self) -> float:
        """The threshold: a key is dropped where x is at most this."""
        return 0.0

    def note(self, gate: Gate) -> str:
        """What a reader of the result should know about the gate that ran; empty where there is nothing."""
        return ""
