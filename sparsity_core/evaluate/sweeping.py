"""Sweeps: every cell of a grid computed once, by one of four doors, each into a file of its own. No torch here.

A cell's file is named by its spec and renamed into place, so a sweep that is ended goes on where it was, and several may fill one
folder: a lock on each cell keeps two from computing the same one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsity_core.evaluate.cell_files import came_in
from sparsity_core.evaluate.cells import COLUMNS, CellSpec, fetched
from sparsity_core.evaluate.doors import by_processes, by_ray, by_slurm, by_this_process
from sparsity_core.evaluate.grids import Grid, read_grid
from sparsity_core.work import EMBEDDED, Engine, Progress, clear_unfinished, packed, silent, weights_on_disk

if TYPE_CHECKING:
    import pandas as pd

MOST_CELLS = 10_000  # that are computed unasked
_TURN = 0.5  # s between two looks at cells that another sweep computes
Work = Iterator[tuple[str, CellSpec]]


@dataclass(frozen=True)
class Swept:
    """How a sweep ended: cells computed this time, found from before, and failed, whose rows say why.

    `missing` are those of Slurm jobs that ended before their time; another sweep computes them.
    """

    computed: int
    found: int
    failed: int
    missing: int
    seconds: float


def sweep(
    grid: Grid | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    processes: int = 1,
    shard: tuple[int, int] | None = None,
    ray: str | None = None,
    ray_options: dict[str, Any] | None = None,
    slurm: int | None = None,
    slurm_options: dict[str, Any] | None = None,
    most_cells: int = MOST_CELLS,
    retry: bool = False,
    progress: Progress = silent,
) -> Swept:
    """Computes the cells of a grid that `out` does not hold yet; `read_sweep(out)` is their table.

    A cell that fails is a row with its reason, and is not tried again but with `retry`. One whose process dies is computed once
    more, and then is a row too.

    Args:
        grid: a Grid, or the YAML file of one.
        out: the folder of the cells' files, which may hold those of other grids.
        processes: how many of this machine compute, each with a model of its own; 0: this one does, and nothing outlives it.
        shard: (i, n), from 1: only the cells of the i-th of n equal parts, for job arrays.
        ray: the address of a Ray cluster, "auto" or "local", whose tasks compute in place of processes; `ray_options` are
            what `ray.remote` takes, as {"num_cpus": 4}.
        slurm: how many Slurm jobs compute, each a shard; `slurm_options` are submitit's parameters.
        most_cells: a grid of more is refused.

    Raises ValueError for a grid, a folder or a door that cannot be used, before any cell runs; and whatever `progress` raises
    to cancel.
    """
    grid = grid if isinstance(grid, Grid) else read_grid(grid)
    folder = Path(out)
    _check(grid, folder, processes, shard, most_cells, doors=[ray, slurm])
    _fetch(grid.models, progress)
    began = time.perf_counter()
    tally = _Tally(math.ceil(grid.count / (1 if shard is None else shard[1])), progress)
    if slurm is not None:
        work = partial(_swept_shard, grid, folder, processes, retry)
        ended = by_slurm(work, folder, slurm, slurm_options or {}, progress)
        tally.computed = sum(swept.computed for swept in ended)
        _count(_cells(grid, None), folder, tally)
        return tally.told(began)
    while True:
        tally.again()
        cells = _missing(_cells(grid, shard), folder, tally, retry)
        if ray is None and not processes:
            by_this_process(cells, folder, tally.note, tally.tell, again=retry)
        elif ray is None:
            by_processes(cells, folder, processes, tally.note, tally.tell, again=retry)
        else:
            by_ray(cells, folder, ray, ray_options or {}, tally.note, tally.tell, again=retry)
        if not tally.busy:
            return tally.told(began)
        retry = False
        time.sleep(_TURN)


def _swept_shard(grid: Grid, folder: Path, processes: int, retry: bool, shard: tuple[int, int]) -> Swept:
    return sweep(grid, folder, processes=processes, shard=shard, retry=retry, most_cells=grid.count)


def read_sweep(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """The rows of all cells in a folder, also of a sweep that goes on: `COLUMNS` (`cells`); failed ones have an `error`.

    Raises ValueError for a folder that holds none, and a file that is no cell's.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(p for p in Path(folder).glob("*.parquet") if not p.name.startswith("."))
    if not files:
        raise ValueError(f"{folder} holds no cells of a sweep: name the folder that was its --out")
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file))
        except FileNotFoundError:  # a failed cell that was computed again in the meantime
            continue
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{file} cannot be read ({str(error).splitlines()[0]}): remove it and sweep again"
            ) from None
    found = (
        pa.concat_tables(tables, promote_options="default").to_pandas() if tables else pd.DataFrame(columns=[*COLUMNS])
    )
    order = ["model", "task", "text", "line", "pipeline", "density", "seed", "metric"]
    return found.sort_values(order, ignore_index=True)


def _check(
    grid: Grid, folder: Path, processes: int, shard: tuple[int, int] | None, most: int, doors: Sequence[Any]
) -> None:
    if grid.count > most:
        raise ValueError(
            f"the grid has {grid.count:,} cells, more than {most:,}: compute that many with --yes (most_cells=), or cut its axes"
        )
    if processes < 0:
        raise ValueError(f"processes is 0, this process itself, or more; got {processes}")
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"a shard is i/n with 1 ≤ i ≤ n; got {shard[0]}/{shard[1]}")
    if sum(door is not None for door in (*doors, shard)) > 1:
        raise ValueError("cells go through one door: give one of shard, ray and slurm")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_unfinished(folder)
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}): choose a folder you can write") from None


def _fetch(models: Sequence[str], progress: Progress) -> None:
    """Downloads the models that are not on this machine: the name of a cell's file tells which commit of them ran.

    Raises ValueError for one that cannot be had.
    """
    for name in models:
        if name == EMBEDDED or weights_on_disk(name):
            continue
        engine = Engine()
        try:
            task = engine.do(packed(partial(fetched, name)), silent)
            while not task.over.wait(_TURN):
                progress(0.0, f"fetching {name}")
        finally:
            engine.end()
        how, told = task.outcome
        if how != "done":
            raise ValueError(told or f"{name} could not be fetched: {engine.how_it_ended()}")


def _cells(grid: Grid, shard: tuple[int, int] | None) -> Work:
    for spec in grid.cells():
        key = spec.key
        if shard is None or int(key[:15], 16) % shard[1] == shard[0] - 1:
            yield key, spec


def _missing(cells: Work, folder: Path, tally: _Tally, retry: bool) -> Work:
    """The cells that are to be computed; the others are counted."""
    for key, spec in cells:
        how = came_in(folder, key, retry)
        if how is None:
            yield key, spec
        else:
            tally.note(how)


def _count(cells: Work, folder: Path, tally: _Tally) -> None:
    for _ in _missing(cells, folder, tally, False):
        tally.missing += 1


class _Tally:
    """Counts cells as they come in, and tells of them; `total` is how many there are, of a shard about."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._progress, self._began = total, progress, time.perf_counter()
        self.computed = self.busy = self.found = self.failed = self.missing = 0

    def again(self) -> None:
        self.busy = self.found = self.failed = 0

    def note(self, how: str) -> None:
        """One more cell: computed, found, failed, or busy where another process computes it."""
        self.computed += how == "computed"
        self.found += how in ("computed", "found")
        self.failed += how == "failed"
        self.busy += how == "busy"
        self.tell("")

    def tell(self, doing: str) -> None:
        done, left = self.found + self.failed, ""
        if self.computed and done < self._total:
            seconds = (time.perf_counter() - self._began) / self.computed * (self._total - done)
            left = f", {_spoken(seconds)} left"
        told = f"{done:,} of {self._total:,} cells, {self.failed:,} failed{left}"
        self._progress(min(1.0, done / max(1, self._total)), told + (f"; {doing}" if doing else ""))

    def told(self, began: float) -> Swept:
        seconds = round(time.perf_counter() - began, 3)
        return Swept(self.computed, self.found - self.computed, self.failed, self.missing, seconds)


def _spoken(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {seconds:.0f} s"
