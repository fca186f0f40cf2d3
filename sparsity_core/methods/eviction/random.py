from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsity_core.kinds import MOST_TOKENS, Card, EvictionMethod, LayerShape, ScanRule, knob, register


@register
@dataclass(frozen=True)
class Random(EvictionMethod):
    """A uniformly random set of keys stays, drawn per layer and KV head from the run's seed: the floor to beat.

    Each key arrives with a random score that never moves, so the kept set is a uniform sample at every step. With
    `protect_prompt` the whole prompt stays, and what was generated is sampled.
    """

    source: ClassVar[str] = "baseline"
    equation: ClassVar[str] = r"A_k \sim U(0, 1),\ \text{drawn once when } k \text{ arrives}"
    card: ClassVar[Card] = Card(
        sees="nothing",
        costs="a draw for each key",
        defaults="nothing is protected; with `protect_prompt` as in arXiv:2609.03430, where the prompt stays",
        fails="sinks and recent tokens go like all others; it is the floor to beat",
    )

    n_sink: int = knob(0, low=0, high=64, at_least=0, at_most=MOST_TOKENS, help="first tokens, never dropped")
    recent: int = knob(0, low=0, high=256, at_least=0, at_most=MOST_TOKENS, help="last tokens, never dropped")

    protect_prompt: bool = knob(
        False, help="only what comes after the prompt is dropped (arXiv:2609.03430); the budget holds the prompt"
    )

    @property
    def protects_prompt(self) -> bool:
        return self.protect_prompt

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_protected("n_sink", "recent")

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule:
        return ScanRule(budget=budget, n_sink=self.n_sink, recent=self.recent, scored=False, noise=layer.seed)
