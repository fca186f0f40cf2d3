from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsity_core.kinds import MOST_TOKENS, Card, EvictionMethod, LayerShape, ScanRule, knob, register


@register
@dataclass(frozen=True)
class StreamingLLM(EvictionMethod):
    """Attention sinks plus a recent window: the first n_sink and the last budget − n_sink keys stay.

    Keys keep their original rotary positions; `re_rotate` places them at their position in the cache, as the authors'
    code does.
    """

    source: ClassVar[str] = "arXiv:2309.17453; mit-han-lab/streaming-llm"
    equation: ClassVar[str] = r"K_n = \{k < n_{\text{sink}}\} \cup \{k > n - (\text{budget} - n_{\text{sink}})\}"
    card: ClassVar[Card] = Card(
        sees="positions alone",
        costs="nothing",
        defaults="4 sinks, as in the paper; positions in the text, where the authors' code re-rotates",
        fails=(
            "everything between the sinks and the window is gone: no fact from the middle of the text can be answered"
        ),
    )

    n_sink: int = knob(4, low=0, high=64, at_least=0, at_most=MOST_TOKENS, help="first tokens, never dropped")
    re_rotate: bool = knob(False, help="rotary positions within the cache in place of those in the text")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_protected("n_sink")
        if self.re_rotate and self.protect:
            raise ValueError(
                f"{self.name}: re_rotate places sinks and recent keys anew, and no others that are protected: leave one out"
            )

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule:
        recent = max(0, budget - self.n_sink)
        return ScanRule(budget=budget, n_sink=self.n_sink, recent=recent, scored=False, re_rotate=self.re_rotate)
