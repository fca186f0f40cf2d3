"""What some of a prompt's queries say of its keys: the rows by which prefill methods find their masks."""

from __future__ import annotations

import math

import torch

from sparsity_core.kinds import PromptView


def probabilities(view: PromptView, queries: torch.Tensor) -> torch.Tensor:
    """float32 [H, P, T]: the causal attention of queries [P] over all the prompt's keys."""
    group = view.q.shape[0] // view.k.shape[0]
    q = view.q[:, queries].float().unflatten(0, (-1, group)).flatten(1, 2)  # [Hkv, G · P, D]
    logits = (q @ view.k.float().mT * view.scale).view(view.q.shape[0], len(queries), -1)
    key = torch.arange(view.n_tokens, device=queries.device)
    return torch.softmax(logits.masked_fill_(key > queries[:, None], -math.inf), dim=-1)


def diagonal_sums(rows: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """[H, T]: what the rows [H, P, T] of queries [P] give to the key at each distance."""
    n_heads, _, n = rows.shape
    apart = (queries[:, None] - torch.arange(n, device=rows.device)).clamp_min(0)  # the rows are 0 above the diagonal
    return rows.new_zeros(n_heads, n).scatter_add_(1, apart.flatten().expand(n_heads, -1), rows.flatten(1))


def pooled(x: torch.Tensor, block: int) -> torch.Tensor:
    """[heads, ⌈T / block⌉, D]: the means of x [heads, T, D] over blocks of tokens, the last one maybe shorter."""
    n = x.shape[1]
    side = -(-n // block)
    padded = torch.nn.functional.pad(x.float(), (0, 0, 0, side * block - n)).unflatten(1, (side, block))
    count = torch.full((side, 1), float(block), device=x.device)
    count[-1] = n - (side - 1) * block
    return padded.sum(2) / count


def smallest_set(shares: torch.Tensor, coverage: float) -> torch.Tensor:
    """bool like shares [..., n]: the fewest of the largest whose sum is at least `coverage` of the whole."""
    order = shares.sort(dim=-1, descending=True)
    total = order.values.sum(-1, keepdim=True)
    before = order.values.cumsum(-1) - order.values
    kept = before < coverage * total * (1 - 1e-6)
    return torch.zeros_like(kept).scatter_(-1, order.indices, kept)


def probing_flops(view: PromptView, pairs: int) -> int:
    """Floating-point operations of so many products of a query and a key, and their softmax, for all query heads."""
    return view.q.shape[0] * pairs * (2 * view.q.shape[2] + 4)
