"""The sparse sigmoid of dynamic context pruning, and the keeps that are made of it."""

from __future__ import annotations

import math

import pytest
import torch
from entmax import entmax_bisect

from sparsity_core.methods.gate.dcp.sigmoid import log_keep, log_sparse_sigmoid
from tests import oracles

SHARPNESS = [1.0, 1.00001, 1.001, 1.1, 1.5, 2.0, 3.0, 5.0, 8.0]


def p_of(x, a):
    return log_sparse_sigmoid(x, a).exp()


@pytest.mark.parametrize("a", SHARPNESS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_sparse_sigmoid_solves_its_equation(a, dtype):
    x = torch.cat([torch.linspace(-4, 4, 4001), torch.linspace(-0.2, 0.2, 4001)]).to(dtype)
    p, b = p_of(x, a), a - 1.0
    assert p.isfinite().all()
    if b == 0.0:
        torch.testing.assert_close(p, torch.sigmoid(x))
        return
    inside = (p > 0) & (p < 1)
    assert (p[x >= 1 / b] == 1).all() and (p[x <= -1 / b] == 0).all()
    found = (p.double() ** b - (1 - p.double()) ** b) / b
    slope = p.double() ** (b - 1) + (1 - p.double()) ** (b - 1)  # of x in p: what rounding p to its dtype costs
    rounding = 8 * torch.finfo(dtype).eps * slope.clamp_min(1) + 1e-15 / b  # the last is of the check itself
    assert ((found - x.double()).abs() <= rounding)[inside].all()
    assert (p.diff()[:4000] >= 0).all()


@pytest.mark.parametrize("a", [1.001, 1.1, 1.5, 2.0, 3.0])
def test_the_sparse_sigmoid_is_entmax_of_two_classes(a):
    """Of larger a entmax's own bisection is the less exact: its probabilities are the (a − 1)-th roots of differences."""
    x = torch.linspace(-3, 3, 1001, dtype=torch.float64)
    theirs = entmax_bisect(torch.stack([x, torch.zeros_like(x)], -1), alpha=a, n_iter=80)[:, 0]
    torch.testing.assert_close(p_of(x, a), theirs, rtol=0, atol=1e-9)


def test_the_sparse_sigmoid_by_hand():
    """a = 2 is the clipped line (x + 1) / 2; a = ∞ the step; at 0 every one is 1/2."""
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(p_of(x, 2.0), torch.tensor([0, 0, 0.25, 0.5, 0.625, 1, 1], dtype=torch.float64))
    assert p_of(x, math.inf).tolist() == [0, 0, 0, 0, 1, 1, 1]
    for a in SHARPNESS:
        assert float(p_of(torch.zeros(1, dtype=torch.float64), a)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="a ≥ 1"):
        log_sparse_sigmoid(x, 0.5)


@pytest.mark.parametrize("a", SHARPNESS)
def test_its_gradient_is_the_finite_difference(a):
    draw = torch.Generator().manual_seed(3)
    x = (torch.rand(5, 5, generator=draw, dtype=torch.float64) - 0.5) * 0.2  # inside the support of every a
    assert torch.autograd.gradcheck(lambda y: log_keep(y, a).exp(), x.requires_grad_())


@pytest.mark.parametrize("a", SHARPNESS)
def test_keeps_are_the_papers_products_and_never_nan(a):
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(13, 13, generator=draw, dtype=torch.float64, requires_grad=True)
    log_i = log_keep(x, a)

    def sigma(value):
        return float(p_of(torch.tensor(value, dtype=torch.float64), a))

    lower = torch.ones(13, 13, dtype=torch.float64).tril()
    torch.testing.assert_close(log_i.exp() * lower, oracles.gate_product(x.detach(), sigma))
    (log_i.exp().sum() + torch.softmax(log_i.masked_fill(lower == 0, -math.inf), -1)[:, 0].sum()).backward()
    assert not log_i.isnan().any() and x.grad.isfinite().all()
