from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, PrefillMethod, PromptView, knob, register

if TYPE_CHECKING:
    import torch
    from sparselens_kernels import KeyMask


@register
@dataclass(frozen=True)
class FlexPrefill(PrefillMethod):
    """For each head, blocks or vertical-slash, as many as reach `coverage` of the estimated attention.

    A head whose pooled estimate of the last block's attention is near the true one (√JSD < tau) takes the fewest blocks of
    the pooled attention map; the others take the fewest keys and distances of the last block's own rows. Looks ahead.
    """

    name: ClassVar[str] = "flexprefill"
    source: ClassVar[str] = "arXiv:2502.20766; bytedance/FlexPrefill"
    equation: ClassVar[str] = (
        r"\sqrt{\mathrm{JSD}(\bar a \,\|\, \hat a)} < \tau:\; \min |S| \text{ with }"
        r"\textstyle\sum_{(i,j) \in S} \hat A_{ij} \ge \gamma"
    )
    card: ClassVar[Card] = Card(
        sees="the attention of the prompt's last block and the mean query and key of every block, which looks ahead",
        costs="a block's rows of T, and (T / block)² products of D a query head",
        defaults="γ = 0.9 and τ = 0.1 as in the paper; blocks of 64, where theirs are 128",
        fails="blocks whose keys differ, which their mean does not show",
    )

    coverage: float = knob(
        0.9, low=0.5, high=1.0, at_least=0.01, at_most=1.0, help="γ: share of the estimate that is kept"
    )
    tau: float = knob(
        0.1, low=0.0, high=1.0, at_least=0.0, at_most=1.0, help="below it a head's pooled estimate is trusted"
    )
    block: int = knob(64, low=16, high=256, at_least=1, at_most=10**6, help="tokens of a block (theirs: 128)")

    @property
    def looks_ahead(self) -> bool:
        return True

    @property
    def per_query_head(self) -> bool:
        return True

    def mask(self, view: PromptView) -> KeyMask:
        import torch
        from sparselens_kernels import Blocks, Columns, Diagonals, KeyMask

        from sparsity_core.attention import diagonal_sums, pooled, probabilities, probing_flops, smallest_set

        n, n_heads, device = view.n_tokens, view.q.shape[0], view.q.device
        side = -(-n // self.block)
        queries = torch.arange(max(0, n - self.block), n, device=device)
        rows = probabilities(view, queries)  # [H, block, T]
        columns, distances = rows.sum(1), diagonal_sums(rows, queries)
        q_means, k_means = (
            pooled(view.q, self.block),
            pooled(view.k, self.block).repeat_interleave(n_heads // view.k.shape[0], 0),
        )
        causal = torch.ones(side, side, dtype=torch.bool, device=device).tril()
        estimate = torch.softmax((q_means @ k_means.mT * view.scale).masked_fill(~causal, float("-inf")), dim=-1)
        last = torch.softmax(view.q[:, queries].float().mean(1)[:, None] @ k_means.mT * view.scale, dim=-1)[:, 0]
        padded = torch.nn.functional.pad(columns / len(queries), (0, side * self.block - n))
        trusted = _distance(padded.unflatten(1, (side, self.block)).sum(2), last) < self.tau  # [H]
        flat = (estimate / side).flatten(1)
        blocks = smallest_set(flat, self.coverage).view_as(estimate) & trusted[:, None, None]
        kept, near = (smallest_set(x, self.coverage) & ~trusted[:, None] for x in (columns, distances))
        pairs = len(queries) * n + side * side
        terms = [Blocks(blocks, self.block), Columns(kept), Diagonals(near)]
        return KeyMask(terms, n_heads, n, probing_flops(view, pairs))


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[H]: the square root of the Jensen–Shannon divergence of distributions a, b [H, blocks]."""
    middle = (a + b) / 2

    def divergence(p: torch.Tensor) -> torch.Tensor:
        return (p * (p.clamp_min(1e-30) / middle.clamp_min(1e-30)).log()).sum(-1)

    return ((divergence(a) + divergence(b)) / 2).clamp_min(0).sqrt()
