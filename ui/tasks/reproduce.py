"""A claim's sweep, as a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsity_core.work import Progress

if TYPE_CHECKING:
    import pandas as pd


def measure(name: str, progress: Progress) -> pd.DataFrame:
    from sparsity_core.studies import claim_named, measure_claim

    return measure_claim(claim_named(name), progress)
