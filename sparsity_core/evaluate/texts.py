"""Many texts from a folder or a file of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from sparsity_core.work import read_file

FIELDS = ("text", "prompt")  # of a JSON line, the first that it has


def read_texts(path: str | Path) -> list[str]:
    """The texts of a folder's *.txt files in the order of their names, or of a .jsonl file's lines.

    A line is an object with a text in its field `text` or `prompt`. Raises ValueError for what cannot be read, with the file
    and the line.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.glob("*.txt") if file.is_file())
        if not files:
            raise ValueError(f"{path} holds no .txt file: give a folder with a text in each, or a .jsonl file")
        return [read_file(file) for file in files]
    return texts_of_lines(path.name, read_file(path))


def texts_of_lines(name: str, content: str) -> list[str]:
    """The texts of a file of JSON lines, each an object. Raises ValueError with the name and the line of one that is none."""
    return [text_of_line(name, at, line) for at, line in enumerate(content.split("\n"), 1) if line.strip()]


def text_of_line(name: str, at: int, line: str) -> str:
    """The text of a line of JSON. Raises ValueError with the file's name and the line's number."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise ValueError(f'{name}, line {at}: it is no JSON object; write {{"text": …}} on a line of its own')
    field = next((field for field in FIELDS if field in row), None)
    if field is None:
        raise ValueError(f"{name}, line {at}: it has no field 'text' or 'prompt'; it has {', '.join(row) or 'none'}")
    if not isinstance(row[field], str) or not row[field].strip():
        raise ValueError(f"{name}, line {at}: the field {field!r} is a text that is not empty; got {row[field]!r}")
    return row[field]
