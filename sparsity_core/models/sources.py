"""From the name of a model to the folder that transformers reads: the embedded one, a folder, a GGUF file or the hub."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsity_core.models.compat import quantisers
from sparsity_core.models.embedded import locate_embedded
from sparsity_core.models.gguf import converted
from sparsity_core.models.preflight import check_folder, checked_config, weight_files
from sparsity_core.models.refusals import ModelError, explained
from sparsity_core.work import EMBEDDED, Progress

_SMALL = ["*.json", "*.model", "*.txt", "*.jinja"]  # everything of a model but its weights


@dataclass(frozen=True)
class Source:
    """A folder that was checked; `gguf` names a file in it where its conversion could not be kept."""

    folder: str
    gguf: str | None = None
    revision: str = ""  # the hub's commit


def source_of(name: str, progress: Progress) -> Source:
    """Where the model of this name is read from. Raises ModelError, with the next step, where it cannot or must not be."""
    if name == EMBEDDED:
        return Source(*locate_embedded(progress))
    if not name.strip():
        raise ModelError(f"no model is named: give a hub id, a folder, or {EMBEDDED}")
    path = Path(os.path.expanduser(name))
    if path.suffix == ".gguf" and os.path.isfile(path):
        return Source(*converted(path, name, progress))
    if os.path.isdir(path):  # pathlib's raises for a name that is too long
        return _from_folder(path, name, progress)
    if os.path.isfile(path):
        raise ModelError(f"the model {name} is a file: give the folder that holds it, or a *.gguf file")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {name}: give an existing folder, a hub id, or {EMBEDDED}")
    return _from_hub(name)


def _from_folder(path: Path, name: str, progress: Progress) -> Source:
    if any(path.glob("*.safetensors")) or (path / "adapter_config.json").is_file():
        check_folder(path, name, sorted(quantisers()))
        return Source(str(path))
    found = sorted(p.name for p in path.glob("*.gguf"))
    if found:
        return Source(*converted(path / _one_gguf(found, name), name, progress))
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise ModelError(
            f"{name} holds only pickled weights, which can run code when they are read: "
            "save the model as safetensors first"
        )
    raise ModelError(f"{name} holds no model: it needs config.json and *.safetensors, or a *.gguf file")


def _one_gguf(names: Sequence[str], name: str) -> str:
    """The one language model among GGUF files. Raises ModelError where there are several, or parts of one."""
    models = [n for n in names if not n.lower().startswith("mmproj")]
    parts = [n for n in models if re.search(r"-\d+-of-\d+\.gguf$", n)]
    if parts:
        raise ModelError(f"{name} holds a GGUF file in parts ({parts[0]}): join them with `llama-gguf-split --merge`")
    if not models:
        raise ModelError(
            f"{name} holds only {names[0]}, which projects images: give the GGUF file of the language model"
        )
    if len(models) > 1:
        raise ModelError(f"{name} holds {len(models)} GGUF files: give one of them, {', '.join(models)}")
    return models[0]


def _from_hub(name: str) -> Source:
    """The model in the hub's cache on this machine, downloaded where it is not there: first what is small, to check it."""
    from huggingface_hub import snapshot_download

    with explained(name):
        revision = _revision(name)
        fetch = functools.partial(snapshot_download, name, revision=revision, local_files_only=revision is None)
        folder = Path(fetch(allow_patterns=_SMALL))
        checked_config(folder, name)
        fetch(allow_patterns=weight_files(folder, name))
        if not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"the model {name} has no safetensors weights, and pickled ones can run code: choose another checkpoint"
            )
        check_folder(folder, name, sorted(quantisers()))
    return Source(str(folder), revision=revision or folder.name)


def _revision(name: str) -> str | None:
    """The commit that the hub would give; None where it cannot be asked. Raises what it raises for a model it has not."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return HfApi().model_info(name, timeout=10).sha
    except (RepositoryNotFoundError, HFValidationError):
        raise
    except Exception:  # whatever keeps it away: what is in the cache can still be read
        return None
