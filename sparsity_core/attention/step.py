"""One attention call on its way through a pipeline's stages, and what every stage answers to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sparselens_kernels import NEVER, KeyMask

from sparsity_core.models import AttentionCall
from sparsity_core.record import Part


@dataclass
class LayerKeys:
    """What one layer's cache holds, and from which query on each key of the text is out of sight."""

    positions: torch.Tensor  # int64 [1, Hkv, held], ascending
    evicted_at: torch.Tensor  # int32 [1, Hkv, T]: the first query that no longer sees the key, whichever stage hid it
    hidden_at: (
        torch.Tensor
    )  # int32 [T]: the same for what hides a key from all heads at once, the gate and the user's rules
    hides: bool  # whether anything may hide a key from all heads
    forced: bool  # whether the user's rules drop any
    alike: bool  # whether all heads hold the same keys: no eviction method parts them
    key_bytes: int = 0  # of one head's key and value

    @classmethod
    def empty(
        cls, n_kv: int, n_tokens: int, device: torch.device, *, dropped: torch.Tensor | None, hides: bool, alike: bool
    ) -> LayerKeys:
        """Of a cache that holds nothing yet; `dropped` bool [T] are tokens that no later query may see."""
        keys = cls(
            positions=torch.empty(1, n_kv, 0, dtype=torch.int64, device=device),
            evicted_at=torch.full((1, n_kv, n_tokens), NEVER, dtype=torch.int32, device=device),
            hidden_at=torch.full((n_tokens,), NEVER, dtype=torch.int32, device=device),
            hides=hides or dropped is not None,
            forced=dropped is not None,
            alike=alike,
        )
        if dropped is not None:
            forced = dropped.to(device).nonzero()[:, 0]
            keys.hidden_at[forced] = forced.int() + 1
        return keys

    def hide(self, positions: torch.Tensor, at: torch.Tensor) -> None:
        """Hides the keys at `positions` [n] from the queries `at` [n] on, from every head."""
        self.hidden_at[positions] = at
        self.evicted_at[..., positions] = self.evicted_at[..., positions].minimum(at)

    def until(self, positions: torch.Tensor) -> torch.Tensor | None:
        """int32 like `positions`: from which query on these keys are hidden from all heads; None where none can be."""
        return self.hidden_at[positions] if self.hides else None


@dataclass
class Step:
    """One call and what the stages make of it. `start` is the position of its first query in the text."""

    call: AttentionCall
    start: int
    keys: LayerKeys
    before: torch.Tensor  # int64 [1, Hkv, past]: the cached keys' positions, as the call's first columns hold them
    generating: bool  # what is dropped leaves the cache; else one forward over the text simulates the drops
    out: torch.Tensor  # [1, H, Tq, Dv]
    mask: KeyMask | None = None  # the keys that each of the prompt's queries may see; None: all earlier ones
    pairs: int | None = None  # products of a query and a key that were computed; None: all the causal ones
    left: torch.Tensor | None = None  # int64 [1, Hkv, n]: the call's columns that stay in the cache; None where all do

    @property
    def layer(self) -> int:
        return self.call.layer

    @property
    def new(self) -> torch.Tensor:
        """int64 [1, Hkv, Tq]: the positions of the call's own tokens."""
        end = self.start + self.call.n_queries
        return torch.arange(self.start, end, device=self.call.k.device).expand(1, self.call.n_kv, -1)

    @property
    def positions(self) -> torch.Tensor:
        """int64 [1, Hkv, Tk]: the positions of all the call's keys."""
        return torch.cat([self.before, self.new], dim=2)


class Stage:
    """One stage of a pipeline over one text. A stage overrides what it takes part in."""

    def answer(self, step: Step) -> torch.Tensor | None:
        """The step's whole output, where this stage needs none of the others for it."""
        return None

    def restrict(self, step: Step) -> torch.Tensor | None:
        """Hides keys from the step's queries before they attend.

        Returns int64 [n], the cached columns that stay, where the others leave the cache at once.
        """
        return None

    def observe(self, step: Step) -> None:
        """Sees the step's output, and may put another in its place."""

    def keep(self, layer: int, columns: torch.Tensor) -> None:
        """Leaves only these columns [1, Hkv, n] of what it holds of a layer's cache: another stage cut it."""

    def nbytes(self, layer: int) -> int:
        """What it holds of a layer beside the cache."""
        return 0

    def record(self, n: int) -> Part | None:
        """What it did over the first n tokens; None where there is nothing to say."""
        return None


def take(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x [1, Hkv, keys, D] at columns [1, Hkv, n]; whole rows are copied, which takes a fifth of the time of `gather`."""
    n_kv, n_keys, dim = x.shape[1:]
    rows = columns[0] + n_keys * torch.arange(n_kv, device=x.device)[:, None]
    return x.reshape(n_kv * n_keys, dim).index_select(0, rows.flatten()).view(1, n_kv, -1, dim)


def stacked(parts: dict[int, Any]) -> Any:
    """[L, …]: the tensors of all layers, in order, as one NumPy array."""
    return torch.stack([parts[i] for i in sorted(parts)]).cpu().numpy()
