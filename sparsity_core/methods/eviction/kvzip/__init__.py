from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import MOST_TOKENS, Card, EvictionMethod, HeldKeys, LayerShape, PrefillRule, knob, register

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class KVzip(EvictionMethod):
    """Keys stay that the model attends to while it repeats the prompt, whatever will be asked about it later.

    The model reads the prompt, an instruction to repeat it, and the prompt again; A is the largest attention that a query of
    the instruction or of the repetition gives a key, over the query heads of its KV head. The highest of all layers and heads
    together stay, so that heads keep `budget` keys on average. What comes after the prompt is never dropped. The authors repeat
    2,000 tokens at a time from the cache that is there; here all of it is read at once, apart from the run.
    """

    name: ClassVar[str] = "kvzip"
    source: ClassVar[str] = "arXiv:2505.23416; snu-mllab/KVzip; NVIDIA/kvpress"
    equation: ClassVar[str] = (
        r"A_k = \max_{h,\,q \ge T} S^h_{q,k},\quad \{(l, h, k)\} = \operatorname{top}_{L H \cdot \text{budget}} A"
    )
    card: ClassVar[Card] = Card(
        sees="the attention of the model while it repeats the whole prompt: no question, and no token after the prompt",
        costs="a forward over twice the prompt before it is read: 3 times the prefill, and 5 times its attention",
        defaults="4 sinks as in kvpress; budgets over all layers and heads, as in the authors' non-uniform setting",
        fails="where one question is known and short, which needs less than a repetition; long prompts, for what it costs",
    )

    layer_budget: str = knob(
        "shared", choices=("shared", "uniform"), help="shared: among all heads of all layers; uniform: as many in each"
    )
    n_sink: int = knob(4, low=0, high=64, at_least=0, at_most=MOST_TOKENS, help="first tokens, never dropped")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_protected("n_sink")

    def budget_of(self, layer: LayerShape) -> int:
        return self.budget

    def rule_within(self, budget: int, layer: LayerShape) -> PrefillRule:
        if layer.model is None or not layer.prompt:
            return PrefillRule(budget=budget, n_sink=self.n_sink, rank=self._unknown)
        from sparsity_core.methods.eviction.kvzip.repeating import counts, measured

        scores = measured(layer.model, layer.prompt)
        own = counts(scores[self.dense_layers :], budget, self.n_sink)[layer.index - self.dense_layers]
        shared = self.layer_budget == "shared" and len(layer.prompt) > budget
        return PrefillRule(
            budget=tuple(own.tolist()) if shared else budget,
            n_sink=self.n_sink,
            rank=partial(_of_positions, scores[layer.index]),
        )

    def _unknown(self, held: HeldKeys) -> torch.Tensor:
        raise ValueError("kvzip judges a prompt by its repetition, and no prompt is known here")


def _of_positions(scores: torch.Tensor, held: HeldKeys) -> torch.Tensor:
    """[1, Hkv, n] of scores [Hkv, T]."""
    return scores.to(held.k.device)[None].gather(2, held.positions)
