"""Write the file of a figure for a paper, drawn of a run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from sparsity_core.cli import options as shared
from sparsity_core.kinds import Pipeline
from sparsity_core.record import Provenance, RunSpec, Trace, View, command_line
from sparsity_core.work import from_app


def options(parser: argparse.ArgumentParser) -> None:
    shared.run_options(parser)
    shared.start_option(parser, "as the tokenizer does")
    shared.question_option(parser, "half the text is read before a cut, or with --generate all of it")
    parser.add_argument(
        "--beside", action="append", default=[], metavar="P", help="a further pipeline; may be repeated"
    )
    shared.setting(parser, "generate", 0, "new tokens after the text; 0: the text alone")
    parser.add_argument("--figure", required=True, metavar="NAME", help="e.g. atlas, loss, strip, regret, difference")
    parser.add_argument(
        "--out", required=True, type=shared.path, metavar="FILE", help=".pdf, .svg, .png, .html, .csv, .json"
    )
    parser.add_argument("--venue", default="neurips", help="neurips, iclr, icml, acl, aaai, cvpr, thesis, slides")
    parser.add_argument("--columns", type=int, default=1, metavar="N", help="1 or 2, that the figure spans")
    parser.add_argument("--width", type=float, metavar="IN", help="inches, in place of a venue's")
    parser.add_argument("--height", type=float, metavar="IN", help="inches; default: as the figure asks")
    parser.add_argument("--layer", type=int, metavar="N", help="default: the middle one")
    parser.add_argument("--head", type=_head, default="first", help="a KV head, or the first or last to drop")
    parser.add_argument("--token", type=int, default=0, metavar="N", help="around which long texts are cut")
    parser.add_argument("--step", type=int, metavar="N", help="default: the last")


def answer(options: argparse.Namespace) -> shared.Answer:
    again, paper = from_app("viz.again"), from_app("viz.paper")
    width, form = _checked(options, again, paper)
    traces: dict[str, Trace] = {}
    specs: list[RunSpec] = []
    others = [Pipeline.parse(text) for text in options.beside]
    with shared.asked(options) as ((model, text, first), progress):
        for letter, pipeline in zip("ABCDEFGH", [first, *others], strict=False):
            trace = _run(options, model, text, pipeline, progress)
            specs.append(_spec(options, text, trace))
            traces[f"{letter}: {from_app('viz.cost').label(trace)}"] = trace
    at = {name: getattr(options, name) for name in ("layer", "head", "token", "step")}
    drawn = again.draw(options.figure, traces, **at, width=width)
    height = options.height or drawn.height or paper.natural_height(drawn.figure, width)
    made = provenance(options.figure, specs, list(traces.values()), at)
    data = paper.export(drawn.figure, drawn.table, form, made, width=width, height=height)
    with shared.writing(options.out.parent):
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_bytes(data)
    found = {
        "figure": options.figure,
        "file": str(options.out),
        "width": width,
        "height": height,
        "caption": made.caption,
    }
    return found, f"{options.out}  {width:.4g} x {height:.4g} in\n{paper.kit.caption(made)}"


def _checked(options: argparse.Namespace, again: Any, paper: Any) -> tuple[float, str]:
    """(inches, format), before a model is loaded for what cannot be."""
    if options.figure not in again.drawable():
        raise ValueError(f"there is no figure {options.figure!r}; there are {', '.join(again.drawable())}")
    form = options.out.suffix.lower().removeprefix(".")
    if form not in paper.FORMATS:
        raise ValueError(f"--out ends in one of .{', .'.join(paper.FORMATS)}; got {Path(options.out).name!r}")
    if paper.FORMATS[form].rendered and not paper.can_render():
        raise ValueError(
            "PDF, SVG and PNG need Chromium or Chrome, and none is found: install one, or write .html or .csv"
        )
    width = paper.venue_width(options.venue, options.columns) if options.width is None else options.width
    paper.check_size(width)
    if options.height is not None:
        paper.check_size(options.height, "height")
    if len(options.beside) > 7:
        raise ValueError(f"a figure shows at most 8 pipelines; got {1 + len(options.beside)}")
    if options.beside and not again.shows_several(options.figure):
        raise ValueError(f"{options.figure} shows one run: leave --beside out")
    if options.generate < 0:
        raise ValueError(f"--generate is at least 0; got {options.generate}")
    return width, form


def _run(options: argparse.Namespace, model: Any, text: str, pipeline: Pipeline, progress: Any) -> Trace:
    from sparsity_core.inference import generate, run

    given: dict[str, Any] = {**shared.chosen(options, "seed", "add_bos", "question"), "progress": progress}
    if not options.generate:
        return run(model, text, pipeline, **given)
    return generate(model, text, pipeline, max_new_tokens=options.generate, **given).trace


def _spec(options: argparse.Namespace, text: str, trace: Trace) -> RunSpec:
    made = trace.provenance
    asked = shared.chosen(options, "generate", "seed", "add_bos", "question")
    return RunSpec(options.model, text, made.pipeline, device=made.device, dtype=made.dtype, **asked)


def provenance(figure: str, specs: list[RunSpec], traces: list[Trace], at: dict[str, Any]) -> Provenance:
    """What stands behind a figure of the command line, with the link that opens its runs in the app."""
    first, trace = specs[0], traces[0]
    seen = {name: value for name, value in at.items() if value is not None}
    link = from_app("ui.address").write_address(specs, seen)
    if link.get("prompt", "").startswith("long-"):
        link = {**{name: value for name, value in link.items() if name != "prompt"}, "text": first.prompt}
    pipelines = [own.provenance.pipeline for own in traces]
    where = ", ".join(f"{name} {value}" for name, value in seen.items())
    return replace(
        trace.provenance,
        pipeline=" | ".join(pipelines),
        caption=f"{figure.replace('_', ' ').capitalize()} of {' and '.join(pipelines)}, {where}.",
        command=_command(figure, specs, seen),
        prompt=first.prompt,
        view=View(**seen),
        facts={
            "tokens": str(trace.n_tokens),
            "generated": str(trace.n_tokens - trace.n_prompt + 1 if first.generate else 0),
        },
        link=link,
    )


def _command(figure: str, specs: list[RunSpec], seen: dict[str, Any]) -> str:
    first, *others = specs
    command = command_line(
        "export",
        figure=figure,
        file="prompt.txt",
        model=first.model,
        pipeline=first.pipeline,
        generate=first.generate or None,
        seed=first.seed,
        device=first.device,
        dtype=first.dtype,
        add_bos=first.add_bos,
        question=None if first.question == "auto" else first.question,
        **seen,
        out=f"{figure}.pdf",
    )
    return command + "".join(f" --beside {quote(spec.pipeline)}" for spec in others)


def _head(text: str) -> int | str:
    if text in ("first", "last"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"first, last or a number; got {text!r}") from None
