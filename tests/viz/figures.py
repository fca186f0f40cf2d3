"""What tests of figures share: a column by layer, one layer of a drawing, and how close numbers must be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsity_core.record.trace import Trace
from tests.traces import NEVER, named

NAN = np.nan
HEADS: list[int | str] = [0, 1, "first", "last"]


def by_layer(table: pd.DataFrame, column: str) -> list[list[Any]]:
    return [rows[column].tolist() for _, rows in table.groupby("layer", sort=True)]


def same(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(wanted, np.float64), rtol=1e-6)


def layer_named(figure: go.Figure, name: str) -> Any:
    (found,) = [data for data in figure.data if data.name == name]
    return found


def other(**changes: Any) -> Trace:
    """Head 0 of layer 0 drops tokens 1, 2, 5 at steps 3, 4, 5; every other head drops nothing."""
    evicted_at = np.full((2, 2, NEVER), NEVER, np.int32)
    evicted_at[0, 0, [1, 2, 5]] = [4, 5, 6]
    return named("eviction=h2o(budget=3)", evicted_at=evicted_at, **changes)
