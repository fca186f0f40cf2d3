"""Cut weights and write a checkpoint that transformers loads, with its report card."""

from __future__ import annotations

import argparse
from typing import Any

from sparsity_core.cli import options as shared
from sparsity_core.kinds import Pipeline
from sparsity_core.work import Progress, new_folder

RECOVERY: dict[str, tuple[float | bool, str]] = {  # the settings of `recover`
    "steps": (0, "steps of it; 0 leaves it out"),
    "rank": (8, "rank of the matrices added"),
    "learning_rate": (1e-3, "of AdamW, at its highest"),
    "length": (256, "tokens of a stretch"),
    "batch": (2, "stretches a step"),
    "seed": (0, "of the stretches and first weights"),
    "distil": (False, "learn the distributions of the model before the cut, not the text itself"),
}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, metavar="M", help='e.g. "prunenet(ratio=0.25)"')
    shared.file_option(parser, "measure perplexity on this UTF-8 text, not on the default")
    shared.setting(parser, "blocks", 2, "blocks to measure perplexity on")
    shared.setting(parser, "block", 1024, "tokens of a block")
    shared.start_option(parser, "no block does")
    recovery = parser.add_argument_group("training after the cut, with LoRA merged into the weights")
    recovery.add_argument(
        "--recover-file", type=shared.path, metavar="F", help="train on this text, not on the default"
    )
    for name, (default, help) in RECOVERY.items():
        shared.setting(recovery, f"recover_{name}", default, help)
    shared.model_options(parser)
    shared.out_option(parser)
    shared.json_option(parser)


def answer(options: argparse.Namespace) -> shared.Answer:
    pipeline = _pipeline(options)
    text = shared.text_of(options)
    for name in ("blocks", "block"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is at least 1; got {getattr(options, name)}")
    new_folder(options.out)  # before the work, not after it
    from sparsity_core.weights import report_card

    with shared.progress_bar() as progress, shared.writing(options.out):
        model = shared.load_model(options, progress)
        assert pipeline.weights is not None
        compressed = pipeline.weights.compress(model, _part(progress, 0.0, 0.4))
        compressed = _recovered(options, compressed, _part(progress, 0.4, 0.7))
        found = compressed.report(
            text=text,
            block=options.block,
            blocks=options.blocks,
            add_bos=options.add_bos,
            progress=_part(progress, 0.7, 1.0),
        )
        compressed.save_pretrained(options.out, report=found)
    return {**found, "path": str(options.out)}, f"{report_card(found)}\nwritten to {options.out}"


def _pipeline(options: argparse.Namespace) -> Pipeline:
    pipeline = Pipeline.parse(f"weights={options.weights}")
    if list(pipeline.methods) != ["weights"]:
        raise ValueError(
            f"--weights takes one method that cuts weights, such as prunenet(ratio=0.25); got {options.weights}"
        )
    return pipeline


def _recovered(options: argparse.Namespace, compressed: Any, progress: Progress) -> Any:
    if not options.recover_steps:
        return compressed
    from sparsity_core.weights import recover
    from sparsity_core.work import read_file

    return recover(
        compressed,
        text=None if options.recover_file is None else read_file(options.recover_file),
        **shared.chosen(options, *RECOVERY, prefix="recover_"),
        progress=progress,
    )


def _part(progress: Progress, start: float, end: float) -> Progress:
    """Progress of a part of the work, from one share of the whole to another."""
    return lambda share, doing: progress(start + (end - start) * share, doing)
