"""The prefill stage: which earlier keys a query of the prompt may see."""

from __future__ import annotations

from typing import ClassVar

from sparsity_core.kinds.method import Method


class PrefillMethod(Method):
    """Decides which earlier keys each query of the prompt may see; what comes after the prompt sees them all."""

    stage = "prefill"
    look_ahead: ClassVar[bool] = False  # whether a query's keys depend on tokens after it
