"""Cut weights and write a checkpoint that transformers loads, with its report card."""

from __future__ import annotations

import argparse
from typing import Any

from sparsity_core.cli import options as shared
from sparsity_core.kinds import Pipeline
from sparsity_core.work import Progress, new_folder


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, metavar="M", help='e.g. "prunenet(ratio=0.25)"')
    shared.file_option(parser, "measure perplexity on this UTF-8 text, not on the default")
    parser.add_argument("--blocks", type=int, default=2, metavar="N", help="blocks to measure perplexity on")
    parser.add_argument("--block", type=int, default=1024, metavar="N", help="tokens of a block")
    shared.start_option(parser, "no block does")
    recovery = parser.add_argument_group("training after the cut, with LoRA merged into the weights")
    recovery.add_argument("--recover-steps", type=int, default=0, metavar="N", help="steps of it; 0 leaves it out")
    recovery.add_argument(
        "--recover-file", type=shared.path, metavar="F", help="train on this text, not on the default"
    )
    recovery.add_argument("--recover-rank", type=int, default=8, metavar="N", help="rank of the matrices added")
    recovery.add_argument(
        "--recover-learning-rate", type=float, default=1e-3, metavar="X", help="of AdamW, at its highest"
    )
    recovery.add_argument("--recover-length", type=int, default=256, metavar="N", help="tokens of a stretch")
    recovery.add_argument("--recover-batch", type=int, default=2, metavar="N", help="stretches a step")
    recovery.add_argument("--recover-seed", type=int, default=0, metavar="N", help="of the stretches and first weights")
    recovery.add_argument(
        "--recover-distil",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="learn the distributions of the model before the cut, not the text itself",
    )
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
        steps=options.recover_steps,
        rank=options.recover_rank,
        learning_rate=options.recover_learning_rate,
        length=options.recover_length,
        batch=options.recover_batch,
        seed=options.recover_seed,
        distil=options.recover_distil,
        progress=progress,
    )


def _part(progress: Progress, start: float, end: float) -> Progress:
    """Progress of a part of the work, from one share of the whole to another."""
    return lambda share, doing: progress(start + (end - start) * share, doing)
