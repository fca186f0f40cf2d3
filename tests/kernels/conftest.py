"""Memory that nobody wrote is nan in every test of a kernel."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty comes filled with nan, so that an element nobody writes shows up."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.zeros(3).new_empty(5).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
