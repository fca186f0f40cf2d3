"""One cell of a sweep: its spec, the name of its file, and what it measures. No torch until it runs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sparsity_core.evaluate.densities import at_density
from sparsity_core.evaluate.texts import text_of_line
from sparsity_core.kinds import Pipeline
from sparsity_core.work import Progress, digest_of, explain, read_file, read_text, silent, weights_on_disk

_RESULTS = 1  # raised when cells of equal specs give other results, so that what is kept is computed again
WHOLE = 0  # block: the whole text is one


@dataclass(frozen=True)
class CellSpec:
    """Everything that decides what a cell computes: a model and a pipeline on one text or one task.

    Attributes:
        text: the path of a text, whose perplexity is measured; of a JSONL file `line` says which line, from 1.
        task: a task's name; `data` is the folder of its file, empty for the hub.
        density: eviction keeps max(8, round(density · tokens)) keys, in place of its budget.
        block: tokens of a block of the text; 0: the whole text is one.
        others: as in `accuracy` and `perplexity`.
    """

    model: str
    pipeline: str = "dense"
    seed: int = 0
    text: str = ""
    line: int = 0
    task: str = ""
    data: str = ""
    density: float | None = None
    limit: int | None = None
    shots: int | None = None
    length: int | None = None
    question: str = "known"
    block: int = 2048
    most_blocks: int | None = None
    add_bos: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 1

    @property
    def key(self) -> str:
        """The name of the cell's file: a hash of the spec and of the content of all that it names, wherever that lies."""
        stated = {name: value for name, value in asdict(self).items() if (name, value) != ("batch_size", 1)}
        places = {"text": self.text, "data": str(Path(self.data, f"{self.task}.jsonl")) if self.data else ""}
        stated |= {name: digest_of(place) for name, place in places.items() if place}
        asked = [str(_RESULTS), json.dumps(stated, sort_keys=True), weights_on_disk(self.model)]
        asked += [f"{name} {digest}" for name, digest in sorted(Pipeline.parse(self.pipeline).inputs().items())]
        return hashlib.sha256("\n".join(asked).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def run_cell(spec: CellSpec, progress: Progress = silent) -> list[dict[str, Any]]:
    """The rows of a cell, one a metric: what `COLUMNS` names. Whatever fails is one row with its reason in `error`.

    The one entry of every door of `sweep`. Whatever `progress` raises to cancel passes, if it is no Exception.
    """
    began = time.perf_counter()
    try:
        found = _scored(spec, progress) if spec.task else _read(spec, progress)
    except Exception as error:  # one cell's failure is a row; the sweep goes on
        return [failure(spec, explain(error), time.perf_counter() - began)]
    seconds = time.perf_counter() - began
    return [_row(spec, seconds=seconds, **measured) for measured in found]


def fetched(model: str, progress: Progress = silent) -> None:
    """Downloads a model of the hub, unless it is on this machine. Raises ModelError where it cannot be had."""
    from sparsity_core.models import source_of

    source_of(model, progress)


def failure(spec: CellSpec, reason: str, seconds: float = float("nan")) -> dict[str, Any]:
    """The row of a cell that failed."""
    return _row(spec, seconds=seconds, error=reason)


MEASURED: dict[str, Any] = {
    "metric": "",
    "value": float("nan"),
    "stderr": float("nan"),
    "n": 0,  # questions, or tokens that were predicted
    "split": "",
    "shots_given": 0,
    "kv_share": float("nan"),
    "items": None,  # the value of each question; the mean loss of each block of a text
    "seconds": float("nan"),
    "error": "",
}
COLUMNS = ("key", *(field.name for field in fields(CellSpec)), *MEASURED)


def _row(spec: CellSpec, **measured: Any) -> dict[str, Any]:
    return {"key": spec.key, **asdict(spec), **MEASURED, **measured}


def _loaded(spec: CellSpec, progress: Progress) -> Any:
    from sparsity_core.models import load

    return load(spec.model, device=spec.device, dtype=spec.dtype, progress=lambda share, doing: progress(0.0, doing))


def _scored(spec: CellSpec, progress: Progress) -> list[dict[str, Any]]:
    from sparsity_core.evaluate.accuracies import accuracy

    found = accuracy(
        _loaded(spec, progress),
        [spec.task],
        spec.pipeline,
        data=spec.data or None,
        limit=spec.limit,
        shots=spec.shots,
        density=spec.density,
        length=spec.length,
        question=spec.question,
        add_bos=spec.add_bos,
        seed=spec.seed,
        batch_size=spec.batch_size,
        progress=progress,
    )
    items = {place: group["value"].tolist() for place, group in found.items.groupby(["task", "metric"])}
    names = ("metric", "value", "stderr", "n", "split", "kv_share")
    return [
        {name: row[name] for name in names}
        | {"task": row["task"], "shots_given": row["shots"], "items": items.get((row["task"], row["metric"]))}
        for row in found.table.to_dict("records")
    ]


def _read(spec: CellSpec, progress: Progress) -> list[dict[str, Any]]:
    from sparsity_core.evaluate.perplexities import perplexity

    model, text = _loaded(spec, progress), text_of(spec.text, spec.line)
    block = len(model.encode_all(text)) if spec.block == WHOLE else spec.block
    found = perplexity(
        model,
        text,
        at_density(Pipeline.parse(spec.pipeline), spec.density, block),
        block=block,
        most_blocks=spec.most_blocks,
        add_bos=spec.add_bos,
        seed=spec.seed,
        progress=progress,
    )
    told = {"value": found.perplexity, "stderr": found.stderr, "n": found.tokens, "kv_share": found.kv_share}
    return [{"metric": "perplexity", **told, "items": list(found.of_blocks)}]


def text_of(path: str, line: int) -> str:
    """A text by its file; of a JSONL file that of a line. Raises ValueError where it cannot be read."""
    if not line:
        return read_file(Path(path))
    with open(path, encoding="utf-8") as file:
        for number, written in enumerate(file, 1):
            if number == line:
                return read_text(f"{path}, line {line}", text_of_line(path, line, written).encode())
    raise ValueError(f"{path} has no line {line} any more")


def table_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as one Parquet file, whose columns have the same types in every cell."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"value": pa.float64(), "n": pa.int64(), "items": pa.list_(pa.float32()), "line": pa.int64()}
    kinds |= dict.fromkeys(("stderr", "kv_share", "seconds", "density"), pa.float64())
    kinds |= dict.fromkeys(
        ("seed", "limit", "shots", "shots_given", "length", "block", "most_blocks", "batch_size"), pa.int64()
    )
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink)
    return bytes(sink.getvalue().to_pybytes())
