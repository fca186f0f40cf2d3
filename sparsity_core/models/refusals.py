"""Why a model is refused, as a sentence with the next step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sparsity_core.work import EMBEDDED


class ModelError(ValueError):
    """A model cannot be loaded or used; the message says why and what to do next."""


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns what transformers, its tokenizers and the hub raise into a ModelError."""
    try:
        yield
    except (ModelError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in the tokenizers' Rust code is no Exception
        raise ModelError(_reason(name, error)) from error


def _reason(name: str, error: BaseException) -> str:
    import torch
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    chain = [error, error.__cause__, error.__context__]

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return f"the model {name} does not fit into the device's memory: use device=cpu, or a smaller dtype"
    if among(GatedRepoError):
        return f"the model {name} is gated: accept its licence on the hub, then run `hf auth login`"
    if among(RepositoryNotFoundError):
        return f"there is no model {name} on the hub: check the id (owner/name), or give a local folder"
    if among(LocalEntryNotFoundError, OfflineModeIsEnabled) or _is_offline(error):
        return (
            f"the model {name} is not on this machine and the hub cannot be reached: go online, or give a local folder"
        )
    if among(HFValidationError):
        return f"the model {name} is neither a folder here nor a hub id: give owner/name, an existing folder, or {EMBEDDED}"
    if "custom code" in str(error):
        return f"the model {name} needs code of its own, never run here: choose a model of a family that transformers knows"
    if "PanicException" in type(error).__name__:
        return f"the model {name} has a tokenizer that breaks down ({_first_line(error)}): save it again with save_pretrained"
    return f"the model {name} cannot be loaded: {_first_line(error)}. Check its files, or save it again"


def _first_line(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    return said[0].rstrip(".") if said else type(error).__name__


def _is_offline(error: BaseException) -> bool:
    text = str(error)
    return "couldn't connect" in text or "offline" in text.lower() or "connection" in text.lower()
