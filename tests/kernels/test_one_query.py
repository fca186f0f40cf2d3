"""A decode step's scan on the CPU against the reference, which takes it for a block of one."""

from __future__ import annotations

import pytest
import torch
from sparselens_kernels import NEVER
from sparselens_kernels.evict_scan import one_query, reference, walk_cpu

from tests.kernels.backends import assert_close, tokens


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "numbers",
    [
        {"decay": 0.3},
        {"recent": 12},  # no choice
        {"scored": False, "initial": 1},
        {"decay": 0.9, "n_sink": 2, "recent": 3, "reduction": "mean", "softcap": 2.0},
        {"decay": 0.0, "shared": True, "weight": 1},
        {"recent": 3, "reduction": "max", "window": 6, "protected": 1},
        {"recent": 3, "n_sink": 1, "until": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("budget", [12, 13, (12, 9)], ids=str)
def test_one_query_by_itself_is_a_block_of_one(numbers, budget, dtype):
    if numbers.get("shared") and budget == (12, 9):
        pytest.skip("heads that choose together have one budget")
    held = 9 if budget == (12, 9) else 12
    q, k, v = (x.to(dtype) for x in tokens(31, n_batch=2, n_kv=2, group=3, n=13, dim=16))
    positions = torch.arange(0, 36, 3).expand(2, 2, 12).clone()
    positions[:, 1, : 12 - held] = -1
    draw = torch.Generator().manual_seed(32)
    given = {
        "initial": torch.rand(2, 2, 13, generator=draw, dtype=dtype),
        "weight": torch.rand(2, 2, 13, generator=draw, dtype=dtype),
        "protected": torch.rand(2, 1, 13, generator=draw) < 0.3,
        "until": torch.where(torch.rand(2, 1, 13, generator=draw) < 0.3, 20, NEVER).int(),
    }
    given["until"][..., -1] = NEVER  # a query sees its own key
    all_numbers = {
        "budget": budget if isinstance(budget, tuple) else (budget,) * 2,
        **{"decay": 1.0, "n_sink": 0, "recent": 0, "scored": True, "weight": None, "initial": 0.0, "reduction": "sum"},
        **{"scale": 0.25, "softcap": None, "window": None, "until": None, "protected": None, "shared": False},
        **{name: given.get(name, value) for name, value in numbers.items()},
        "positions": positions,
        "score": torch.rand(2, 2, 12, generator=draw, dtype=dtype),
        "start": 36,
        "snapshot_steps": (0,),
    }
    found = one_query.evict_scan(q[:, :, -1:], k, v, **all_numbers)
    expected = reference.evict_scan(q[:, :, -1:], k, v, **all_numbers, sink_q=None, mask=None, walk=walk_cpu.walk)[:5]
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    assert torch.equal(found[1], expected[1])
    for one, block in zip(found, expected, strict=True):
        assert one.dtype == block.dtype
        assert_close(one, block, tolerance)
