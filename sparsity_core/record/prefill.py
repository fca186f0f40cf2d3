"""What the prefill stage showed each query of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from sparsity_core.record.part import Axes, Part

if TYPE_CHECKING:
    from sparselens_kernels import KeyMask  # which loads torch


_UNKNOWN = np.zeros((0, 0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class PrefillRecord(Part):
    """How many keys each query saw, where they lie, and what that cost. Lists: KV heads, or query heads.

    A layer that reads everything shows each query all its earlier keys.
    """

    shown: Annotated[np.ndarray, Axes("int", "layer", "list", "key")]  # keys that each query of the prompt sees
    blocks: Annotated[np.ndarray, Axes("float", "layer", "list", "query_block", "key_block")]  # share of pairs seen
    block: int  # tokens of a block of `blocks`
    coverage: Annotated[
        np.ndarray, Axes("float", "layer", "head", "key")
    ]  # dense attention seen by each query; nan: unknown
    pairs: Annotated[
        np.ndarray, Axes("int", "layer")
    ]  # products of a query and a key that were computed, over all heads
    scoring_flops: Annotated[np.ndarray, Axes("int", "layer")]  # spent on finding the masks
    looks_ahead: bool  # the whole prompt was known to every mask
    patterns: Annotated[np.ndarray, Axes("int", "byte")]  # uint8: the arrays of all masks' terms, one after the other
    layouts: list[dict[str, Any]]  # of each layer's mask: what its terms are, and their arrays' shapes in `patterns`
    top_recall: Annotated[np.ndarray, Axes("float", "layer", "head", "probe", optional=True)] = field(
        default_factory=lambda: _UNKNOWN
    )  # of the fewest keys that hold 95 % of a query's dense attention, the share seen; nan: not measured
    top_precision: Annotated[np.ndarray, Axes("float", "layer", "head", "probe", optional=True)] = field(
        default_factory=lambda: _UNKNOWN
    )  # of the keys that a query sees, the share that is among those

    def mask(self, layer: int) -> KeyMask:
        """Which keys each of the prompt's queries saw in a layer, exactly; its arrays are NumPy's."""
        return unpacked(self.patterns, self.layouts[layer])


def packed(masks: Sequence[KeyMask]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """(uint8 [bytes], a plain layout for each mask), from which `unpacked` makes them again. Flags take a bit each."""
    parts: list[np.ndarray] = []
    layouts, place = [], 0
    for mask in masks:
        terms = []
        for term in mask.terms:
            plain = {"kind": type(term).__name__, **term.numbers()}
            for name, value in term.arrays().items():
                array = np.asarray(value)
                kept = (
                    np.packbits(array) if array.dtype == bool else np.ascontiguousarray(array, np.int32).view(np.uint8)
                )
                parts.append(kept.ravel())
                plain[name] = {"flags": array.dtype == bool, "shape": list(array.shape), "at": place}
                place += kept.size
            terms.append(plain)
        layouts.append({"lists": mask.lists, "tokens": mask.n_tokens, "flops": mask.scoring_flops, "terms": terms})
    return np.concatenate([np.zeros(0, np.uint8), *parts]), layouts


def unpacked(patterns: np.ndarray, layout: dict[str, Any]) -> KeyMask:
    """The mask that `packed` laid out so. Raises ValueError where the layout does not fit the bytes."""
    from sparselens_kernels import TERMS, KeyMask

    try:
        terms = []
        for plain in layout["terms"]:
            given = {name: _array(patterns, value) for name, value in plain.items() if name != "kind"}
            terms.append(TERMS[plain["kind"]](**given))
        return KeyMask(terms, layout["lists"], layout["tokens"], layout["flops"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("the masks of the prefill stage are damaged: run the spec again") from error


def _array(patterns: np.ndarray, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    count = int(np.prod(value["shape"], dtype=np.int64))
    if value["flags"]:
        bits = patterns[value["at"] : value["at"] + -(-count // 8)]
        return np.unpackbits(bits, count=count).astype(bool).reshape(value["shape"])
    return patterns[value["at"] : value["at"] + 4 * count].view(np.int32).reshape(value["shape"])
