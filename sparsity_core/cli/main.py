"""From arguments to an answer and an exit status: 0, 1 for a failed run, 2 for bad input; never a traceback."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from sparsity_core.cli.parser import make_parser
from sparsity_core.work import cache_dir, clear_leftovers, explain


def start() -> int:
    """The command `sparselens`, and `python -m sparsity_core`."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr] # a console without Σ gets the rest
    return main()


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
        options = make_parser().parse_args(arguments)
        clear_leftovers(cache_dir())
        return *options.command(options), 0
    except ValueError as error:
        reason, status = str(error), 2
    except KeyboardInterrupt:
        reason, status = "stopped", 1
    except Exception as error:  # a failed run is a sentence and a status, never a traceback
        reason, status = explain(error), 1
    return {"error": reason}, "", status


def _print(found: dict[str, Any], text: str, status: int, *, as_json: bool) -> int:
    if status:
        print(f"error: {found['error']}", file=sys.stderr)
    if as_json or not status:
        print(json.dumps(found, ensure_ascii=True, allow_nan=False) if as_json else text, flush=True)
    return status
