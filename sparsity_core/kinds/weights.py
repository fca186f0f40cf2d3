"""The weights stage: what a method that cuts weights gives back, and what its ratio may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sparsity_core.kinds.knobs import MOST_RATIO, knob
from sparsity_core.kinds.method import Method
from sparsity_core.work import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    import torch


class Compressed(Protocol):
    """What `compress` returns; the one class that does is `weights.CompressedModel`."""

    @property
    def model(self) -> Any:
        """The `models.Model` with fewer weights."""

    @property
    def kept(self) -> tuple[np.ndarray, ...]:
        """int64 [n_kept] of each layer: the FFN neurons that stay, ascending."""

    def save_pretrained(self, path: str | Path, *, report: dict[str, Any] | None = None) -> Path:
        """Writes a folder that `AutoModelForCausalLM.from_pretrained` loads, with its report card."""


class Ranking(NamedTuple):
    """A layer's neurons by importance, and their mean activation where what is lost can be put into a bias."""

    importance: torch.Tensor  # [n]
    mean: torch.Tensor | None = None  # [n]


def removed(help: str) -> Any:
    """The `ratio` knob of a weights method, with what it is a share of."""
    return knob(0.25, low=0.0, high=0.75, at_least=0.0, at_most=MOST_RATIO, always=True, help=help)


@dataclass(frozen=True)
class WeightMethod(Method):
    """Decides which weights stay."""

    stage = "weights"

    ratio: float = removed("share removed")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio(self.name, self.ratio)

    @property
    def tokens_read(self) -> int:
        """Tokens of the calibration text on which it depends what is cut."""
        return 0

    @property
    def reads_text(self) -> bool:
        """Whether what is cut depends on the calibration text."""
        return self.tokens_read > 0

    @property
    def one_ranking(self) -> bool:
        """Whether one ranking of each layer's neurons answers for every ratio."""
        return False

    @property
    def turns_stream(self) -> bool:
        """Whether it changes what the residual stream means, which a trained gate reads."""
        return False

    def n_kept(self, n: int) -> int:
        """How many of a layer's n neurons stay under `one_ranking`. Raises ValueError where none would."""
        raise TypeError(f"{type(self).__name__} keeps no fixed number of a layer's neurons")

    def compress(self, model: Any, progress: Progress = silent) -> Any:
        """The `models.Model` with fewer weights, as a `Compressed`; `model` itself is left as it is.

        Raises ValueError where it cannot be cut so.
        """
        raise TypeError(f"{type(self).__name__} must define compress")


def check_ratio(name: str, ratio: float) -> None:
    """Raises ValueError for a ratio outside [0, 1)."""
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"{name}: ratio is the share removed, 0 to below 1; got {ratio:g}")
