"""How far what each pipeline wrote went against what another did: its length, where it parts, and whether it loops."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from sparsity_core.record import Trace, loop_of
from viz.atlas import common_length

WRITING = ["pipeline", "tokens", "ended", "inflation", "parts", "loop", "period"]


def writing_table(traces: Mapping[str, Trace], against: str, most: int) -> pd.DataFrame:
    """One row per pipeline that wrote something: `WRITING`.

    `tokens` were written of at most `most`; fewer means that the text `ended` by itself. `inflation` is tokens over those of
    the pipeline `against`, nan where that one did not end; where this one did not, the true ratio is higher. `parts` is the
    first token that differs from its text, its end included, and `loop` the first of a repeated n-gram in which the text
    ends, both by their place in the whole text and nan where there is none; `period` is the n-gram's tokens.
    """
    other, nan = traces[against], float("nan")
    dense = _written(other)
    rows = []
    for name, trace in traces.items():
        if not trace.continuation:
            continue
        written, at = _written(trace), common_length(trace, other)
        parts = trace.n_prompt <= at < max(trace.n_tokens, other.n_tokens)
        loop = loop_of(trace.token_ids[trace.n_prompt :])
        rows.append(
            {
                "pipeline": name,
                "tokens": written,
                "ended": written < most,
                "inflation": written / dense if dense < most else nan,
                "parts": float(at) if parts else nan,
                "loop": nan if loop is None else float(trace.n_prompt + loop[0]),
                "period": nan if loop is None else float(loop[1]),
            }
        )
    return pd.DataFrame(rows, columns=WRITING)


def _written(trace: Trace) -> int:
    return trace.n_tokens - trace.n_prompt + 1  # the last new token is never read, and in no trace
