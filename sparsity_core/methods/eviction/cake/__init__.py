from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, HeldKeys, LayerShape, PrefillRule, knob, register, wide
from sparsity_core.methods.eviction.snapkv import SnapKV

if TYPE_CHECKING:
    import torch


@register
@dataclass(frozen=True)
class CAKE(SnapKV):
    """Keys that the last queries attend to, or attend to now and then, stay; layers of wide, unsteady attention keep more.

    A is the attention of the prompt's last queries to a key, averaged over them, plus γ times its variance among them, pooled.
    Beside its window a layer keeps a share of the budget of all in proportion to P: H is the entropy of that attention over its
    heads and queries, V the sum of the variances. A share that a layer has no room for goes to the others in the same
    proportion, where the authors' code shares it out evenly. P of all layers is known when the prompt has been read: it is
    read once before, by the model without the other stages, to measure them. Later keys are never dropped, as in SnapKV;
    the authors' code goes on holding each layer to its budget.
    """

    name: ClassVar[str] = "cake"
    source: ClassVar[str] = "arXiv:2503.12491; antgroup/cakekv"
    equation: ClassVar[str] = (
        r"A_k = \operatorname{pool}\big(\operatorname{mean}_q S_{q,k} + \gamma \operatorname{var}_q S_{q,k}\big),\quad"
        r" b_l \propto P_l = H_l^{1/\tau_1} V_l^{1/\tau_2}"
    )
    card: ClassVar[Card] = Card(
        sees="the attention of the prompt's last 32 queries, in all layers before any is cut",
        costs="as `snapkv`, and the prompt is read twice: the budgets of the lower layers wait for the upper ones",
        defaults="γ = 200, τ₁ = τ₂ = 1, window 32, pooling over 5 keys: the authors' code where a model has no values of its own",
        fails=(
            "as `snapkv`; τ₁ and τ₂ are fitted to each model and budget by the authors, from 0.4 to 2.3, and are not here"
        ),
    )

    layer_budget: str = knob("cake", choices=("cake", "uniform"), help="uniform: every layer keeps as many")
    gamma: float = knob(
        200.0, low=0.0, high=400.0, at_least=0, at_most=1e6, help="γ: what the variance of a key's attention counts"
    )
    tau1: float = knob(
        1.0, low=0.2, high=3.0, at_least=0.01, at_most=100, help="τ₁: the larger, the less a layer's entropy counts"
    )
    tau2: float = knob(
        1.0, low=0.2, high=3.0, at_least=0.01, at_most=100, help="τ₂: the larger, the less a layer's variance counts"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.observation_window < 2:
            raise ValueError(
                f"{self.name}: one query's attention has no variance: observation_window is at least 2; got "
                f"{self.observation_window}"
            )

    def budget_of(self, layer: LayerShape) -> int:
        """Of a layer of a model that has read a prompt; the same for all where neither is known yet."""
        if self.layer_budget == "uniform" or layer.model is None or not layer.prompt:
            return self.budget
        from sparsity_core.methods.eviction.cake.preferences import measured, shared_out

        spread = measured(layer.model, layer.prompt, self.observation_window)
        wanted = spread.preferences(self.tau1, self.tau2)[self.dense_layers :]
        each, room = self.budget - self.observation_window, len(layer.prompt) - self.observation_window
        return self.observation_window + shared_out(wanted, each, room)[layer.index - self.dense_layers]

    def rule_within(self, budget: int, layer: LayerShape) -> PrefillRule:
        return replace(super().rule_within(budget, layer), rank=self.rank)

    def rank(self, held: HeldKeys) -> torch.Tensor:
        """[B, Hkv, n]: 0 for the window's own keys, which stay anyway."""
        from sparselens_kernels import reduce_group
        from torch.nn.functional import avg_pool1d

        attention = held.attention(self.observation_window).nan_to_num(0.0)  # [B, Hkv, G, w, n]
        found = attention.mean(3)
        if attention.shape[3] > 1:
            found = found + self.gamma * attention.var(3)
        votes = reduce_group(found, self.reduction)
        if self.value_norm:
            votes = votes * wide(held.v).norm(dim=-1)
        votes = votes.masked_fill(held.positions >= held.end - self.observation_window, 0.0)
        return avg_pool1d(votes, self.pool, stride=1, padding=self.pool // 2)
