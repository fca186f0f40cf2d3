"""How a command is spelled that computes something again."""

from __future__ import annotations

from shlex import quote

PROGRAM = "sparselens"


def command_line(verb: str, **options: str | float | None) -> str:
    """`sparselens VERB --option value …`, to be pasted into a POSIX shell.

    Every value is quoted, since a link may have brought it. True and False are a switch and its --no- form; None leaves
    an option out.
    """
    words = [PROGRAM, verb]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", quote(f"{value:g}" if isinstance(value, float) else str(value))]
    return " ".join(words)
