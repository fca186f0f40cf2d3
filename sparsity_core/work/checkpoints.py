"""What training leaves: an unfinished one as one safetensors file, a finished one as name.safetensors and name.json."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from sparsity_core.work.files import read_regular, write_whole


def write_checkpoint(path: Path, tensors: dict[str, torch.Tensor], **notes: Any) -> None:
    """Writes tensors and plain JSON values whole or not at all. Raises OSError where the folder cannot be written."""
    data = save(
        {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()},
        {name: json.dumps(value) for name, value in notes.items()},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, notes). Raises OSError, SafetensorError or ValueError for a file that is no checkpoint."""
    with safe_open(path, framework="pt") as file:
        # copies: the tensors would otherwise be views of the file's mapping
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return tensors, {name: json.loads(text) for name, text in (file.metadata() or {}).items()}


def write_trained(path: Path, tensors: dict[str, torch.Tensor], recipe: dict[str, Any]) -> None:
    """Writes tensors and, as name.json, plain JSON values with the tensors' hash. Raises OSError where that cannot be.

    Remove the training's checkpoint afterwards: until both files stand, it is what a killed training goes on from.
    """
    data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    card = {**recipe, "blake2b": hashlib.blake2b(data).hexdigest()}
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in card.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # The card first: a process killed between the two leaves no weights that nothing accepts.
    write_whole(path.with_suffix(".json"), ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    write_whole(path, data)


def read_trained(path: Path, what: str, form: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, recipe) of a `what` of this format. Raises ValueError, with the next step, for a file missing or changed."""
    again, beside = "train it again, or give another file", path.with_suffix(".json")
    try:
        card = json.loads(read_regular(beside))
        data = read_regular(path)
    except OSError as error:
        raise ValueError(f"there is no {what} at {path} ({error.strerror or error}): {again}") from None
    except ValueError:
        raise ValueError(f"{beside} is damaged: {again}") from None
    if not isinstance(card, dict) or card.pop("format", None) != form:
        raise ValueError(f"{beside} is no {what} of format {form}: {again}")
    if hashlib.blake2b(data).hexdigest() != card.pop("blake2b", None):
        raise ValueError(f"{path} is not the file that {path.stem}.json was written with: {again}")
    try:
        return load(data), card
    except SafetensorError:
        raise ValueError(f"{path} does not hold what its recipe says: {again}") from None
