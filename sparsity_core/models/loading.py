"""Loading a decoder model and the few things that the library asks of its architecture.

Weights come from safetensors or GGUF files only, and no code of a checkpoint is ever run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sparsity_core.models.compat import quiet
from sparsity_core.models.embedded import locate_embedded
from sparsity_core.models.model import Architecture, Model, ModelError
from sparsity_core.models.seam import ATTENTION, probe, probe_logits, watch_inputs
from sparsity_core.work import EMBEDDED, weights_on_disk

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


_loaded: dict[tuple[str, str, str, str], Model] = {}
_load_lock = threading.Lock()


def load(name: str | os.PathLike[str] = EMBEDDED, *, device: str = "auto", dtype: str = "auto") -> Model:
    """A decoder model by the name of the embedded one, by hub id, or by local folder or GGUF file.

    The model loaded last is kept and returned again for equal arguments.

    Args:
        device: "auto" (CUDA where there is one, spread over several GPUs where one is too small), "cpu", "cuda", "cuda:1"…
        dtype: "auto" (float32 on the CPU; bfloat16 on CUDA, float16 where it has none), or its name.

    Raises ModelError, with the next step, for a model that cannot be found, read or recorded.
    """
    name = os.fspath(name)
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    key = (name, weights_on_disk(name), str(place), kind)
    with _load_lock:
        if key not in _loaded:
            _loaded.clear()  # one model at a time: the old one's memory must be free before the new one's is taken
            _loaded[key] = _load(name, place, DTYPES[kind])
        return _loaded[key]


def resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise ModelError(f"there is no device {device!r}: use auto, cpu or cuda")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("this machine has no CUDA device: use device=cpu or auto")
    return place


def resolve_dtype(dtype: str, device: torch.device) -> str:
    if dtype == "auto":
        if device.type != "cuda":
            return "float32"
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if dtype not in DTYPES:
        raise ModelError(f"there is no dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    return dtype


def _load(name: str, device: torch.device, dtype: torch.dtype) -> Model:
    source, gguf = _locate(name)
    with _explained(name):
        hf, tokenizer = _from_pretrained(source, gguf, device, dtype)
    return wrap(hf, tokenizer, name)


def wrap(hf: Any, tokenizer: Any, name: str) -> Model:
    """A transformers causal LM, already in memory, as a Model. Raises ModelError where it cannot be recorded."""
    config = hf.config.get_text_config()
    if hf.config.is_encoder_decoder or not hasattr(hf, "get_output_embeddings") or hf.get_output_embeddings() is None:
        raise ModelError(f"the model {name} is not a decoder language model: choose one made for text generation")
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        raise ModelError(f"{name} ({config.model_type}) has no attention to prune: choose a transformer")
    arch = Architecture(
        family=config.model_type,
        n_layers=config.num_hidden_layers,
        n_heads=heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden_size=config.hidden_size,
        max_positions=getattr(config, "max_position_embeddings", 0) or 2048,
    )
    hf.eval().requires_grad_(False)
    with _explained(name):
        plain = probe_logits(hf)  # by the attention that it came with, before ours takes its place
    hf.set_attn_implementation(ATTENTION)
    watch_inputs(hf)
    model = Model(name, hf, tokenizer, arch, hf.device, hf.dtype, _fingerprint(hf))
    reason = probe(model, plain)
    if reason is not None:
        raise ModelError(f"{name} ({arch.family}) cannot be recorded: {reason}")
    return model


def _fingerprint(hf: Any) -> str:
    """12 hex digits over every weight's name and shape and a sample of its values, independent of where it lives."""
    digest = hashlib.sha256()
    for key, tensor in sorted(hf.state_dict().items()):
        sample = tensor.flatten()[:: max(1, tensor.numel() // 64)].float().cpu().numpy()
        digest.update(f"{key} {tuple(tensor.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:12]


def _locate(name: str) -> tuple[str, str | None]:
    """(what from_pretrained reads, the GGUF file's name or None)."""
    if name == EMBEDDED:
        return locate_embedded()
    if not name.strip():
        raise ModelError(f"no model is named: give a hub id, a folder, or {EMBEDDED}")
    path = Path(os.path.expanduser(name))
    if path.suffix == ".gguf" and os.path.isfile(path):
        return str(path.parent), path.name
    if os.path.isdir(path):  # pathlib's raises for a name that is too long
        found = sorted(p.name for p in path.glob("*.gguf"))
        if any(path.glob("*.safetensors")):
            return str(path), None
        if found:
            return str(path), found[0]
        if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
            raise ModelError(
                f"{name} holds only pickled weights, which can run code when they are read: "
                "save the model as safetensors first"
            )
        raise ModelError(f"{name} holds no model: it needs config.json and *.safetensors, or a *.gguf file")
    if os.path.isfile(path):
        raise ModelError(f"the model {name} is a file: give the folder that holds it, or a *.gguf file")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder {name}: give an existing folder, a hub id, or {EMBEDDED}")
    return name, None


def _from_pretrained(source: str, gguf: str | None, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    extra: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    if not os.path.isdir(source) and not _hub_answers(source):
        extra["local_files_only"] = True  # else each file would be asked for again and again, for 20 s
    config = AutoConfig.from_pretrained(source, trust_remote_code=False, **extra)
    if config.is_encoder_decoder or type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(
            f"{source} ({config.model_type}) is not a decoder language model: choose one made for text generation"
        )
    placed = _placement(config, device, dtype)
    with quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=None if gguf else True,
            output_loading_info=True,
            **placed,
            **extra,
        )
        hf, found = loaded
        _check_complete(source, found)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **extra)
    return hf, tokenizer


def _hub_answers(name: str) -> bool:
    """Whether the hub can be asked for this model. Raises what it raises for one that it does not have."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=10)
    except RepositoryNotFoundError:
        raise
    except Exception:  # whatever keeps it away: what is in the cache can still be read
        return False
    return True


def _check_complete(source: str, found: dict[str, Any]) -> None:
    """Raises ModelError where weights were not in the checkpoint, which transformers fills with random numbers."""
    missing = sorted(found["missing_keys"])
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{source} lacks {missing[0]}{others}: the checkpoint is not whole, or its weights have other names. "
            "Save the model again with save_pretrained"
        )


def _placement(config: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """from_pretrained's device arguments: one device, or all GPUs where one cannot hold the weights."""
    if device.type != "cuda":
        return {"device_map": {"": "cpu"}}
    if device.index is None and torch.cuda.device_count() > 1:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            n_parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if spreads(n_parameters * dtype.itemsize, torch.cuda.mem_get_info(0)[0]):
            return {"device_map": "auto"}
    return {"device_map": {"": str(device)}}


def spreads(weight_bytes: int, free_bytes: int) -> bool:
    """Whether weights need more than one GPU: a fifth of its free memory is left to activations and the cache."""
    return weight_bytes > 0.8 * free_bytes


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns what transformers and the hub raise into a sentence with the next step."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except ModelError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"the model {name} does not fit into the device's memory: use device=cpu, or a smaller dtype"
        ) from error
    except Exception as error:
        chain = [error, error.__cause__, error.__context__]
        if any(isinstance(e, GatedRepoError) for e in chain):
            reason = f"the model {name} is gated: accept its licence on the hub, then run `hf auth login`"
        elif any(isinstance(e, RepositoryNotFoundError) for e in chain):
            reason = f"there is no model {name} on the hub: check the id (owner/name), or give a local folder"
        elif any(isinstance(e, (LocalEntryNotFoundError, OfflineModeIsEnabled)) for e in chain) or _is_offline(error):
            reason = f"the model {name} is not on this machine and the hub cannot be reached: go online, or give a local folder"
        elif any(isinstance(e, HFValidationError) for e in chain):
            reason = f"the model {name} is neither a folder here nor a hub id: give owner/name, an existing folder, or {EMBEDDED}"
        elif "custom code" in str(error):
            reason = f"the model {name} needs code of its own, never run here: choose a model of a family that transformers knows"
        elif "safetensors" in str(error) and not os.path.exists(os.path.expanduser(name)):
            reason = (
                f"the model {name} has no safetensors weights, and pickled ones can run code: choose another checkpoint"
            )
        else:
            said = str(error).strip().splitlines()
            what = said[0].rstrip(".") if said else type(error).__name__
            reason = f"the model {name} cannot be loaded: {what}. Check its files, or save it again"
        raise ModelError(reason) from error


def _is_offline(error: BaseException) -> bool:
    text = str(error)
    return "couldn't connect" in text or "offline" in text.lower() or "connection" in text.lower()
