"""Every cell of a grid of models, pipelines, knobs, texts, tasks and seeds, computed once."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from typing import Any

from sparsity_core.cli import options as shared


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grid", type=shared.path, metavar="GRID.yaml", help="models, pipelines, and texts or tasks")
    parser.add_argument(
        "--out",
        type=shared.path,
        required=True,
        metavar="DIR",
        help="the folder of the cells' files; what it holds is kept",
    )
    door = parser.add_mutually_exclusive_group()
    door.add_argument("--shard", type=shard, metavar="I/N", help="only the I-th of N equal parts, for job arrays")
    door.add_argument("--ray", metavar="ADDRESS", help="tasks of a Ray cluster; auto: the one that runs here")
    door.add_argument("--slurm", type=int, metavar="N", help="N Slurm jobs, by submitit")
    for name, example in (("ray", '{"num_cpus": 4}'), ("slurm", '{"slurm_partition": "gpu", "timeout_min": 60}')):
        parser.add_argument(f"--{name}-options", type=mapping, default={}, metavar="JSON", help=f"e.g. {example}")
    shared.setting(parser, "processes", 1, "that compute on this machine, or in each job; 0: this one")
    parser.add_argument("--yes", action="store_true", help="compute a grid of any size")
    parser.add_argument("--retry", action="store_true", help="compute cells that failed before once more")
    shared.json_option(parser)


def shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"a shard is written i/n, as in 1/8; got {text!r}")
    return int(found[1]), int(found[2])


def mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"options are one JSON object; got {text!r}")
    return found


def answer(options: argparse.Namespace) -> shared.Answer:
    from sparsity_core.evaluate import MOST_CELLS, read_grid, sweep

    grid = read_grid(options.grid)
    how = shared.chosen(options, "processes", "shard", "ray", "ray_options", "slurm", "slurm_options", "retry")
    with shared.progress_bar() as progress:
        done = sweep(grid, options.out, most_cells=grid.count if options.yes else MOST_CELLS, progress=progress, **how)
    line = f"{done.computed:,} computed, {done.found:,} found, {done.failed:,} failed"
    line += f", {done.missing:,} missing" if done.missing else ""
    return {"out": str(options.out), "cells": grid.count, **asdict(done)}, f"{line}  ({options.out})"
