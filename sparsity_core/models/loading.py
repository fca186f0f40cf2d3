"""Loading a decoder model and the few things that the library asks of its architecture.

Weights come from safetensors or GGUF files only, and no code of a checkpoint is ever run.
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import replace
from typing import Any

import torch
from sparselens_kernels import Card, cards, is_card

from sparsity_core.models.compat import is_causal_lm, quiet, values_of
from sparsity_core.models.gguf import plain
from sparsity_core.models.int8 import INT8, in_int8
from sparsity_core.models.masks import outputs_of
from sparsity_core.models.model import Architecture, Model
from sparsity_core.models.probe import look_at_layers, probe, probe_logits
from sparsity_core.models.refusals import ModelError, explained
from sparsity_core.models.seam import ATTENTION, layers_with_attention, watch_inputs
from sparsity_core.models.sources import Source, source_of
from sparsity_core.work import EMBEDDED, Progress, keeps, silent, weights_on_disk

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


_loaded: dict[tuple[str, str, str, str], Model] = {}
_load_lock = threading.Lock()
keeps("the model loaded last", lambda: sum(model.n_bytes() for model in list(_loaded.values())))


def load(
    name: str | os.PathLike[str] = EMBEDDED, *, device: str = "auto", dtype: str = "auto", progress: Progress = silent
) -> Model:
    """A decoder model by the name of the embedded one, by hub id, or by local folder or GGUF file.

    The model loaded last is kept and returned again for equal arguments.

    Args:
        device: "auto" (CUDA where there is one, spread over several GPUs where one is too small), "cpu", "cuda", "cuda:1"…
        dtype: "auto" (float32 on the CPU; bfloat16 on CUDA, float16 where it has none), or its name. "int8" computes as
            "auto" does with weights of int8 (the extra `int8`).

    Raises ModelError, with the next step, for a model that cannot be found, read or recorded; and whatever `progress`
    raises to cancel.
    """
    name = os.fspath(name)
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    key = (name, weights_on_disk(name), str(place), kind)
    held = _loaded.get(key)
    if held is not None:  # without the lock, which a model that takes long to load may hold
        return held
    with _load_lock:
        if key not in _loaded:
            _loaded.clear()  # one model at a time: the old one's memory must be free before the new one's is taken
            model = _load(name, place, DTYPES[resolve_dtype("auto", place) if kind == INT8 else kind], progress)
            _loaded[key] = in_int8(model) if kind == INT8 else model
        return _loaded[key]


def load_unchanged(
    name: str | os.PathLike[str], *, device: str = "auto", dtype: str = "auto", progress: Progress = silent
) -> tuple[Any, Any]:
    """A transformers model and its tokenizer as they are, with the model's own attention: nothing of it is recorded or pruned.

    Takes what `load` takes but int8, and raises ModelError as it does for what cannot be found or read.
    """
    name, place = os.fspath(name), resolve_device(device)
    if dtype == INT8:
        raise ModelError(
            "a model that runs as it is has the weights of its file: use auto, float32, bfloat16 or float16"
        )
    source = source_of(name, progress)
    with explained(name):
        return _from_pretrained(source, name, place, DTYPES[resolve_dtype(dtype, place)])


def resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if cards() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise ModelError(f"there is no device {device!r}: use auto, cpu or cuda")
    if is_card(place):
        there = len(cards())
        if not there:
            raise ModelError("this machine has no CUDA device: use device=cpu or auto")
        if (place.index or 0) >= there:
            known = ", ".join(f"cuda:{i}" for i in range(there))
            raise ModelError(f"there is no device {device!r} among this machine's {there}: use {known}, cpu or auto")
    return place


def resolve_dtype(dtype: str, device: torch.device) -> str:
    if dtype == "auto":
        if not is_card(device):
            return "float32"
        return "bfloat16" if cards()[device.index or 0].bfloat16 else "float16"
    if dtype not in (*DTYPES, INT8):
        raise ModelError(f"there is no dtype {dtype!r}: use auto, {', '.join(DTYPES)}, {INT8}")
    return dtype


def _load(name: str, device: torch.device, dtype: torch.dtype, progress: Progress) -> Model:
    source = source_of(name, progress)
    with explained(name):
        hf, tokenizer = _from_pretrained(source, name, device, dtype)
    return replace(wrap(hf, tokenizer, name), revision=source.revision)


def wrap(hf: Any, tokenizer: Any, name: str) -> Model:
    """A transformers causal LM, already in memory, as a Model. Raises ModelError where it cannot be recorded."""
    config = hf.config.get_text_config()
    if hf.config.is_encoder_decoder or not hasattr(hf, "get_output_embeddings") or hf.get_output_embeddings() is None:
        raise ModelError(f"the model {name} is not a decoder language model: choose one made for text generation")
    for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size"):
        found = values_of(config, key)
        if len(found) > 1:
            several = ", ".join(map(str, sorted(found, key=str)))
            raise ModelError(
                f"{name} ({config.model_type}) has layers of different {key} ({several}), and recording needs the same in each: "
                "choose another model"
            )
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
    layers = layers_with_attention(hf, arch.n_layers)
    with explained(name), outputs_of(layers) as outputs:
        plain = probe_logits(hf)  # by the attention that it came with, before ours takes its place
    hf.set_attn_implementation(ATTENTION)
    watch_inputs(hf)
    model = Model(name, hf, tokenizer, arch, hf.device, hf.dtype, _fingerprint(hf))
    reason = probe(model, plain)
    if reason is None:
        try:
            return look_at_layers(model, plain, layers, outputs)
        except ValueError as error:
            reason = str(error)
    raise ModelError(f"{name} ({arch.family}) cannot be recorded: {reason}")


def _fingerprint(hf: Any) -> str:
    """12 hex digits over every weight's name and shape and a sample of its values, independent of where it lives."""
    digest = hashlib.sha256()
    for key, tensor in sorted(hf.state_dict().items()):
        sample = tensor.flatten()[:: max(1, tensor.numel() // 64)].float().cpu().numpy()
        digest.update(f"{key} {tuple(tensor.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()[:12]


def _from_pretrained(source: Source, name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    extra: dict[str, Any] = {"gguf_file": source.gguf} if source.gguf else {}
    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, **extra)
    if config.is_encoder_decoder or not is_causal_lm(config):
        raise ModelError(
            f"{name} ({config.model_type}) is not a decoder language model: choose one made for text generation"
        )
    with quiet():
        # First, as it is read in a moment, and a model without one is of no use.
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, **extra)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=None if source.gguf else True,
            local_files_only=True,
            attn_implementation="eager",  # ours, as a config.json may name code on the hub
            experts_implementation=None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that _check_complete can name them
            **_placement(config, name, device, dtype),
            **extra,
        )
    hf, found = loaded
    _check_complete(name, found)
    return plain(hf) if source.gguf else hf, tokenizer


def _check_complete(name: str, found: dict[str, Any]) -> None:
    """Raises ModelError where the checkpoint and the model that its config.json describes are not the same.

    transformers fills what is missing with random numbers and ignores what is left over. Keys that its model classes
    declare ignorable are not in `found`.
    """
    again = "the checkpoint is not whole, or its weights have other names. Save the model again with save_pretrained"
    for key, stored, wanted in sorted(found["mismatched_keys"]):
        raise ModelError(
            f"{name} holds {key} in the shape {tuple(stored)} and its config.json asks for {tuple(wanted)}: correct "
            "config.json, or save the model again with save_pretrained"
        )
    missing, left = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        raise ModelError(f"{name} lacks {missing[0]}{_others(missing)}: {again}")
    if left:
        raise ModelError(
            f"{name} holds {left[0]}{_others(left)}, which the model of its config.json does not use: config.json belongs to "
            "another model (other layers, or a quantisation that is not known). Save the model again with save_pretrained"
        )
    if found["error_msgs"]:
        raise ModelError(f"{name} cannot be loaded: {found['error_msgs'][0].splitlines()[0]}. Save the model again")


def _others(keys: list[str]) -> str:
    return f" and {len(keys) - 1} more" if len(keys) > 1 else ""


def _placement(config: Any, name: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """from_pretrained's device arguments: one device, or all GPUs where one cannot hold the weights.

    Raises ModelError where they cannot all together.
    """
    if not is_card(device):
        return {"device_map": {"": "cpu"}}
    place, found = {"device_map": {"": str(device)}}, cards()
    if getattr(config, "quantization_config", None) is not None:  # takes less than its parameters' number says
        return place
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        n_parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    held = found if device.index is None else found[device.index : device.index + 1]
    reason = too_large(n_parameters, dtype, held)
    if reason is not None:
        raise ModelError(f"{name} {reason}")
    if len(held) > 1 and spreads(n_parameters * dtype.itemsize, held[0].free):
        return {"device_map": "auto"}
    return place


def spreads(weight_bytes: int, free_bytes: int) -> bool:
    """Whether weights need more than one GPU: a fifth of its free memory is left to activations and the cache."""
    return weight_bytes > 0.8 * free_bytes


def too_large(n_parameters: int, dtype: torch.dtype, held: list[Card]) -> str | None:
    """Why the weights do not fit into these cards together, and what would; None where they do."""
    free, gib = sum(card.free for card in held), 2**30
    if n_parameters * dtype.itemsize <= free:
        return None
    names = " and ".join(card.name for card in held)
    halves = dtype.itemsize > 2 and n_parameters * 2 <= free
    smaller = f"dtype=float16 ({n_parameters * 2 / gib:.1f} GiB), " if halves else ""
    return (
        f"takes {n_parameters * dtype.itemsize / gib:.1f} GiB for its weights in {str(dtype).removeprefix('torch.')}, and "
        f"{names} {'has' if len(held) == 1 else 'have'} {free / gib:.1f} GiB free: use {smaller}device=cpu, or a model of at "
        f"most {0.8 * free / 2 / 1e9:.1f} billion parameters in half precision"
    )
