"""The command line, `python -m sparsity_core --help`. Exit status 0, 1 for a failed run, 2 for bad input."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn

from sparsity_core import methods
from sparsity_core.kinds import Pipeline
from sparsity_core.methods.gate.dcp.records import Training
from sparsity_core.record import RunSpec, Trace
from sparsity_core.work import MOST_BYTES, hub_text, read_text, too_large

_DESCRIPTION = "Run a decoder model through pruning methods and record what each one throws away."


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _print(*_answer(arguments), as_json="--json" in arguments)
    except OSError as error:  # a closed pipe or a full disk
        with contextlib.suppress(OSError):
            sys.stdout.close()
        reason = "" if isinstance(error, BrokenPipeError) else f"error: cannot write the answer ({error.strerror})\n"
        sys.stderr.write(reason)
        return 1


def _answer(arguments: list[str]) -> tuple[dict[str, Any], str, int]:
    """What a command found, as JSON values and as text, and the exit status; an error is {"error": …}."""
    try:
        options = _parser().parse_args(arguments)
        return *options.command(options), 0
    except ValueError as error:
        reason, status = str(error), 2
    except KeyboardInterrupt:
        reason, status = "stopped", 1
    except Exception as error:  # a failed run is a sentence and a status, never a traceback
        from sparsity_core.work import explain

        reason, status = explain(error), 1
    return {"error": reason}, "", status


def _print(found: dict[str, Any], text: str, status: int, *, as_json: bool) -> int:
    if status:
        print(f"error: {found['error']}", file=sys.stderr)
    if as_json or not status:
        print(json.dumps(found, ensure_ascii=True, allow_nan=False) if as_json else text, flush=True)
    return status


class _Parser(argparse.ArgumentParser):
    """A wrong argument is bad input like any other."""

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().split())
        raise ValueError(f"{message}. {usage[0].upper()}{usage[1:]}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m sparsity_core", description=_DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, function: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=function)
        sub.add_argument(
            "--json", action="store_true", help="one JSON object on standard output and nothing else there"
        )
        return sub

    for name, function, help in (
        ("run", _run, "one forward over a text, every token of it a decode step"),
        ("generate", _generate, "new tokens from a cache that physically loses what is evicted"),
        ("eval", _eval, "perplexity of a text in non-overlapping blocks, each read by itself"),
    ):
        sub = command(name, function, help)
        source = sub.add_mutually_exclusive_group(required=True)
        source.add_argument("--prompt", metavar="TEXT")
        source.add_argument("--file", metavar="F", type=Path, help="a UTF-8 text file")
        sub.add_argument("--model", default="smollm2-135m", help="the embedded model, a hub id, or a local folder")
        sub.add_argument("--pipeline", default="dense", metavar="P", help='e.g. "eviction=a2sf(budget=64)"')
        sub.add_argument("--device", default="auto", help="auto, cpu, cuda")
        sub.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
        if name == "eval":
            sub.add_argument("--block", type=int, default=2048, metavar="N", help="tokens of a block")
            sub.add_argument("--most-blocks", type=int, metavar="N", help="only the first N blocks")
        sub.add_argument("--seed", type=int, default=0)
        if name == "eval":
            continue
        sub.add_argument("--out", type=Path, metavar="DIR", help="write the trace there")
        if name == "generate":
            sub.add_argument("--max-new-tokens", type=int, default=32, metavar="N")
    _weights_commands(command)
    command("models", _models, "what can be loaded by name, and how the embedded model is found")
    command("methods", _methods, "the methods, their knobs and sources")
    return parser


def _weights_commands(command: Callable[[str, Any, str], argparse.ArgumentParser]) -> None:
    sub = command(
        "compress", _compress, "cut weights and write a checkpoint that transformers loads, with its report card"
    )
    sub.add_argument("--weights", required=True, metavar="M", help='e.g. "prunenet(ratio=0.25)"')
    sub.add_argument("--file", metavar="F", type=Path, help="measure perplexity on this UTF-8 text, not on the default")
    sub.add_argument(
        "--blocks", type=int, default=2, metavar="N", help="blocks of 1,024 tokens to measure perplexity on"
    )
    kinds = command("train", None, "learn what to cut or to drop, and keep it as a file").add_subparsers(
        required=True, metavar="what"
    )
    policy = kinds.add_parser("prunenet", help="PruneNet's policy, from the weights alone")
    policy.set_defaults(command=_train_policy)
    policy.add_argument("--variant", default="corrected", choices=("corrected", "official"))
    policy.add_argument("--ratio", type=float, default=0.25)
    policy.add_argument("--episodes", type=int, default=20)
    policy.add_argument("--seed", type=int, default=0)
    gate = kinds.add_parser("dcp", help="a gate of dynamic context pruning, from text")
    gate.set_defaults(command=_train_gate)
    text = gate.add_mutually_exclusive_group()
    text.add_argument("--file", metavar="F", type=Path, help="a UTF-8 text to train on, not the default")
    text.add_argument("--hub", metavar="ID", help="a file of a hub dataset, owner/name/file.txt or .parquet")
    for item in fields(Training):
        flag, help = f"--{item.name.replace('_', '-')}", item.metadata["help"]
        if isinstance(item.default, bool):
            gate.add_argument(flag, action=argparse.BooleanOptionalAction, default=item.default, help=help)
        else:
            gate.add_argument(flag, type=type(item.default), default=item.default, metavar="X", help=help)
    gate.add_argument("--start", type=Path, metavar="GATE", help="go on from a trained gate, with --a-first 3 or so")
    for each in (policy, gate):
        each.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else there")
    channels = command("calibrate", _calibrate, "rank each head's channels for double_sparsity, and keep the ranking")
    channels.add_argument("--file", metavar="F", type=Path, help="a UTF-8 text to calibrate on, not the default")
    channels.add_argument("--blocks", type=int, default=8, metavar="N", help="random stretches of the text")
    channels.add_argument("--length", type=int, default=512, metavar="N", help="tokens of each")
    channels.add_argument("--seed", type=int, default=0)
    for each in (sub, policy, gate, channels):
        each.add_argument("--model", default="smollm2-135m", help="the embedded model, a hub id, or a local folder")
        each.add_argument("--device", default="auto", help="auto, cpu, cuda")
        each.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
        each.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help="a folder; nothing in it is overwritten"
        )


def _compress(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    pipeline = Pipeline.parse(f"weights={options.weights}")
    text = None if options.file is None else _text_of(options)
    if options.blocks < 1:
        raise ValueError(f"--blocks is at least 1; got {options.blocks}")
    from sparsity_core.models import load
    from sparsity_core.weights import report_card

    if pipeline.weights is None or list(pipeline.methods) != ["weights"]:
        raise ValueError(
            f"--weights takes one method that cuts weights, such as prunenet(ratio=0.25); got {options.weights}"
        )
    with _progress() as progress, _writing(options.out):
        progress(0.0, f"loading {options.model}")
        model = load(options.model, device=options.device, dtype=options.dtype)
        compressed = pipeline.weights.compress(model, lambda share, doing: progress(0.5 * share, doing))
        found = compressed.report(
            text=text, blocks=options.blocks, progress=lambda share, doing: progress(0.5 + 0.5 * share, doing)
        )
        compressed.save_pretrained(options.out, report=found)
    return {**found, "path": str(options.out)}, f"{report_card(found)}\nwritten to {options.out}"


def _train_policy(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from sparsity_core.methods.weights.prunenet.training import train_policy
    from sparsity_core.models import load

    with _progress() as progress, _writing(options.out):
        progress(0.0, f"loading {options.model}")
        model = load(options.model, device=options.device, dtype=options.dtype)
        path = _new(options.out / f"prunenet-{options.variant}.safetensors")
        policy = train_policy(
            model,
            variant=options.variant,
            ratio=options.ratio,
            episodes=options.episodes,
            seed=options.seed,
            progress=progress,
            checkpoint=options.out / "training.part",
        )
        policy.save(path)
    return {"policy": str(path), "recipe": policy.recipe}, f"written to {path}; use it with prunenet(policy='{path}')"


def _train_gate(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    training = Training(**{item.name: getattr(options, item.name) for item in fields(Training)})
    text = None
    if options.file is not None:
        text = _text_of(options)
    elif options.hub is not None:
        text = hub_text(options.hub)
    from sparsity_core.methods.gate.dcp.adapter import Gate
    from sparsity_core.methods.gate.dcp.training import train_gate
    from sparsity_core.models import load

    start = None if options.start is None else Gate.load(options.start)
    with _progress() as progress, _writing(options.out):
        progress(0.0, f"loading {options.model}")
        model = load(options.model, device=options.device, dtype=options.dtype)
        path = _new(options.out / f"dcp-{training.gamma:g}.safetensors")
        found, trained = train_gate(
            model,
            training,
            text=text,
            start=start,
            checkpoint=options.out / "training.part",
            progress=progress,
        )
        path = found.save(path)
        if trained is not model:
            trained.hf.save_pretrained(options.out / "model")
            trained.tokenizer.save_pretrained(options.out / "model")
    return {"gate": str(path), "recipe": found.recipe}, f"written to {path}; use it with gate=dcp(adapter='{path}')"


def _calibrate(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    text = None if options.file is None else _text_of(options)
    from sparsity_core.methods.decode.double_sparsity.calibration import calibrate
    from sparsity_core.methods.decode.double_sparsity.channels import STATISTICS
    from sparsity_core.models import load

    with _progress() as progress, _writing(options.out):
        progress(0.0, f"loading {options.model}")
        model = load(options.model, device=options.device, dtype=options.dtype)
        path = _new(options.out / f"channels-{model.fingerprint}.safetensors")
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


def _new(path: Path) -> Path:
    """The path of a file to come, its folder made. Raises ValueError where it exists: hours may have gone into it."""
    if path.exists():
        raise ValueError(f"{path} exists already: choose another --out, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What the disk refuses, as bad input: the folder is the user's choice."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write to {folder} ({error.strerror or error}): choose a folder you can write"
        ) from None


def _run(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    return _traced(options, generate=0)


def _generate(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is at least 1; got {options.max_new_tokens}")
    return _traced(options, generate=options.max_new_tokens)


def _traced(options: argparse.Namespace, generate: int) -> tuple[dict[str, Any], str]:
    pipeline = Pipeline.parse(options.pipeline)  # before the model is loaded: a typing error should not cost seconds
    prompt = _text_of(options)
    from sparsity_core.inference import execute

    with _progress() as progress:
        spec = RunSpec(
            options.model, prompt, str(pipeline), generate, options.seed, device=options.device, dtype=options.dtype
        )
        trace = execute(spec, progress)
    found = summary(trace)
    if generate:
        found["text"] = trace.continuation
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            trace.save(options.out / "trace.npz")
        except OSError as error:
            raise ValueError(
                f"cannot write to {options.out} ({error.strerror}): choose a folder you can write"
            ) from None
        found["trace"] = str(options.out / "trace.npz")
    lines = [f"{key:16} {value}" for key, value in found.items() if key not in ("text", "notes")]
    return found, "\n".join([*lines, *trace.notes, *([trace.continuation] if generate else [])])


def _eval(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    pipeline = Pipeline.parse(options.pipeline)
    text = _text_of(options)
    from sparsity_core.evaluate import perplexity
    from sparsity_core.models import load

    with _progress() as progress:
        progress(0.0, f"loading {options.model}")
        model = load(options.model, device=options.device, dtype=options.dtype)
        found = perplexity(
            model,
            text,
            pipeline,
            block=options.block,
            most_blocks=options.most_blocks,
            seed=options.seed,
            progress=progress,
        )
    convention = f"{found.tokens:,} tokens predicted in {found.blocks} blocks of {found.block}, no BOS added"
    return {
        "model": options.model,
        **asdict(found),
    }, f"perplexity {found.perplexity:.4f}  ({found.pipeline}; {convention})"


def _text_of(options: argparse.Namespace) -> str:
    prompt = getattr(options, "prompt", None)
    return prompt if prompt is not None else read_text(options.file.name, _read(options.file))


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[float, str], None]]:
    """A progress bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    layout = "{l_bar}{bar}| {elapsed}<{remaining}"
    with tqdm(total=100, file=sys.stderr, disable=None, leave=False, bar_format=layout) as bar:

        def progress(share: float, doing: str) -> None:
            bar.set_description(doing, refresh=False)
            bar.update(round(100 * share) - bar.n)

        yield progress


def summary(trace: Trace) -> dict[str, Any]:
    """The numbers of a run as plain JSON values; None where a number does not exist."""

    def number(value: float) -> float | None:
        return round(float(value), 6) if math.isfinite(value) else None

    return {
        "model": trace.provenance.model,
        "pipeline": trace.provenance.pipeline,
        "dtype": trace.provenance.dtype,
        "device": trace.provenance.device,
        "kernels": ", ".join(trace.provenance.backends),
        "tokens": trace.n_tokens,
        "prompt_tokens": trace.n_prompt,
        "perplexity": number(trace.perplexity),
        "dense_perplexity": number(trace.dense_perplexity),
        "kl_to_dense": number(float(trace.kl_to_dense[~(trace.kl_to_dense != trace.kl_to_dense)].mean()))
        if (trace.kl_to_dense == trace.kl_to_dense).any()
        else None,
        "density": number(trace.density()),
        "regret": number(float(trace.regret.mean())) if trace.compared else None,
        "ideal_recall": number(float(trace.ideal_recall.mean())) if trace.compared else None,
        "ideal_cosine": number(float(trace.ideal_cosine.mean())) if trace.compared else None,
        "kv_bytes": trace.kv_bytes,
        "kv_bytes_dense": trace.kv_bytes_dense,
        "seconds": trace.provenance.seconds,
        "notes": list(trace.notes),
    }


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:  # before it is read: it may not fit into memory
            raise ValueError(too_large(path.name, path.stat().st_size))
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror})") from None


def _models(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from sparsity_core.models import EMBEDDED, describe_embedded

    found = {EMBEDDED: describe_embedded()}
    text = (
        f"{EMBEDDED}: {found[EMBEDDED]['status']}\n"
        "Any hub id (owner/name) or local folder with safetensors or GGUF weights works too."
    )
    return found, text


def _methods(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    found, lines = {}, []
    for name in methods.names():
        cls = methods.get(name)
        knobs = {k.name: {"default": k.default, "help": k.metadata["help"]} for k in cls.knobs()}
        found[name] = {"stage": cls.stage, "source": cls.source, "doc": (cls.__doc__ or "").strip(), "knobs": knobs}
        lines.append(f"{cls.stage}={name}  {(cls.__doc__ or '').strip().splitlines()[0]}  [{cls.source}]")
        lines += [f"    {knob}={item['default']}  {item['help']}" for knob, item in knobs.items()]
    return found, "\n".join(lines)
