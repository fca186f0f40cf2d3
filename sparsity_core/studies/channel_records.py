"""What a study of channels found, as pages read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS
from sparsity_core.record import notebook_table

SHARES = tuple(2.0**-i for i in range(6))  # of the context, 1 to 1/32


def channel_counts(head_dim: int) -> tuple[int, ...]:
    """The numbers of channels r that pages offer and studies try; the last is all of them."""
    return (*(r for r in (4, 8, 16, 32, 64, 128) if r < head_dim), head_dim)


@dataclass(frozen=True, eq=False)
class ChannelStudy:
    """What a text tells about a model's channels."""

    channels: tuple[int, ...]  # the r that were tried
    queries: np.ndarray  # int32 [P]
    mass: np.ndarray  # float32 [statistic, L, Hkv, r, share], mean over the queries
    recall: np.ndarray  # likewise

    def _repr_html_(self) -> str:
        """How a notebook shows it: the attention found by the fewest channels, at an eighth of the context."""
        eighth = SHARES.index(0.125)
        facts = [("queries", f"{len(self.queries)}"), ("channels tried", ", ".join(map(str, self.channels)))]
        facts += [
            (
                f"mass by {statistic}, {self.channels[0]} channels, 1/8 of the keys",
                f"{self.mean('mass', statistic)[0, eighth]:.1%}",
            )
            for statistic in STATISTICS
        ]
        return notebook_table("Study of channels", facts)

    def mean(self, what: str, statistic: str) -> np.ndarray:
        """float32 [r, share]: mass or recall, the mean over layers and KV heads."""
        return getattr(self, what)[STATISTICS.index(statistic)].mean((0, 1))


@dataclass(frozen=True, eq=False)
class Read:
    """One layer's decode steps: what the labels rank and what the exact attention would, by query and key."""

    queries: np.ndarray  # int32 [P]
    exact: np.ndarray  # float32 [Hkv, P, T]: attention, the mean over the query heads; 0 where not visible
    rank: np.ndarray  # int32 [Hkv, P, T]: place by approximate score, 0 the best; T where a key is not visible
