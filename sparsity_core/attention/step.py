"""One attention call on its way through a pipeline's stages, and what every stage answers to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sparselens_kernels import EMPTY, NEVER, KeyMask, staying

from sparsity_core.models import AttentionCall
from sparsity_core.record import Part


@dataclass
class LayerKeys:
    """What one layer's cache holds of B equally long texts, and from which query on each of their keys is out of sight.

    The cache is as wide as the head that holds most. The others begin with empty slots, of position −1, which stands for
    the place after the last in what is kept by position: nothing of a text is there, and no query sees it.
    """

    positions: torch.Tensor  # int64 [B, Hkv, held], ascending
    evicted_at: (
        torch.Tensor
    )  # int32 [B, Hkv, T + 1]: the first query that no longer sees the key, whichever stage hid it
    # int32 [B, T + 1]: the same for what hides a key from all heads at once, the gate and the user's rules
    hidden_at: torch.Tensor
    hides: bool  # whether anything may hide a key from all heads
    forced: bool  # whether the user's rules drop any
    alike: bool  # whether all heads hold the same keys: no eviction method parts them
    key_bytes: int = 0  # of one head's key and value

    @classmethod
    def empty(
        cls,
        batch: int,
        n_kv: int,
        n_tokens: int,
        device: torch.device,
        *,
        dropped: torch.Tensor | None,
        hides: bool,
        alike: bool,
    ) -> LayerKeys:
        """Of a cache that holds nothing yet; `dropped` bool [1 or B, T] are tokens that no later query may see."""
        keys = cls(
            positions=torch.empty(batch, n_kv, 0, dtype=torch.int64, device=device),
            evicted_at=torch.full((batch, n_kv, n_tokens + 1), NEVER, dtype=torch.int32, device=device),
            hidden_at=torch.full((batch, n_tokens + 1), NEVER, dtype=torch.int32, device=device),
            hides=hides or dropped is not None,
            forced=dropped is not None,
            alike=alike,
        )
        if dropped is not None:
            after = torch.arange(1, n_tokens + 1, dtype=torch.int32, device=device)
            keys.hidden_at[:, :-1] = torch.where(dropped.to(device), after, NEVER)
        keys.hidden_at[:, -1] = 0
        return keys

    @property
    def n_held(self) -> torch.Tensor:
        """int64 [B, Hkv]: how many keys each head holds."""
        return (self.positions != EMPTY).sum(2)

    @property
    def uneven(self) -> bool:
        """Whether some head holds fewer keys than another."""
        one_list = self.alike and len(self.positions) == 1
        return not one_list and bool((self.positions[..., :1] == EMPTY).any())

    def place(self, positions: torch.Tensor) -> torch.Tensor:
        """Where the keys at these positions stand in what is kept by position, [..., T + 1]."""
        return positions.remainder(self.hidden_at.shape[1])

    def hidden(self, positions: torch.Tensor) -> torch.Tensor:
        """int32 like `positions` [B, …]: from which query on these keys are hidden from all heads; 0: an empty slot."""
        return self.hidden_at.gather(1, self.place(positions).flatten(1)).view_as(positions)

    def hide(self, positions: torch.Tensor, at: torch.Tensor) -> None:
        """Hides the keys at `positions` [B, n] from the queries `at` [B, n] on, from every head."""
        place = self.place(positions)
        self.hidden_at.scatter_reduce_(1, place, at, "amin")
        every = place[:, None].expand(-1, self.evicted_at.shape[1], -1)
        self.evicted_at.scatter_reduce_(2, every, at[:, None].expand_as(every), "amin")

    def until(self, positions: torch.Tensor) -> torch.Tensor | None:
        """What `hidden` says of `positions` [B, Hkv, n]; None where nothing can be hidden from all heads."""
        return self.hidden(positions) if self.hides else None

    def keep(self, positions: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
        """Holds those of `positions` [B, Hkv, n] that are `alive`; returns their columns [B, Hkv, held], as `staying` does."""
        columns = staying(alive)
        self.positions = positions.gather(2, columns).masked_fill_(~alive.gather(2, columns), EMPTY)
        return columns


@dataclass
class Step:
    """One call and what the stages make of it. `start` is the position of its first query in the text."""

    call: AttentionCall
    start: int
    keys: LayerKeys
    before: torch.Tensor  # int64 [B, Hkv, past]: the cached keys' positions, as the call's first columns hold them
    generating: bool  # what is dropped leaves the cache; else one forward over the text simulates the drops
    out: torch.Tensor  # [B, H, Tq, Dv]
    mask: KeyMask | None = None  # the keys that each of the prompt's queries may see; None: all earlier ones
    pairs: int | None = None  # products of a query and a key that were computed; None: all the causal ones
    left: torch.Tensor | None = (
        None  # int64 [B, Hkv, held]: the call's columns that stay in the cache; None where all do
    )
    # Of a simulation: makes of the held keys [B, Hkv, n, D] and their positions [B, Hkv, n] what queries after the prompt see.
    later: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    @property
    def layer(self) -> int:
        return self.call.layer

    @property
    def reads(self) -> AttentionCall:
        """The call over the keys and values that its queries read."""
        return reading_through(self.mask, self.call)

    @property
    def new(self) -> torch.Tensor:
        """int64 [B, Hkv, Tq]: the positions of the call's own tokens."""
        end = self.start + self.call.n_queries
        return torch.arange(self.start, end, device=self.call.k.device).expand(*self.call.k.shape[:2], -1)

    @property
    def positions(self) -> torch.Tensor:
        """int64 [B, Hkv, Tk]: the positions of all the call's keys."""
        return torch.cat([self.before, self.new], dim=2)


class Stage:
    """One stage of a pipeline over one text. A stage overrides what it takes part in."""

    def answer(self, step: Step) -> torch.Tensor | None:
        """The step's whole output, where this stage needs none of the others for it."""
        return None

    def restrict(self, step: Step) -> torch.Tensor | None:
        """Hides keys from the step's queries before they attend.

        Returns bool [B, past], the cached columns that stay, where the others leave the cache of all heads at once.
        """
        return None

    def observe(self, step: Step) -> None:
        """Sees the step's output, and may put another in its place."""

    def keep(self, layer: int, columns: torch.Tensor) -> None:
        """Leaves only these columns [B, Hkv, held] of what it holds of a layer's cache: another stage cut it."""

    def nbytes(self, layer: int) -> int:
        """What it holds of a layer beside the cache."""
        return 0

    def record(self, n: int) -> Part | None:
        """What it did over the first n tokens of the one text, or of the batch's first; None where there is nothing to say."""
        return None


def reading_through(mask: KeyMask | None, call: AttentionCall) -> AttentionCall:
    """The call, with what a mask puts in place of its keys and values; the cache holds the layer's own."""
    if mask is None or mask.instead is None:
        return call
    return call.with_keys(*(x[None] for x in mask.instead))


def take(x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x [B, Hkv, keys, D] at columns [B, Hkv, n]; whole rows are copied, which takes a fifth of the time of `gather`."""
    batch, n_kv, n_keys, dim = x.shape
    first = n_keys * torch.arange(batch * n_kv, device=x.device).view(batch, n_kv, 1)
    return x.reshape(-1, dim).index_select(0, (columns + first).flatten()).view(batch, n_kv, -1, dim)


def stacked(parts: dict[int, Any]) -> Any:
    """[L, …]: the tensors of all layers, in order, as one NumPy array."""
    return torch.stack([parts[i] for i in sorted(parts)]).cpu().numpy()
