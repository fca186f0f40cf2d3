"""Perplexity of a text in non-overlapping blocks, or accuracy on tasks (--tasks)."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict

from sparsity_core.cli import options as shared
from sparsity_core.kinds import Pipeline


def options(parser: argparse.ArgumentParser) -> None:
    source = shared.run_options(parser)
    source.add_argument("--tasks", metavar="NAMES", help="tasks of lm-evaluation-harness or RULER, separated by commas")
    shared.setting(parser, "block", 2048, "tokens of a block of the text")
    parser.add_argument("--most-blocks", type=int, metavar="N", help="only the first N blocks of the text")
    shared.start_option(parser, "no block does, and requests of tasks start as the tokenizer does")
    parser.add_argument(
        "--data", type=shared.path, metavar="DIR", help="the folder with TASK.jsonl; without it tasks come from the hub"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each task")
    parser.add_argument("--shots", type=int, metavar="N", help="solved examples before each question")
    parser.add_argument("--length", type=int, metavar="N", help="tokens of a prompt of RULER's and its answer; 4,096")
    parser.add_argument(
        "--question",
        choices=("known", "unknown"),
        default="known",
        help="whether what compresses a prompt of RULER's reads its question first",
    )
    shared.setting(parser, "batch_size", 1, "requests of tasks that share a forward, each followed on its own")
    parser.add_argument(
        "--density", type=float, metavar="X", help="eviction keeps this share of each question's tokens, 8 at least"
    )


def answer(options: argparse.Namespace) -> shared.Answer:
    if options.tasks is not None:
        return _scored(options)
    own = shared.chosen(options, "block", "most_blocks", "add_bos", "seed")
    with shared.asked(options) as (given, progress):
        from sparsity_core.evaluate import perplexity

        found = perplexity(*given, progress=progress, **own)
    error = None if math.isnan(found.stderr) else found.stderr
    spread = "" if error is None else f" ± {error:.4f}"
    line = f"perplexity {found.perplexity:.4f}{spread}  ({found.pipeline}; {found.convention})"
    return {"model": options.model, **asdict(found), "stderr": error}, line


def _scored(options: argparse.Namespace) -> shared.Answer:
    from sparsity_core.evaluate import accuracy, check_tasks

    pipeline = Pipeline.parse(options.pipeline)
    tasks = [name.strip() for name in options.tasks.split(",") if name.strip()]
    asked = shared.chosen(options, "data", "limit", "shots", "density", "length", "question", "batch_size")
    check_tasks(tasks, pipeline, **asked)
    with shared.progress_bar() as progress:
        model = shared.load_model(options, progress)
        own = asked | shared.chosen(options, "add_bos", "seed")
        found = accuracy(model, tasks, pipeline, progress=progress, **own)
    rows = json.loads(found.table.to_json(orient="records", double_precision=15))  # what is no number is null
    told = {"model": options.model, "pipeline": found.pipeline, "density": options.density, "seed": options.seed}
    told |= {"length": options.length} if options.length else {}
    return {**told, "rows": rows}, f"{found.pipeline}\n{found.table.to_string(index=False, float_format='%.4f')}"
