"""What the weights methods that read text have in common. Imports no torch, as no method file may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsity_core.kinds import MOST_SEED, WeightMethod, knob

if TYPE_CHECKING:
    import torch

    from sparsity_core.models import Model


@dataclass(frozen=True)
class Calibrated(WeightMethod):
    """The knobs of a method that looks at what the model does on the calibration text."""

    samples: int = knob(
        32, low=1, high=128, at_least=1, at_most=2048, help="stretches of calibration text that are read"
    )
    length: int = knob(256, low=16, high=2048, at_least=2, at_most=8192, help="tokens of a stretch")
    seed: int = knob(0, low=0, high=99, at_least=0, at_most=MOST_SEED, help="of where the stretches begin")

    @property
    def tokens_read(self) -> int:
        return self.samples * self.length

    def inputs(self) -> dict[str, str]:
        from sparsity_core.models import calibration_digest

        return super().inputs() | ({"calibration text": calibration_digest()} if self.reads_text else {})

    def windows(self, model: Model) -> torch.Tensor:
        """int64 [samples, length]. Raises ValueError where the model does not read stretches so long."""
        from sparsity_core.models import calibration_text, windows

        if self.length > model.arch.max_positions:
            raise ValueError(
                f"length is at most {model.arch.max_positions:,} tokens, the positions of {model.name}; got {self.length:,}"
            )
        return windows(model, calibration_text(), count=self.samples, length=self.length, seed=self.seed)
