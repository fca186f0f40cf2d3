"""An unfinished training as one safetensors file: its tensors, and its numbers as JSON in the header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from sparsity_core.files import write_whole


def write_checkpoint(path: Path, tensors: dict[str, torch.Tensor], **notes: Any) -> None:
    """Writes tensors and plain JSON values whole or not at all. Raises OSError where the folder cannot be written."""
    data = save(
        {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()},
        {name: json.dumps(value) for name, value in notes.items()},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, notes). Raises OSError, SafetensorError or ValueError for a file that is none."""
    with safe_open(path, framework="pt") as file:
        # copies: the tensors would otherwise be views of the file's mapping
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return tensors, {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
