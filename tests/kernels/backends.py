"""What the tests of the operations share: random inputs, a call on either backend, and how close its result must be.

Without a GPU the kernels run under Triton's interpreter (TRITON_INTERPRET=1), at about 20 ms a query.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

NAN = float("nan")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
both_backends = pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=needs_triton)])

# What rounding the output to the dtype costs; scores are float32 whatever the inputs.
OUT_TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SCORE_TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 5e-6, torch.bfloat16: 5e-6}


def tokens(seed, *, n_batch=1, n_kv=1, group=1, n=31, dim=64, dim_v=None):
    """Random q, k, v in float64."""
    draw = torch.Generator().manual_seed(seed)
    shapes = (n_batch, n_kv * group, n, dim), (n_batch, n_kv, n, dim), (n_batch, n_kv, n, dim_v or dim)
    return tuple(torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes)


def per_key(seed, k, low=0.0, high=1.0):
    draw = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(k.shape[:3], generator=draw, dtype=torch.float64)


def call(op, backend, q, k, v, *, dtype=None, **numbers):
    """The result with its tensors on the CPU. The reference runs in float64, Triton in `dtype` (float32)."""
    dtype = dtype or (torch.float64 if backend == "reference" else torch.float32)
    device = "cpu" if backend == "reference" else DEVICE

    def move(x):
        if not isinstance(x, torch.Tensor):
            return x
        return x.to(device, torch.promote_types(dtype, torch.float32) if x.is_floating_point() else x.dtype)

    numbers = {name: move(value) for name, value in numbers.items()}
    result = op(*(x.to(device, dtype) for x in (q, k, v)), backend=backend, **numbers)
    assert result.backend == backend
    return result._replace(**{f: x.cpu() for f, x in result._asdict().items() if isinstance(x, torch.Tensor)})


def assert_close(actual, expected, tolerance):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_same_scan(actual, expected, dtype):
    """Decisions equal exactly, numbers to the dtype's tolerance."""
    assert torch.equal(actual.evicted_at, expected.evicted_at)
    assert_close(actual.out, expected.out, OUT_TOLERANCE[dtype])
    assert_close(actual.score, expected.score, SCORE_TOLERANCE[dtype])
    assert_close(actual.threshold, expected.threshold, SCORE_TOLERANCE[dtype])
    assert_close(actual.snapshots, expected.snapshots, SCORE_TOLERANCE[dtype])


def realise(rows):
    """q, k, v such that at scale 1 query i gives key j the weight rows[i][j], and the output is the weights."""
    weights = torch.tensor(rows, dtype=torch.float64)
    n_queries, n_keys = weights.shape
    k = weights.clamp_min(1e-30).log().T
    return torch.eye(n_queries).double()[None, None], k[None, None].contiguous(), torch.eye(n_keys).double()[None, None]
