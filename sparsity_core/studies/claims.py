"""The papers' headline claims, held against what the embedded model measures: same direction, other direction, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from sparsity_core.evaluate import Paired, paired, read_grid, read_sweep, sweep
from sparsity_core.kinds import Pipeline
from sparsity_core.work import ASSETS, Progress, cache_dir, silent

CLAIMS = ASSETS / "claims"
ROWS = (
    "pipeline",
    "line",
    "value",
    "n",
    "kv_share",
)  # of a claim's table: one a pipeline and passage; value: perplexity
SAME, OTHER, OPEN, NONE = "same direction", "other direction", "cannot be told apart", "no order is claimed"


@dataclass(frozen=True)
class Claim:
    """What a paper claims, in its setting, and how it is asked here."""

    name: str
    paper: str
    says: str
    setting: str
    reported: Mapping[str, str]  # the paper's own numbers
    ours: str  # how what runs here differs
    order: tuple[str, ...]  # pipelines, the better first; empty where no order is claimed

    @property
    def grid(self) -> Path:
        """The sweep that measures it."""
        return CLAIMS / f"{self.name}.yaml"


@cache
def claims() -> tuple[Claim, ...]:
    """Every claim, as `assets/claims/claims.yaml` has them."""
    import yaml

    read = yaml.safe_load((CLAIMS / "claims.yaml").read_text(encoding="utf-8"))
    return tuple(
        Claim(
            name,
            said["paper"],
            said["says"],
            said["setting"],
            {what: str(value) for what, value in said["reported"].items()},
            said["ours"],
            tuple(str(Pipeline.parse(text)) for text in said["order"]),
        )
        for name, said in read.items()
    )


def claim_named(name: str) -> Claim:
    """Raises ValueError where there is none of this name."""
    found = {claim.name: claim for claim in claims()}
    if name not in found:
        raise ValueError(f"there is no claim {name!r}; there are {', '.join(found)}")
    return found[name]


def shipped_rows(claim: Claim) -> pd.DataFrame:
    """The rows that ship, `ROWS`."""
    return pd.read_csv(CLAIMS / f"{claim.name}.csv", comment="#")


def shipped_with(claim: Claim) -> str:
    """What the rows that ship were measured with."""
    return (CLAIMS / f"{claim.name}.csv").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def own_rows(claim: Claim) -> pd.DataFrame | None:
    """The rows that this machine has measured, `ROWS`; None until all are there."""
    folder, wanted = _folder(claim), {cell.key for cell in read_grid(claim.grid).cells()}
    if not folder.is_dir():
        return None
    found = read_sweep(folder)
    found = found[found["key"].isin(wanted) & (found["error"] == "")]
    return found[list(ROWS)].reset_index(drop=True) if found["key"].nunique() == len(wanted) else None


def measure_claim(claim: Claim, progress: Progress = silent) -> pd.DataFrame:
    """Runs the claim's sweep on this machine, or what is missing of it, and returns its rows, `ROWS`.

    Raises RuntimeError, with the reason, where a cell failed, and whatever `progress` raises to cancel.
    """
    sweep(claim.grid, _folder(claim), processes=0, retry=True, progress=progress)
    found = own_rows(claim)
    if found is None:
        failed = read_sweep(_folder(claim))["error"]
        raise RuntimeError(
            f"a cell of {claim.grid.name} failed: {next((why for why in failed if why), 'no reason kept')}"
        )
    return found


def losses_of(rows: pd.DataFrame) -> pd.DataFrame:
    """float64 [passage, pipeline]: the mean −log p of each passage, nats."""
    wide = rows.pivot(index="line", columns="pipeline", values="value")
    return np.log(wide[list(dict.fromkeys(rows["pipeline"]))])


def pairs_of(claim: Claim, rows: pd.DataFrame) -> list[tuple[str, str, Paired]]:
    """Each pipeline of the order with the next one, which the paper finds worse, and their test over the passages."""
    losses = losses_of(rows)
    return [(a, b, paired(losses[a], losses[b])) for a, b in zip(claim.order, claim.order[1:], strict=False)]


def direction_of(claim: Claim, rows: pd.DataFrame) -> str:
    """SAME where every pair is, OTHER where any is the other way, OPEN where neither, NONE where no order is claimed."""
    found = [pair.verdict for _, _, pair in pairs_of(claim, rows)]
    if not found:
        return NONE
    return OTHER if "worse" in found else SAME if all(verdict == "better" for verdict in found) else OPEN


def _folder(claim: Claim) -> Path:
    return cache_dir() / "claims" / claim.name
