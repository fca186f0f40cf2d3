"""Rank each head's channels for double_sparsity, and keep the ranking."""

from __future__ import annotations

import argparse
from itertools import combinations

from sparsity_core.cli import options as shared


def options(parser: argparse.ArgumentParser) -> None:
    shared.file_option(parser, "a UTF-8 text to calibrate on, not the default")
    shared.setting(parser, "blocks", 8, "random stretches of the text")
    shared.setting(parser, "length", 512, "tokens of each")
    shared.seed_option(parser)
    shared.model_options(parser)
    shared.out_option(parser)
    shared.json_option(parser)


def answer(options: argparse.Namespace) -> shared.Answer:
    text = shared.text_of(options)
    from sparsity_core.methods.decode.double_sparsity.calibration import calibrate
    from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS

    with shared.progress_bar() as progress, shared.writing(options.out):
        model = shared.load_model(options, progress)
        path = shared.new_file(options.out / f"channels-{model.fingerprint}.safetensors")
        found = calibrate(
            model, text, blocks=options.blocks, length=options.length, seed=options.seed, progress=progress
        )
        found.save(path)
    r = max(1, model.arch.head_dim // 4)
    overlap = {
        f"{a}/{b}": round(float(found.overlap(found, a, b, r).mean()), 4) for a, b in combinations(STATISTICS, 2)
    }
    lines = [f"top {r} channels shared by {pair}: {value:.1%}" for pair, value in overlap.items()]
    lines.append(f"written to {path}; use it with double_sparsity(calibration='{path}')")
    return {"calibration": str(path), "recipe": found.recipe, "channels": r, "overlap": overlap}, "\n".join(lines)
