"""Options that commands share, how their files are read and written, and the progress bar."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sparsity_core.work import read_file

Answer = tuple[dict[str, Any], str]  # what a command found: as JSON values, and as text


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output and nothing else there")


def model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m", help="the embedded model, a hub id, or a local folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")


def pipeline_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipeline", default="dense", metavar="P", help='e.g. "eviction=a2sf(budget=64)"')


def text_options(parser: argparse.ArgumentParser) -> None:
    """A text that must be given, in one of two ways."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT", help="the text itself")
    source.add_argument("--file", metavar="F", type=path, help="a UTF-8 text file, or a pipe")


def file_option(parser: Any, help: str) -> None:
    """A text that takes the place of a default one."""
    parser.add_argument("--file", metavar="F", type=path, help=help)


def seed_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything that is drawn at random")


def start_option(parser: argparse.ArgumentParser, auto: str) -> None:
    parser.add_argument(
        "--add-bos", choices=("auto", "yes", "no"), default="auto", help=f"start with the start token; auto: {auto}"
    )


def trace_options(parser: argparse.ArgumentParser) -> None:
    """What `run` and `generate` record, and where the trace goes."""
    start_option(parser, "as the tokenizer does")
    parser.add_argument("--snapshots", type=int, default=64, metavar="N", help="most copies of the scores in the trace")
    parser.add_argument(
        "--against-dense",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a second, dense pass, for regret, the ideal mask and KL",
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="write the trace there, as trace.npz")


def out_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="a folder; nothing in it is overwritten")


def path(text: str) -> Path:
    """A file or folder that is named. An empty name would be the folder in which the command runs."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty: give a path")
    return Path(text)


def text_of(options: argparse.Namespace) -> str | None:
    """The text of --prompt or --file; None where neither is given. Raises ValueError for what is no text."""
    prompt: str | None = getattr(options, "prompt", None)
    if prompt is not None:
        if not prompt.strip():  # before a model is loaded for it
            raise ValueError("the prompt is empty: type or choose some text")
        return prompt
    return None if options.file is None else read_file(options.file)


def load_model(options: argparse.Namespace, progress: Callable[[float, str], None]) -> Any:
    from sparsity_core.models import load

    progress(0.0, f"loading {options.model}")
    return load(options.model, device=options.device, dtype=options.dtype, progress=progress)


def new_file(path: Path) -> Path:
    """The path of a file to come, its folder made. Raises ValueError where it exists: hours may have gone into it."""
    if path.exists():
        raise ValueError(f"{path} exists already: choose another --out, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the disk refuses, as bad input: the folder is the user's choice."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write to {folder} ({error.strerror or error}): choose a folder you can write"
        ) from None


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[float, str], None]]:
    """A progress bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    layout = "{l_bar}{bar}| {elapsed}<{remaining}"
    with tqdm(total=100, file=sys.stderr, disable=None, leave=False, bar_format=layout) as bar:

        def progress(share: float, doing: str) -> None:
            bar.set_description(doing, refresh=False)
            bar.update(round(100 * share) - bar.n)

        yield progress
