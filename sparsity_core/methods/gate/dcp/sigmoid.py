"""The sparse sigmoid of dynamic context pruning, and how keeps accumulate."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch

_CELLS = 4096  # of the solver's table
_FAR = 60.0  # σ_a of −60 is below 1e−26 for every a
_LEAST = -80.0  # log u; its exponential is still a normal float32


def log_sparse_sigmoid(x: torch.Tensor, a: float) -> torch.Tensor:
    """log σ_a(x), of x's shape; −inf where σ_a is 0. σ_1 is the sigmoid, and σ_∞ the step x > 0.

    p = σ_a(x) solves p^(a−1) − (1−p)^(a−1) = (a−1) x; it is 0 below −1/(a−1) and 1 above 1/(a−1), and its slope is
    1 / (p^(a−2) + (1−p)^(a−2)). Raises ValueError for a below 1.
    """
    if a < 1.0:
        raise ValueError(f"the sparse sigmoid has a ≥ 1; got {a}")
    if a == math.inf:
        return torch.zeros_like(x).masked_fill(x <= 0, -math.inf)
    if a - 1.0 < 1e-6:  # no further than 1e-6 from the sigmoid
        return torch.nn.functional.logsigmoid(x)
    found: torch.Tensor = _LogSparseSigmoid.apply(x, a)
    return found


class _LogSparseSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, a: float) -> torch.Tensor:
        least = _smaller(x.abs().clamp_max(_FAR), a - 1.0)
        p = torch.where(x < 0, least, 1.0 - least)
        ctx.save_for_backward(p)
        ctx.a = a
        return torch.where(x < 0, least.log(), torch.log1p(-least))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (p,) = ctx.saved_tensors
        inside = (p > 0) & (p < 1)
        safe = torch.where(inside, p, 0.5)
        slope = 1.0 / (safe ** (ctx.a - 1.0) + safe * (1.0 - safe) ** (ctx.a - 2.0))  # of log p
        return torch.where(inside, grads[0] * slope, 0.0), None


def _smaller(x: torch.Tensor, b: float) -> torch.Tensor:
    """u ≤ 1/2 with (1−u)^b − u^b = b x, for x ≥ 0; 0 from x = 1/b on. A table gives u within a percent, Newton the rest."""
    table, step = _table(b)
    table = table.to(x.device, x.dtype)
    cell = x / step
    left = cell.to(torch.int32).clamp_max(len(table) - 2)
    low, high = table.take(left.long()), table.take(left.long() + 1)
    u = torch.lerp(low, high, (cell - left).clamp_max(1.0)).exp()
    last = left == len(table) - 2  # u falls to 0 there, too fast for its logarithm: u ≪ 1 leaves b u + u^b = 1 − b x
    if bool(last.any()):
        rest = (1.0 - b * x[last]).clamp_min(math.exp(_LEAST))
        u[last] = torch.minimum(rest / b, rest ** (1.0 / b)).clamp_min(math.exp(_LEAST))
    for _ in range(3 if x.dtype == torch.float64 else 1):
        off = _excess(u, b) - b * x
        slope = b * ((1.0 - u) ** (b - 1.0) + u ** (b - 1.0))
        u = torch.minimum(torch.maximum(u + off / slope, u / 2), 2 * u).clamp_max(0.5)
    return u.masked_fill(x >= 1.0 / b, 0.0)


def _excess(u: torch.Tensor, b: float) -> torch.Tensor:
    """(1−u)^b − u^b, exact for small b and for small u."""
    log_rest = torch.log1p(-u)
    return -(b * log_rest).exp() * torch.expm1(b * (u.log() - log_rest))


@lru_cache(maxsize=4)
def _table(b: float) -> tuple[torch.Tensor, float]:
    """log u at evenly spaced x from 0 on, by bisection, and the spacing; the last, of x = 1/b, is finite."""
    with torch.inference_mode(False):
        x = torch.linspace(0.0, min(1.0 / b, _FAR), _CELLS + 1, dtype=torch.float64)
        low, high = torch.full_like(x, _LEAST), torch.full_like(x, math.log(0.5))
        for _ in range(64):
            middle = (low + high) / 2
            above = _excess(middle.exp(), b) > b * x
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return high, float(x[1])


def log_keep(x: torch.Tensor, a: float) -> torch.Tensor:
    """log I [..., T, T] of the gate's logits x [..., T, T], both [query, key]; 0 on the diagonal and above it."""
    return log_sparse_sigmoid(x, a).tril(-1).cumsum(-2)
