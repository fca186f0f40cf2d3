"""Options that commands share, how their files are read and written, and the progress bar."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsity_core.kinds import Pipeline
from sparsity_core.work import Progress, read_file

Answer = tuple[dict[str, Any], str]  # what a command found: as JSON values, and as text


def setting(parser: Any, name: str, default: Any, help: str) -> None:
    """An option of a setting's name, type and default; a switch has its --no- form too."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=help)
    else:
        metavar = "N" if isinstance(default, int) else "X"
        parser.add_argument(flag, type=type(default), default=default, metavar=metavar, help=help)


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output and nothing else there")


def model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m", help="the embedded model, a hub id, or a local folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16; int8 weights")


def run_options(parser: argparse.ArgumentParser) -> Any:
    """What a text, a model and a pipeline need, of every command that puts the first through the others.

    Returns the group of which one must be given, the text among it.
    """
    source = text_options(parser)
    model_options(parser)
    parser.add_argument("--pipeline", default="dense", metavar="P", help='e.g. "eviction=a2sf(budget=64)"')
    seed_option(parser)
    json_option(parser)
    return source


def text_options(parser: argparse.ArgumentParser) -> Any:
    """A text that must be given, in one of two ways. Returns the group of the two."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT", help="the text itself")
    source.add_argument("--file", metavar="F", type=path, help="a UTF-8 text file, or a pipe")
    return source


def file_option(parser: Any, help: str) -> None:
    """A text that takes the place of a default one."""
    parser.add_argument("--file", metavar="F", type=path, help=help)


def seed_option(parser: argparse.ArgumentParser) -> None:
    setting(parser, "seed", 0, "of everything that is drawn at random")


def start_option(parser: argparse.ArgumentParser, auto: str) -> None:
    parser.add_argument(
        "--add-bos", choices=("auto", "yes", "no"), default="auto", help=f"start with the start token; auto: {auto}"
    )


def question_option(parser: argparse.ArgumentParser, auto: str) -> None:
    parser.add_argument(
        "--question",
        choices=("auto", "known", "unknown"),
        default="auto",
        help=f"whether what compresses the prompt reads its question first; auto: {auto}",
    )


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


def chosen(options: argparse.Namespace, *names: str, prefix: str = "") -> dict[str, Any]:
    """The values of options under the names of the settings that they stand for."""
    return {name: getattr(options, f"{prefix}{name}") for name in names}


@contextlib.contextmanager
def asked(options: argparse.Namespace) -> Iterator[tuple[tuple[Any, str, Pipeline], Progress]]:
    """The model, text and pipeline of `run_options`, under a progress bar. What is mistyped costs no loading."""
    pipeline, text = Pipeline.parse(options.pipeline), text_of(options)
    assert text is not None
    with progress_bar() as progress:
        yield (load_model(options, progress), text, pipeline), progress


def load_model(options: argparse.Namespace, progress: Progress) -> Any:
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
def progress_bar() -> Iterator[Progress]:
    """A progress bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    layout = "{l_bar}{bar}| {elapsed}<{remaining}"
    with tqdm(total=100, file=sys.stderr, disable=None, leave=False, bar_format=layout) as bar:

        def progress(share: float, doing: str) -> None:
            bar.set_description(doing, refresh=False)
            bar.update(round(100 * share) - bar.n)

        yield progress
