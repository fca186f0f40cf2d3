from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sparsity_core.kinds import Card, Gate, GateMethod, knob, register

if TYPE_CHECKING:
    from sparsity_core.models import Model


@register
@dataclass(frozen=True)
class DCP(GateMethod):
    """Dynamic context pruning: small trained weights of each layer let a token drop earlier ones from all its heads.

    The gate is soft while it is trained (a = 1 to 8) and a step at inference: a key is gone where x ≤ `threshold`.
    """

    source: ClassVar[str] = "arXiv:2305.15805"
    equation: ClassVar[str] = (
        r"x_{n,k} = \tfrac{1}{\sqrt r}\, W_Q h_n \cdot W_K h_k + \beta, \qquad"
        r"\text{key } k \text{ stays until the first } n > k \text{ with } x_{n,k} \le 0"
    )
    card: ClassVar[Card] = Card(
        sees="the hidden state of each new token and of the cached ones, never the attention",
        costs=(
            "r = 64 products for each pair of tokens and layer, shared by the heads; 64 numbers in float16 a token "
            "and layer beside the cache"
        ),
        defaults=(
            "γ = 0.3, r = 64 and an initial β of 2 are the paper's; the base model is frozen, where the paper tunes it"
        ),
        fails=(
            "a name that the text comes back to later is dropped early: most of its loss lies in passages that repeat "
            "an earlier one"
        ),
    )

    gamma: float = knob(
        0.3,
        low=0.0,
        high=3.0,
        at_least=0.0,
        at_most=1000.0,
        help="what a kept pair cost in training; the trained gate nearest to it is used",
    )
    adapter: str = knob(
        "auto", path=True, help="auto: the gates that ship with the embedded model; or a file of `train dcp`"
    )
    threshold: float = knob(
        0.0,
        low=-2.0,
        high=2.0,
        at_least=-1000.0,
        at_most=1000.0,
        help="drop where x is at most this; 0 as trained, more drops more",
    )

    def gate(self, model: Model) -> Gate:
        from sparsity_core.methods.gate.dcp.adapter import find_gate

        return find_gate(model, self.adapter, self.gamma)

    def recipe(self) -> dict[str, Any] | None:
        from sparsity_core.methods.gate.dcp.records import family, recipe_of

        if self.adapter != "auto":
            return recipe_of(os.path.expanduser(self.adapter))
        shipped = family()
        return recipe_of(shipped[min(shipped, key=lambda known: abs(known - self.gamma))]) if shipped else None

    @property
    def drops_at(self) -> float:
        return self.threshold

    def note(self, gate: Gate) -> str:
        ran = gate.recipe.get("gamma", self.gamma)
        if self.adapter != "auto" or ran == self.gamma:
            return ""
        return f"No gate of γ = {self.gamma:g} ships for this model: the nearest ran, γ = {ran:g}."
