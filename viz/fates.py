"""What became of a key at a query: the stage that removed it, and how each stage's removals are drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sparsity_core.record import Trace, removed_at, removed_rows
from viz.looks import SKY, VERMILLION


@dataclass(frozen=True)
class Fate:
    """How the removals of one stage are drawn and told: by shape first, so that no colour is needed."""

    state: str  # of a token in the strip
    key: str  # in a legend
    told: str  # of one token
    rows: tuple[int, ...]  # which of `ROWS` rows of an atlas cell are filled
    colour: str | None  # of the cell; None: of the step that dropped it
    symbol: str
    width: float  # of the symbol's line


ROWS = 5  # of a cell in which a stage has a shape
FATES = {
    "gate": Fate("gated", "gate: dropped for good", "dropped by the gate", (0, 4), None, "square-open", 2),
    "prefill": Fate("hidden", "prefill: not shown", "hidden by the prefill stage", (1, 2, 3), VERMILLION, "line-ew", 5),
    "eviction": Fate("dropped", "eviction: dropped for good", "evicted", (0, 1, 2, 3, 4), None, "square", 0),
    "decode": Fate("unread", "decode: not read", "not read by the decode stage", (2,), SKY, "line-ew", 2),
}

FOR_GOOD = ("gate", "eviction")
_LOSSES = ("", "decode", "prefill", "eviction", "gate")  # from the least of them to the most


def removed_by(trace: Trace, step: int, head: int | str = "first", layer: int | None = None) -> np.ndarray:
    """object [L, T], or [T] of one layer: the stage that removed each key from the query at `step`, "" where none did.

    A step beyond the text, as of a longer one beside it, is its last.

    `head` is a KV head; "first" is the head that lost most, "last" the one that lost least: what a gate or an eviction drops
    is gone for good, what a prefill or a decode stage leaves out is gone from this query. What a decode stage did not read is
    not told where its choices were not kept (`choices_kept`).
    """
    step = min(step, trace.n_tokens - 1)
    known = trace if choices_kept(trace) else replace(trace, reading=None)
    if layer is None:
        codes = removed_at(known, step)
    else:
        codes = np.zeros((1, trace.n_kv_heads, trace.n_tokens), np.uint8)
        codes[0, :, : step + 1] = removed_rows(known, layer, step, step + 1)[:, 0]
    names = stage_names(trace)
    if head in ("first", "last"):
        loss = np.asarray([_LOSSES.index(name) if name in _LOSSES else 0 for name in names])[codes]
        found = np.asarray(_LOSSES, object)[loss.max(1) if head == "first" else loss.min(1)]
    else:
        found = names[codes[:, int(head)]]
    return found if layer is None else found[0]


def stage_names(trace: Trace) -> np.ndarray:
    """object [1 + stages]: what the numbers of `Trace.removed_by` say: "" for 0, then the stages that ran."""
    return np.asarray(["", *(text.partition("=")[0] for text in trace.stages)], object)


def removing(trace: Trace) -> list[str]:
    """The stages of a run that can remove keys, in order."""
    return [stage for stage in stage_names(trace) if stage in FATES]


def choices_kept(trace: Trace) -> bool:
    """Whether it is known which keys each query read: with a decode stage, of long texts it is not."""
    return trace.reading is None or bool(trace.reading.chosen.size)
