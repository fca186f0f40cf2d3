"""A trace's tokens in words and as cells of the strip."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sparsity_core.record import Trace
from ui.strip import TokenCell
from ui.view import View
from viz.channels import mass_selected
from viz.fates import FATES, FOR_GOOD, choices_kept, removed_by, removing


def strip_cells(table: pd.DataFrame, at: View) -> list[TokenCell]:
    """The strip's cells, from a table that may say which tokens are contested."""
    contested = set(table.loc[table["contested"], "position"]) if "contested" in table else set()
    paired = set(table.loc[table["dropped_by"] == at.token, "position"])
    paired |= set(table.loc[(table["position"] == at.token) & (table["dropped_by"] >= 0), "dropped_by"])
    return [
        TokenCell(
            index=int(row.position),
            text=row.token,
            state=row.state,
            note=_note(row),
            group=int(row.group),
            contested=row.position in contested,
            paired=row.position in paired,
        )
        for row in table.itertuples()
    ]


def _note(row) -> str:  # type: ignore[no-untyped-def]
    score = "" if np.isnan(row.score) else f"; score {row.score:.3g}"
    if row.removed_by in FOR_GOOD:
        if row.dropped_by >= 0:
            return f"dropped by token {row.dropped_by}, “{row.dropped_while}”"
        return f"dropped at step {int(row.dropped_in)}, when “{row.dropped_while}” was read{score}"
    if row.removed_by:
        later = "" if np.isnan(row.dropped_in) else f"; dropped for good at step {int(row.dropped_in)}"
        return FATES[row.removed_by].told + later + score
    if row.ruled and row.state == "sink":
        return "kept: protected by your rule" + score
    return {"future": "not read yet", "sink": "kept: protected as a sink", "recent": "kept: protected as recent"}.get(
        row.state, "kept"
    ) + score


def tell_token(trace: Trace, at: View) -> str:
    """What became of the chosen token, in sentences, as Markdown with the token's own text inert."""
    token = min(at.token, trace.n_tokens - 1)
    where = f"layer {at.layer}, " + (
        f"KV head {at.head}" if isinstance(at.head, int) else f"the {at.head} head to drop it"
    )
    gone = int(trace.dropped_at(at.head)[at.layer, token])
    everywhere = trace.evicted_at[:, :, token]
    share = float((everywhere < trace.n_tokens).mean())
    own = f"Token {token} {_inert(trace.tokens[token])} ({trace.classes[token]})"
    by = int(trace.dropped_by(at.layer)[:, token].max())
    if by >= 0 and gone == by:
        how = f"was dropped in layer {at.layer} by token {by} {_inert(trace.tokens[by])}, from all heads"
    elif gone < trace.n_tokens:
        how = f"was dropped in {where} at step {gone - 1}, when token {gone - 1} {_inert(trace.tokens[gone - 1])} was read"
    else:
        how = f"stays to the end in {where}"
    text = f"{own} {how}. By the last step, {share:.0%} of all layers and heads have dropped it."
    dropped = int((trace.dropped_by(at.layer).max(axis=0) == token).sum())
    text += f" It dropped {dropped} token{'s' if dropped != 1 else ''} itself, paired with it above." if dropped else ""
    return text + tell_stages(trace, token, min(at.step, trace.n_tokens - 1))


def tell_shapes(trace: Trace) -> str:
    """How an atlas of several stages tells them apart, as sentences."""
    stages = removing(trace)
    if len(stages) < 2 and set(stages) <= set(FOR_GOOD):
        return ""
    shapes = {
        "gate": "an open cell lost its token to the gate",
        "prefill": "a thick bar is hidden from this query by the prefill stage",
        "decode": "a thin bar is cached and not read by this query",
    }
    told = "; ".join(shapes[stage] for stage in stages if stage in shapes)
    unknown = "" if choices_kept(trace) else "Which keys the decode stage read was not kept of so long a text. "
    return f"{told[0].upper()}{told[1:]}. {unknown}"


def tell_stages(trace: Trace, token: int, step: int) -> str:
    """Which stages keep a token from the query at `step`, over all layers and heads; "" where no two stages could."""
    stages = removing(trace)
    if token > step or (len(stages) < 2 and set(stages) <= set(FOR_GOOD)):
        return ""
    heads = [removed_by(trace, step, head)[:, token] for head in range(trace.n_kv_heads)]
    found = np.stack(heads, axis=1)
    read = "read" if choices_kept(trace) else "read, or left unread (which was not kept of so long a text)"
    parts = [(read, ""), *((FATES[stage].told, stage) for stage in stages)]
    shares = [(told, float((found == stage).mean())) for told, stage in parts]
    said = ", ".join(f"{told} in {share:.1%}" for told, share in shares if share)
    return f" For the query at step {step} it is {said} of all layers and heads; a pair is charged to its first stage."


def tell_mass(trace: Trace) -> str:
    """How much of the exact attention the decode stage read, as a sentence."""
    mass = mass_selected(trace)
    if np.isnan(mass):
        return (
            "How much of the exact attention it read was not measured here: a generation reads its cache, and computes nothing "
            "exact beside it."
        )
    return f"In the layers that choose, what was read held {mass:.0%} of the exact attention."


def _inert(token: str) -> str:
    """A token as inline code, whose fence no run of backquotes inside can close."""
    fence = "`" * (1 + max((len(run) for run in _runs(token)), default=0))
    return f"{fence} {token} {fence}"


def _runs(text: str) -> list[str]:
    return ["`" * len(part) for part in "".join(c if c == "`" else " " for c in text).split()]
