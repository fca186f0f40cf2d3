"""Which earlier keys each query of a prompt may see, as a union of simple terms, never as T × T numbers.

A term answers for any queries and keys that are asked for: [lists, R] queries against [lists, C] keys, one list per KV head or
one per query head. All that a term shows is still causal: the mask adds that, and a query always sees its own key.

Arrays are torch tensors where a mask is computed with, and NumPy's where it is read from a record: each line serves both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

Array = Any  # a torch.Tensor or a numpy.ndarray


@dataclass(frozen=True, eq=False)
class Term(ABC):
    """One pattern of a mask; axes: lists (1 serves all), R queries, C keys."""

    @abstractmethod
    def shows(self, head: Array, query: Array, key: Array) -> Array:
        """bool: whether this query sees this key in this list; arrays that broadcast, or a number each."""

    @abstractmethod
    def columns(self, start: int, end: int, key: Array) -> Array:
        """bool [lists or 1, end]: of the keys 0 … end − 1 those that any of the queries start … end − 1 sees, or more."""

    def whole(self, start: int, end: int, key: Array) -> Array | None:
        """bool [lists or 1, end]: keys that all of these queries see, or fewer; None where none are known."""
        return None

    def varies(self, start: int, end: int) -> bool:
        """Whether queries start … end − 1 may be shown different keys; False where one of them answers for all."""
        return True

    def arrays(self) -> dict[str, Array]:
        """The term's arrays by the names of their fields."""
        return {name: value for name, value in vars(self).items() if hasattr(value, "shape")}

    def numbers(self) -> dict[str, int]:
        """Its other fields, but those that are None."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}


@dataclass(frozen=True, eq=False)
class Window(Term):
    """Each query sees the last `width` keys, its own among them; with a `block`, those of the first query of its block."""

    width: int
    block: int = 1

    def shows(self, head: Array, query: Array, key: Array) -> Array:
        return key > self._first(query) - self.width

    def columns(self, start: int, end: int, key: Array) -> Array:
        return (key > self._first(start) - self.width)[None]

    def whole(self, start: int, end: int, key: Array) -> Array | None:
        return (key > self._first(end - 1) - self.width)[None]

    def varies(self, start: int, end: int) -> bool:
        return start // self.block != (end - 1) // self.block

    def _first(self, query: Array) -> Array:
        return query // self.block * self.block

    def tiles(self, side: int, n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """As `KeyMask.tiles`: [1, tiles, tiles]."""
        start = torch.arange(0, n, side, device=device)
        last = (start + side).clamp_max(n) - 1
        return tuple(
            (key > self._first(query)[:, None] - self.width)[None] for key, query in ((last, start), (start, last))
        )


@dataclass(frozen=True, eq=False)
class Columns(Term):
    """Some keys are seen by all later queries, or by those of `queries` alone."""

    kept: Array  # bool [lists or 1, T]
    queries: Array | None = None  # bool [lists or 1, T]

    def shows(self, head: Array, query: Array, key: Array) -> Array:
        found = self.kept[_own(self.kept, head), key]
        return found if self.queries is None else found & self.queries[_own(self.queries, head), query]

    def columns(self, start: int, end: int, key: Array) -> Array:
        found = self.kept[:, :end]
        return found if self.queries is None else found & self.queries[:, start:end].any(1)[:, None]

    def whole(self, start: int, end: int, key: Array) -> Array | None:
        found = self.kept[:, :end]
        return found if self.queries is None else found & self.queries[:, start:end].all(1)[:, None]

    def varies(self, start: int, end: int) -> bool:
        return self.queries is not None


@dataclass(frozen=True, eq=False)
class BlockColumns(Term):
    """As `Columns`, with keys of its own for every block of `block` queries."""

    kept: Array  # bool [lists or 1, query blocks, T]
    block: int

    def shows(self, head: Array, query: Array, key: Array) -> Array:
        return self.kept[_own(self.kept, head), query // self.block, key]

    def columns(self, start: int, end: int, key: Array) -> Array:
        return self._rows(start, end).any(1)

    def whole(self, start: int, end: int, key: Array) -> Array | None:
        return self._rows(start, end).all(1)

    def varies(self, start: int, end: int) -> bool:
        return start // self.block != (end - 1) // self.block

    def _rows(self, start: int, end: int) -> Array:
        return self.kept[:, start // self.block : (end - 1) // self.block + 1, :end]


@dataclass(frozen=True, eq=False)
class Blocks(Term):
    """Blocks of queries see blocks of keys."""

    kept: Array  # bool [lists or 1, query blocks, key blocks]
    block: int

    def shows(self, head: Array, query: Array, key: Array) -> Array:
        return self.kept[_own(self.kept, head), query // self.block, key // self.block]

    def columns(self, start: int, end: int, key: Array) -> Array:
        return self._rows(start, end).any(1)[:, key // self.block]

    def whole(self, start: int, end: int, key: Array) -> Array | None:
        return self._rows(start, end).all(1)[:, key // self.block]

    def varies(self, start: int, end: int) -> bool:
        return start // self.block != (end - 1) // self.block

    def _rows(self, start: int, end: int) -> Array:
        return self.kept[:, start // self.block : (end - 1) // self.block + 1]

    def tiles(self, side: int, n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """As `KeyMask.tiles`: how many of a tile's blocks are kept, by two products."""
        start = torch.arange(0, n, side, device=device)[:, None]
        first = torch.arange(0, n, self.block, device=device)
        touches = ((first < (start + side).clamp_max(n)) & (first + self.block > start)).float()  # [tiles, blocks]
        kept = self.kept[:, : len(first), : len(first)].float()
        return touches @ kept @ touches.T > 0.5, touches @ (1.0 - kept) @ touches.T < 0.5


@dataclass(frozen=True, eq=False)
class Diagonals(Term):
    """Each query sees the keys at some distances: 0 is its own key."""

    distances: Array  # bool [lists or 1, T]

    def shows(self, head: Array, query: Array, key: Array) -> Array:
        return self.distances[_own(self.distances, head), abs(query - key)]

    def columns(self, start: int, end: int, key: Array) -> Array:
        total = self.distances.cumsum(1)  # the queries see this key at distances from start − key to end − 1 − key
        return total[:, end - 1 - key] > total[:, abs(start - key) - 1] * (key < start)


@dataclass(frozen=True, eq=False)
class Buckets(Term):
    """A query sees the keys that fall into its own bucket in any of some rounds of hashing."""

    of_query: Array  # int [lists or 1, rounds, T]
    of_key: Array  # int [lists or 1, rounds, T]

    def shows(self, head: Array, query: Array, key: Array) -> Array:
        own, found = _own(self.of_key, head), False
        for i in range(self.of_key.shape[1]):
            found = found | (self.of_query[own, i, query] == self.of_key[own, i, key])
        return found

    def columns(self, start: int, end: int, key: Array) -> Array:
        lists = np.arange(len(self.of_key)).reshape(-1, 1, 1)
        return self.shows(lists, key[start:end, None], key).any(1)


TERMS: dict[str, type[Term]] = {
    each.__name__: each for each in (Window, Columns, BlockColumns, Blocks, Diagonals, Buckets)
}


@dataclass(frozen=True, eq=False)
class KeyMask:
    """The union of its terms below the diagonal, over T tokens. `lists` is the number of KV heads, or of query heads.

    `scoring_flops` is what it cost to find the mask, over all heads of the layer. `correct` takes the attention's output
    [H, T, Dv] under the mask and adds what stands in for the keys that it hides. `instead` are keys [Hkv, T, D] and values
    [Hkv, T, Dv] that are read in place of the layer's own, where a key stands for others.
    """

    terms: Sequence[Term]
    lists: int
    n_tokens: int
    scoring_flops: int = 0
    correct: Callable[[Array], Array] | None = None
    instead: tuple[Array, Array] | None = None

    def shows(self, head: Array, query: Array, key: Array) -> Array:
        """bool: whether this query sees this key in this list; arrays that broadcast, or a number each."""
        found = key == query
        for term in self.terms:
            found = found | term.shows(head, query, key)
        return found & (key <= query)

    def sees(self, query: Array, key: Array) -> Array:
        """bool [lists or 1, R, C] of queries [R] and keys [lists or 1, C]."""
        return self.shows(np.arange(self.lists).reshape(-1, 1, 1), query[:, None], key[:, None])

    def rows(self, start: int, end: int, every: Array, key: Array | None = None) -> Array:
        """bool [lists or 1, end − start, C]: what queries start … end − 1 see of keys [lists or 1, C].

        `every` is 0, 1, 2, … in the arrays' own kind; without `key` it is the keys 0 … end − 1.
        """
        head = np.arange(self.lists).reshape(-1, 1, 1)
        query, key = every[start:end, None], (every[None, :end] if key is None else key)[:, None]
        found = key == query
        for term in self.terms:
            found = found | term.shows(head, query if term.varies(start, end) else query[:1], key)
        return found & (key <= query)

    def columns(self, start: int, end: int, key: Array) -> Array:
        """bool [lists or 1, end]: of the keys 0 … end − 1 those that any of the queries start … end − 1 sees, or more."""
        found = (key >= start)[None]
        for term in self.terms:
            found = found | term.columns(start, end, key)
        return found

    def whole(self, start: int, end: int, key: Array) -> Array:
        """bool [lists or 1, end]: keys that all of the queries start … end − 1 see, or fewer."""
        found = (key < 0)[None]
        for term in self.terms:
            own = term.whole(start, end, key)
            found = found if own is None else found | own
        return found & (key <= start)

    def tiles(self, side: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """bool [lists or 1, tiles, tiles]: the tiles of `side` × `side` of which something is seen, or more, and those that
        are seen whole, or fewer. For a mask that is `in_blocks`: a few products, whatever the length."""
        n = self.n_tokens
        start = torch.arange(0, n, side, device=device)
        row, column = start[:, None], start
        some, whole = (row == column)[None], torch.zeros(1, len(start), len(start), dtype=torch.bool, device=device)
        for term in self.terms:
            if not isinstance(term, Window | Blocks):
                raise ValueError(f"{type(term).__name__} shows keys that lie anywhere, not in tiles")
            any_of, all_of = term.tiles(side, n, device)
            some, whole = some | any_of, whole | all_of
        last = (column + side).clamp_max(n) - 1
        return some & (column <= row), whole & (last <= row)

    @property
    def in_blocks(self) -> bool:
        """Whether what it shows lies in windows and blocks; else it is keys that may lie anywhere."""
        return all(isinstance(term, Window | Blocks) for term in self.terms)

    def cpu(self) -> KeyMask:
        """The same mask, its tensors in the host's memory."""
        return replace(
            self, terms=[replace(term, **{n: x.cpu() for n, x in term.arrays().items()}) for term in self.terms]
        )

    def grouped(self, found: Array, n_kv: int, heads: slice = slice(None)) -> Array:
        """A tensor [lists or 1, R, C] of all heads → [KV heads, 1 or G, R, C] of some KV heads."""
        return found.expand(self.lists, -1, -1).unflatten(0, (n_kv, -1))[heads]


def _own(values: Array, head: Array) -> Array:
    """The list of `values` that serves `head`; one list serves all."""
    return 0 if len(values) == 1 else head
