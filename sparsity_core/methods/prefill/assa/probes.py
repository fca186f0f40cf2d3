"""The probe queries' attention, by which keys are judged, and what it says of the keys that were left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sparselens_kernels import Window

from sparsity_core.attention import probabilities
from sparsity_core.kinds import PromptView

_LAST = 32  # probes that say what a block leaves out
_RANK, _RIDGE = 8, 0.1  # of the map that stands in for what is left out


@dataclass(frozen=True, eq=False)
class Probes:
    """The last queries of each block of a prompt."""

    at: torch.Tensor  # int64 [P], ascending
    rows: torch.Tensor  # float32 [H, P, T]: their attention

    @classmethod
    def of(cls, view: PromptView, block: int, last: int) -> Probes:
        n, device = view.n_tokens, view.k.device
        ends = torch.arange(block, n + block, block, device=device).clamp_max(n)
        at = (ends[:, None] - torch.arange(last, 0, -1, device=device)).flatten()
        at = at[at >= 0].unique()
        return cls(at, probabilities(view, at))

    @property
    def pairs(self) -> int:
        """Products of a probe and a key that it took, per query head."""
        return int((self.at + 1).sum())

    def before(self, n: int) -> Probes:
        count = int((self.at < n).sum())
        return Probes(self.at[:count], self.rows[:, :count, :n])

    def importance(self, n_kv: int, seen_by: torch.Tensor | None = None) -> torch.Tensor:
        """[Hkv, P, T]: what each key had got by each probe, the mean over those so far that could see it, of a KV head's heads.

        With `seen_by` bool [Hkv, P, T] a probe looks at those keys alone.
        """
        rows = self.rows.unflatten(0, (n_kv, -1))
        if seen_by is not None:
            rows = rows * seen_by[:, None]
            rows = rows / rows.sum(-1, keepdim=True).clamp_min(1e-30)
        key = torch.arange(rows.shape[-1], device=rows.device)
        could = (key <= self.at[:, None]).cumsum(0)
        return rows.sum(1).cumsum(1) / could.clamp_min(1)

    def near(self, window: Window) -> torch.Tensor:
        """bool [P, T]: the keys in each probe's window, and those after it."""
        return window.shows(0, self.at[:, None], torch.arange(self.rows.shape[2], device=self.at.device))

    def left_out(self, kept: torch.Tensor, window: Window) -> torch.Tensor:
        """[H, P, T]: the attention of the last probes to keys that `kept` bool [Hkv, T] and their window leave out."""
        last = Probes(self.at[-_LAST:], self.rows[:, -_LAST:])
        out = ~(kept[:, None] | last.near(window))  # [Hkv, P, T]
        return last.rows * out.repeat_interleave(len(last.rows) // len(kept), 0)


Correction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def mean_value(probes: Probes, kept: torch.Tensor, window: Window, v: torch.Tensor) -> Correction:
    """What is left out counts by its share of the probes' attention, with its mean value v [Hkv, T, Dv] under that attention.

    The correction takes a block's queries [H, R, D] and its output [H, R, Dv].
    """
    lost = probes.left_out(kept, window).mean(1)  # [H, T]
    share = lost.sum(-1)[:, None, None]
    group = len(lost) // len(v)
    mean = (lost.unflatten(0, (-1, group)) @ v.float()).flatten(0, 1)[:, None] / share.clamp_min(1e-30)
    return lambda q, out: (1 - share) * out + share * mean


def low_rank(probes: Probes, kept: torch.Tensor, window: Window, q: torch.Tensor, v: torch.Tensor) -> Correction:
    """A map from queries to what the dense output has beyond the sparse one, fitted to the probes by ridge regression.

    q [H, T, D] and v [Hkv, T, Dv] are the prompt's. The map is cut to a few of its singular directions.
    """
    group = len(q) // len(v)
    lost = probes.left_out(kept, window)  # [H, P, T]
    rows = probes.rows[:, -lost.shape[1] :]
    values = v.float().repeat_interleave(group, 0)
    left = 1 - lost.sum(-1, keepdim=True)
    residual = rows @ values - (rows - lost) @ values / left.clamp_min(1e-6)
    x = _with_one(q[:, probes.at[-lost.shape[1] :]].float())
    gram = x.mT @ x
    ridge = _RIDGE * gram.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    found = torch.linalg.solve(gram + ridge * torch.eye(x.shape[2], device=x.device), x.mT @ residual)  # [H, D + 1, Dv]
    u, s, vh = torch.linalg.svd(found, full_matrices=False)
    down, up = u[..., :_RANK] * s[:, None, :_RANK], vh[:, :_RANK]
    return lambda q, out: out + _with_one(q.float()) @ down @ up


def _with_one(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2)
