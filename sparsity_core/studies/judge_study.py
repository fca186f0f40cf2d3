"""Whether the scores by which methods judge keys know what dropping a key does, as pages read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsity_core.record import notebook_table

FORESIGHT = "attention to come"  # the judge that has seen the queries after the step
ALL_LAYERS = -1  # the place of a drop from every layer at once
EFFECTS = {"kl": "KL to dense (nats)", "nll": "change of the loss (nats)"}


@dataclass(frozen=True, eq=False)
class JudgeStudy:
    """What J judges thought of K sampled drops, each made in P places, and what the drops did to the H queries after them."""

    step: int  # the last query that sees the dropped tokens
    width: int  # neighbouring tokens that one drop takes
    horizon: int  # H
    keys: np.ndarray  # int32 [K]: the first token of each drop
    places: np.ndarray  # int32 [P]: a layer, or ALL_LAYERS
    kl: np.ndarray  # float32 [P, K]: KL(dense ‖ dropped), mean over the queries, nats
    nll: np.ndarray  # float32 [P, K]: what is added to −log p of the next token, mean over the queries, nats
    noise: float  # the KL where nothing is dropped: rounding alone
    judges: tuple[str, ...]
    ranks: np.ndarray  # float32 [J, P, K]: mean rank of the dropped tokens, 0 the first to go, 1 the last
    left_out: tuple[tuple[str, str], ...]  # judges that gave no scores, and why

    def rho(self, effect: str = "kl") -> np.ndarray:
        """float64 [J, P]: Spearman's ρ of ranks and effect over the drops; nan where either is the same for all.

        1: what the judge would drop last is what the model would miss most. Of fewer than 4 drops nothing can be said.
        """
        found = getattr(self, effect)
        return np.array([[_spearman(r, e) for r, e in zip(ranks, found, strict=True)] for ranks in self.ranks])

    def interval(self, effect: str = "kl") -> tuple[np.ndarray, np.ndarray]:
        """(low, high), float64 [J, P] each: the 95 % interval of `rho` for a sample of K drops.

        By Fisher's z with the standard error √((1 + ρ²/2) / (K − 3)) of Bonett and Wright (2000), Psychometrika 65(1).
        """
        rho = self.rho(effect)
        with np.errstate(divide="ignore", invalid="ignore"):
            z, error = np.arctanh(rho), np.sqrt((1 + rho**2 / 2) / (len(self.keys) - 3))
        return np.tanh(z - 1.96 * error), np.tanh(z + 1.96 * error)

    def _repr_html_(self) -> str:
        """How a notebook shows it: each judge's ρ with its interval, for drops from all layers where there are such."""
        place, (low, high) = int(np.argmin(self.places)), self.interval()
        facts = [
            (judge, f"ρ = {rho:.2f} ({a:.2f} to {b:.2f})")
            for judge, rho, a, b in zip(self.judges, self.rho()[:, place], low[:, place], high[:, place], strict=True)
        ]
        where = "all layers" if self.places[place] == ALL_LAYERS else f"layer {self.places[place]}"
        return notebook_table(f"Judges of {len(self.keys)} drops from {where}", facts)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import rankdata

    if len(a) < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
