from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, PrefillMethod, PromptView, knob, register

if TYPE_CHECKING:
    from sparselens_kernels import KeyMask


@register
@dataclass(frozen=True)
class MInference(PrefillMethod):
    """Vertical-slash: the last queries' attention ranks the keys and the distances that every query then sees.

    Looks ahead: the prompt's last queries decide for its first. The authors choose one of three patterns for each head
    offline; nearly all of their heads get this one.
    """

    name: ClassVar[str] = "minference"
    source: ClassVar[str] = "arXiv:2407.02490; microsoft/MInference"
    equation: ClassVar[str] = (
        r"A = \operatorname{softmax}(Q_{-w:} K^\top / \sqrt{D}),\quad"
        r"M_{q,k} = [\,k \in \operatorname{top}_v \textstyle\sum_q A_{q,k}\,] \lor"
        r"[\,q - k \in \operatorname{top}_s \textstyle\sum_q A_{q,q-d}\,]"
    )
    card: ClassVar[Card] = Card(
        sees="the attention of the prompt's last 64 queries, which looks ahead",
        costs="64 · T products of D a query head, and the sums along columns and diagonals",
        defaults=(
            "64 last queries and 30 first keys, as in the authors' code; theirs searches the widths for each head, "
            "ours are 256 and 256"
        ),
        fails=(
            "where the last queries are not typical of the prompt; a loss of the prompt's own text would be "
            "flattered, and is not given"
        ),
    )

    vertical: int = knob(256, low=16, high=4096, at_least=1, at_most=10**9, help="keys that all queries see")
    slash: int = knob(
        256, low=16, high=8192, at_least=1, at_most=10**9, help="distances at which all queries see a key"
    )
    probes: int = knob(64, low=1, high=256, at_least=1, at_most=4096, help="last queries, which rank both")
    n_sink: int = knob(30, low=0, high=128, at_least=0, at_most=10**6, help="first keys, seen whatever their rank")

    @property
    def looks_ahead(self) -> bool:
        return True

    @property
    def per_query_head(self) -> bool:
        return True

    def mask(self, view: PromptView) -> KeyMask:
        import torch
        from sparselens_kernels import Columns, Diagonals, KeyMask

        from sparsity_core.attention import diagonal_sums, probabilities, probing_flops

        n, n_heads = view.n_tokens, view.q.shape[0]
        queries = torch.arange(max(0, n - self.probes), n, device=view.q.device)
        rows = probabilities(view, queries)
        columns, distances = rows.sum(1), diagonal_sums(rows, queries)
        columns[:, : self.n_sink] = float("inf")
        kept = torch.zeros_like(columns, dtype=torch.bool)
        kept.scatter_(1, columns.topk(min(n, max(self.vertical, self.n_sink)), dim=1).indices, True)
        near = torch.zeros_like(kept).scatter_(1, distances.topk(min(n, self.slash), dim=1).indices, True)
        return KeyMask([Columns(kept), Diagonals(near)], n_heads, n, probing_flops(view, len(queries) * n))
