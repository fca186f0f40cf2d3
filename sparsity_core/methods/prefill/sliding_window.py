from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, PrefillMethod, PromptView, knob, register

if TYPE_CHECKING:
    from sparselens_kernels import KeyMask


@register
@dataclass(frozen=True)
class SlidingWindow(PrefillMethod):
    """Each query sees the last `window` keys: what every other pattern is held against."""

    source: ClassVar[str] = "baseline"
    equation: ClassVar[str] = r"M_{q,k} = [\,q - w < k \le q\,]"
    card: ClassVar[Card] = Card(
        sees="positions alone",
        costs="nothing",
        defaults="256 keys; the baseline has no paper's setting",
        fails="the first tokens are lost and with them the sinks; no fact from further back is seen",
    )

    window: int = knob(
        256, low=16, high=2048, at_least=1, at_most=10**9, help="last keys that a query sees, its own too"
    )

    def mask(self, view: PromptView) -> KeyMask:
        from sparselens_kernels import KeyMask, Window

        return KeyMask([Window(self.window)], view.k.shape[0], view.n_tokens)
