"""Errors as sentences with the next step."""

from __future__ import annotations

import signal

_KILLED = -9  # as subprocess tells SIGKILL, which not every system names


def explain(error: BaseException) -> str:
    """An error as a sentence with the next step; a ValueError of ours is one already."""
    text = _text_of(error)
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return "The machine ran out of memory: shorten the prompt, choose a smaller model, or device=cpu."
    if isinstance(error, ValueError) and text:
        if text.split()[0].isalpha():  # not a name's own spelling: meta-llama/…, n_sink, gpt2
            text = text[0].upper() + text[1:]
        return text + ("" if text.endswith((".", "?", "!")) else ".")
    return f"The run failed ({type(error).__name__}: {text.splitlines()[0] if text else 'no message'})."


def explain_exit(status: int) -> str:
    """How a process ended that nobody here ended, as a sentence. `status` as subprocess tells it: −n for a signal n."""
    if status == _KILLED:
        return (
            "The work was ended by the system, most likely as the machine ran out of memory: shorten the prompt, or choose "
            "a smaller model."
        )
    try:
        how = f"signal {-status}, {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    except ValueError:  # a signal without a name
        how = f"signal {-status}"
    return f"The work ended unexpectedly ({how}): this model or setting brings its process down, others still run."


def _text_of(error: BaseException) -> str:
    try:
        return str(error).strip()
    except BaseException:  # an exception of another library may fail to say what it is
        return ""
