"""Which earlier keys each query of a prompt may see, as a union of simple terms, never as T × T numbers.

A term answers for any queries and keys that are asked for: [lists, R] queries against [lists, C] keys, one list per KV head or
one per query head. All that a term shows is still causal: the mask adds that, and a query always sees its own key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch


class Term(ABC):
    """One pattern of a mask; axes: lists (1 serves all), R queries, C keys."""

    @abstractmethod
    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """bool [lists or 1, R, C] of queries [R] and keys [lists or 1, C], positions in the text."""

    def columns(self, start: int, end: int, device: torch.device) -> torch.Tensor:
        """bool [lists or 1, end]: the keys that any of the queries start … end − 1 sees, or more."""
        query, key = torch.arange(start, end, device=device), torch.arange(end, device=device)
        return (self.sees(query, key[None]) & (key <= query[:, None])).any(1)


@dataclass(frozen=True, eq=False)
class Window(Term):
    """Each query sees the last `width` keys, its own among them."""

    width: int

    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return key[:, None] > query[:, None] - self.width

    def columns(self, start: int, end: int, device: torch.device) -> torch.Tensor:
        return (torch.arange(end, device=device) > start - self.width)[None]


@dataclass(frozen=True, eq=False)
class Columns(Term):
    """Some keys are seen by all later queries, or by those of `queries` alone."""

    kept: torch.Tensor  # bool [lists or 1, T]
    queries: torch.Tensor | None = None  # bool [lists or 1, T]

    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        found = _at(self.kept, key)[:, None]
        return found if self.queries is None else found & self.queries[:, query, None]

    def columns(self, start: int, end: int, device: torch.device) -> torch.Tensor:
        found = self.kept[:, :end]
        return found if self.queries is None else found & self.queries[:, start:end].any(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class BlockColumns(Term):
    """As `Columns`, with keys of its own for every block of `block` queries."""

    kept: torch.Tensor  # bool [lists or 1, query blocks, T]
    block: int
    queries: torch.Tensor | None = None  # bool [lists or 1, T]

    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own = self.kept[:, query // self.block]  # [lists, R, T]
        lists = max(own.shape[0], key.shape[0])
        found = own.expand(lists, -1, -1).gather(2, key[:, None].expand(lists, len(query), -1))
        return found if self.queries is None else found & self.queries[:, query, None]

    def columns(self, start: int, end: int, device: torch.device) -> torch.Tensor:
        found = self.kept[:, start // self.block : (end - 1) // self.block + 1, :end].any(1)
        return found if self.queries is None else found & self.queries[:, start:end].any(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Blocks(Term):
    """Blocks of queries see blocks of keys."""

    kept: torch.Tensor  # bool [lists or 1, query blocks, key blocks]
    block: int

    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        own = self.kept[:, query // self.block]  # [lists, R, key blocks]
        lists = max(own.shape[0], key.shape[0])
        return own.expand(lists, -1, -1).gather(2, (key // self.block)[:, None].expand(lists, len(query), -1))

    def columns(self, start: int, end: int, device: torch.device) -> torch.Tensor:
        rows = self.kept[:, start // self.block : (end - 1) // self.block + 1].any(1)
        return rows.repeat_interleave(self.block, 1)[:, :end]


@dataclass(frozen=True, eq=False)
class Diagonals(Term):
    """Each query sees the keys at some distances: 0 is its own key."""

    distances: torch.Tensor  # bool [lists or 1, T]

    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        apart = (query[:, None] - key[:, None]).clamp_min(0)  # [lists, R, C]
        lists = max(self.distances.shape[0], apart.shape[0])
        flat = self.distances.expand(lists, -1).gather(1, apart.expand(lists, -1, -1).flatten(1))
        return flat.view(lists, *apart.shape[1:])

    def columns(self, start: int, end: int, device: torch.device) -> torch.Tensor:
        total = torch.nn.functional.pad(self.distances.int().cumsum(1), (1, 0))
        key = torch.arange(end, device=device)
        near, far = (start - key).clamp_min(0), end - key
        return total[:, far] > total[:, near]


@dataclass(frozen=True, eq=False)
class Buckets(Term):
    """A query sees the keys that fall into its own bucket in any of some rounds of hashing."""

    of_query: torch.Tensor  # int64 [lists, rounds, T]
    of_key: torch.Tensor  # int64 [lists, rounds, T]

    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        lists, rounds, _ = self.of_key.shape
        theirs = self.of_key.gather(2, key[:, None].expand(lists, rounds, -1))
        found: torch.Tensor = (self.of_query[:, :, query, None] == theirs[:, :, None]).any(1)
        return found


@dataclass(frozen=True, eq=False)
class KeyMask:
    """The union of its terms below the diagonal, over T tokens. `lists` is the number of KV heads, or of query heads.

    `scoring_flops` is what it cost to find the mask, over all heads of the layer.
    """

    terms: Sequence[Term]
    lists: int
    n_tokens: int
    scoring_flops: int = 0

    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """bool [lists, R, C] of queries [R] and keys [lists or 1, C]."""
        found = key[:, None] == query[:, None]
        for term in self.terms:
            found = found | term.sees(query, key)
        return (found & (key[:, None] <= query[:, None])).expand(self.lists, -1, -1)

    def rows(self, start: int, end: int, device: torch.device) -> torch.Tensor:
        """bool [lists, end − start, end]: what queries start … end − 1 see of the keys before `end`."""
        query, key = torch.arange(start, end, device=device), torch.arange(end, device=device)
        return self.sees(query, key[None])

    def columns(self, start: int, end: int, device: torch.device) -> torch.Tensor:
        """bool [lists, end]: the keys that any of the queries start … end − 1 sees, or more."""
        found = torch.arange(end, device=device)[None] >= start
        for term in self.terms:
            found = found | term.columns(start, end, device)
        return found.expand(self.lists, -1)

    def grouped(self, found: torch.Tensor, n_kv: int, heads: slice = slice(None)) -> torch.Tensor:
        """[lists, R, C] of all heads → [KV heads, 1 or G, R, C] of some KV heads."""
        grouped: torch.Tensor = found.unflatten(0, (n_kv, -1))[heads]
        return grouped


def _at(values: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """values [lists or 1, T] at keys [lists or 1, C] → [lists or 1, C]."""
    lists = max(values.shape[0], key.shape[0])
    return values.expand(lists, -1).gather(1, key.expand(lists, -1))
