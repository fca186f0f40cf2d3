from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, knob, register
from sparsity_core.methods.weights.neurons import NeuronMethod
from sparsity_core.work import Progress

if TYPE_CHECKING:
    from sparsity_core.kinds import Ranking
    from sparsity_core.models import Model
    from sparsity_core.weights import FeedForward


@register
@dataclass(frozen=True)
class PruneNet(NeuronMethod):
    """Keeps the neurons that a policy scores highest; it learned from the weights alone to leave the singular values in place.

    The reward is 1 / D, D the Kolmogorov–Smirnov distance of the first FFN matrix's singular values before and after. Where
    `corrected` differs from the authors' code: the policy sees row norms and leverage scores beside the weights, REINFORCE uses
    the draw's own probability and a baseline per layer, the best policy is kept, and compression is deterministic. `official`
    is theirs, in float32.
    """

    name: ClassVar[str] = "prunenet"
    source: ClassVar[str] = "Sengupta, Chaudhary, Chakraborty (2025), arXiv:2501.15296, LCS2-IIITD/PruneNet"
    equation: ClassVar[str] = (
        r"s_i = \theta^\top \phi(w_i), \quad \max_\theta \; \mathbb{E}_{K \sim \mathrm{PL}(s)} "
        r"\left[ \frac{1}{\sup_x \lvert F_{\sigma(W)}(x) - F_{\sigma(W_K)}(x) \rvert} \right]"
    )
    card: ClassVar[Card] = Card(
        sees="the first FFN matrix alone, through a trained policy",
        costs="d + 1 products a neuron once trained; training takes minutes and sees no text",
        defaults=(
            "20 episodes, AdamW 1e-3, γ 0.99 are the paper's; `corrected` mends the authors' update, `official` is "
            "theirs"
        ),
        fails=(
            "its reward, the KS distance of the spectrum, does not order the cuts of the embedded model by what they "
            "cost"
        ),
    )

    variant: str = knob(
        "corrected",
        choices=("corrected", "official"),
        help="how the policy is trained and what it sees; a policy file brings its own",
    )
    policy: str = knob(
        "auto",
        path=True,
        help="auto: the one that ships for this model, or one trained on first use; or a policy file's path",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.policy, str) or not self.policy:
            raise ValueError(
                f"{self.name}: policy is auto or the path of a policy file, in quotes; got {self.policy!r}"
            )

    def rank(self, model: Model, blocks: Sequence[FeedForward], progress: Progress) -> Sequence[Ranking]:
        from sparsity_core.kinds import Ranking
        from sparsity_core.methods.weights.prunenet.find import find_policy

        policy = find_policy(model, self.variant, self.policy, lambda share, doing: progress(0.9 * share, doing))
        found = []
        for block in blocks:
            progress(0.9 + 0.1 * block.layer / len(blocks), f"scores of layer {block.layer + 1}")
            found.append(Ranking(policy.scores(block)))
        return found
