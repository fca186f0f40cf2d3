"""What a model's folder must be before transformers reads it. Reads JSON and headers alone, and imports no torch.

A folder may come from anyone, so nothing in it is taken on trust: sizes come first, then the JSON, then the names and
types of the tensors, and last the tokenizer, which is tried in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sparsity_core.models.refusals import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

_MOST_BYTES = 32 * 1024**2  # of a JSON file: the largest indexes of shards have a tenth
_MOST_TOKENIZER_BYTES = 256 * 1024**2
_DEEPEST = 24  # levels of a JSON file; configurations have up to five
_NUMBERS = (  # keys of a configuration, and the most that each may be
    (re.compile(r"(num|n)_((hidden|encoder|decoder)_)?layers?"), 2048),
    (re.compile(r"(num|n)_(\w+_)?(heads?|experts?|experts?_per_tok\w*|groups?)"), 2**14),
    (
        re.compile(
            r"((\w+_)?(hidden|intermediate)_size|(\w+_)?(head|ffn|model|rotary)_dim|d_model|d_ff|n_embd|n_inner)"
        ),
        2**20,
    ),
    (re.compile(r"vocab_size"), 2**24),
    (re.compile(r"max_position_embeddings|n_positions|n_ctx|max_seq_len|sliding_window"), 2**31),
)
_LAYERS = _NUMBERS[0][0]
_FLOATS = ("BF16", "F16", "F32", "F64")
_PLAIN = re.compile(r"[^/\\\0]+\.safetensors")

_SECONDS, _MEMORY = 20, 4 * 1024**3  # of trying a tokenizer
_SAMPLE = (
    "The 12 cats sat on 3 mats, and Ann's dog saw them all: 1,234.5 times! https://example.org/a?b=c#d\n\n\tdef f(x):\n"
    "        return x ** 2  # ok\r\n좋은 아침입니다。おはよう שלום 🙂👩‍👩‍👧 é ñ ---- ==== !!!! ???? "
    + " ".join(c * 64 for c in "a A 0 . ! é 中".split())
    + " " * 64
    + "\n" * 32
    + "abc" * 32
    + "!"
)
_TOKENIZE = """
import sys
seconds, memory = int(sys.argv[2]), int(sys.argv[3])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
except ImportError:  # where the system has no such limits
    pass
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
ids = tokenizer.encode(sys.stdin.buffer.read().decode()).ids
tokenizer.decode(ids)
print(len(ids))
"""


def check_folder(folder: Path, name: str, quantisers: Sequence[str]) -> None:
    """Raises ModelError, with the next step, for a folder that transformers should not be given.

    `quantisers` are the methods of quantisation that transformers can undo.
    """
    config = checked_config(folder, name)
    tensors = _tensors(folder, weight_files(folder, name), name)
    _check_layers(config, len(tensors), name)
    _check_types(config, tensors, quantisers, name)
    check_tokenizer(folder, name)


def checked_config(folder: Path, name: str) -> dict[str, Any]:
    """config.json, once it is plausible. Raises ModelError where it is not, or where an adapter lies beside it."""
    if (folder / "adapter_config.json").is_file():
        beside = " beside its weights" if (folder / "config.json").is_file() else " alone, which is no model"
        raise ModelError(
            f"{name} holds a PEFT adapter{beside}: merge it into its base model first (merge_and_unload, then "
            "save_pretrained) and give that folder"
            + (", or move adapter_config.json away to see the base model" if "beside" in beside else "")
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{name} has no config.json, which says what its weights mean: add it, or save the model again"
        )
    config = read_json(folder / "config.json", name)
    for key, value in _entries(config):
        most = next((most for names, most in _NUMBERS if names.fullmatch(key)), None)
        for number in value if isinstance(value, list) else [value]:
            if most is None or number is None or isinstance(number, dict):
                continue
            if type(number) is not int or not 0 <= number <= most:
                raise ModelError(
                    f"{name} has a config.json with {key} = {_short(number)}, which must be a whole number of at most "
                    f"{most:,}: correct it, or save the model again"
                )
    return config


def weight_files(folder: Path, name: str) -> list[str]:
    """The files that hold the weights: plain *.safetensors of this very folder. Raises ModelError for any others."""
    if any(re.match(r"shard-\d+-model-", path.name) for path in folder.glob("shard-*")):
        raise ModelError(
            f"{name} holds the shards of a distributed training: save the model again with save_pretrained"
        )
    explicit = read_json(folder / "config.json", name).get("transformers_weights")
    index = folder / (str(explicit) if explicit else INDEX)
    if explicit and not str(explicit).endswith(".json"):
        names = [str(explicit)]
    elif not explicit and (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif not re.fullmatch(r"[^/\\\0]+\.safetensors\.index\.json", index.name) or index.parent != folder:
        raise ModelError(f"{name} names an index of its weights outside its folder ({_short(explicit)}): save it again")
    elif not index.is_file():
        return [WEIGHTS]
    else:
        held = read_json(index, name).get("weight_map")
        names = sorted({str(v) for v in held.values()}) if isinstance(held, dict) else []
    if not names:
        raise ModelError(f"{name} has an index that names no file ({index.name}): save the model again")
    for file in names:
        if not _PLAIN.fullmatch(file):
            raise ModelError(
                f"{name} wants its weights from {_short(file)}, and only *.safetensors in its own folder are read: save the "
                "model again as safetensors"
            )
    return names


def check_tokenizer(folder: Path, name: str) -> None:
    """Raises ModelError where the tokenizer cannot be read, or needs more time or memory than a text is worth."""
    for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"):
        _check_size(folder / file, name, _MOST_TOKENIZER_BYTES)
    for file in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "added_tokens.json"):
        if (folder / file).is_file():
            read_json(folder / file, name)
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    try:
        count_apart(path, _SAMPLE, _SECONDS)
    except ValueError as error:
        raise ModelError(f"{name} has a {error}: save the tokenizer again with save_pretrained") from None


def count_apart(path: Path, text: str, seconds: int) -> int:
    """How many tokens a tokenizer.json makes of a text, asked in a process with limits on time and memory.

    A pattern of a tokenizer can take for ever, and its library can end the process that uses it. Raises ValueError with
    the reason where no answer comes.
    """
    command = [sys.executable, "-I", "-c", _TOKENIZE, str(path), str(seconds), str(_MEMORY)]
    try:
        tried = subprocess.run(command, input=text.encode(), capture_output=True, timeout=2 * seconds)
    except subprocess.TimeoutExpired:
        raise ValueError(f"tokenizer that takes more than {2 * seconds} s for a short text") from None
    if tried.returncode:
        said = [line for line in tried.stderr.decode(errors="replace").splitlines() if line.strip()]
        why = said[-1].removeprefix("Exception: ") if said else f"it needs more than {seconds} s or 4 GB"
        raise ValueError(f"tokenizer.json that cannot be used ({_short(why, 160)})")
    return int(tried.stdout)


def read_json(path: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError where it is too large, too deep, damaged or no object."""
    _check_size(path, name, _MOST_BYTES)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        deepest = max((depth for depth, _, _ in _walk(found)), default=0)
    except OSError as error:
        raise ModelError(f"{name} has a {path.name} that cannot be read ({error.strerror or error})") from None
    except RecursionError:
        deepest, found = _DEEPEST + 1, {}
    except ValueError as error:
        raise ModelError(f"{name} has a damaged {path.name} ({error}): correct it, or save the model again") from None
    if deepest > _DEEPEST:
        raise ModelError(f"{name} has a {path.name} nested more than {_DEEPEST} levels deep: save the model again")
    if not isinstance(found, dict):
        raise ModelError(f"{name} has a {path.name} that is no JSON object: save the model again")
    return found


def _check_size(path: Path, name: str, most: int) -> None:
    if os.path.isfile(path) and path.stat().st_size > most:
        raise ModelError(
            f"{name} has a {path.name} of {path.stat().st_size / 1024**2:,.0f} MB, and at most {most // 1024**2} are read: "
            "save the model again"
        )


def _walk(value: Any) -> Iterator[tuple[int, str, Any]]:
    """(depth, key, value) of everything in a JSON value, without recursion."""
    waiting: list[tuple[int, str, Any]] = [(0, "", value)]
    while waiting:
        depth, key, found = waiting.pop()
        yield depth, key, found
        inside = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
        if depth <= _DEEPEST:
            waiting.extend((depth + 1, str(k), v) for k, v in inside)


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key of a configuration and of those inside it."""
    return ((key, value) for _, key, value in _walk(config))


def _short(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) and most > 60 else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 1] + "…"


def _tensors(folder: Path, files: Sequence[str], name: str) -> dict[str, str]:
    """The type of every tensor in these files, by name."""
    found: dict[str, str] = {}
    for file in files:
        if not (folder / file).is_file():
            raise ModelError(
                f"{name} lacks {file}, which holds weights: copy it into the folder, or save the model again"
            )
        try:
            with safe_open(folder / file, framework="np") as opened:
                found |= {key: opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{name} has a damaged {file} ({error}): copy it again, or save the model again") from None
    return found


def _check_layers(config: dict[str, Any], n_tensors: int, name: str) -> None:
    for key, value in _entries(config):
        if _LAYERS.fullmatch(key) and type(value) is int and value > n_tensors:
            raise ModelError(
                f"{name} has a config.json with {key} = {value:,} and weights of {n_tensors:,} tensors, fewer than one a "
                "layer: its config.json belongs to another model"
            )


def _check_types(config: dict[str, Any], tensors: dict[str, str], quantisers: Sequence[str], name: str) -> None:
    """Integers and eight-bit floats are codes that only their quantiser can read."""
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    if method in quantisers:
        return
    coded = next((k for k, kind in tensors.items() if k.endswith("weight") and kind not in _FLOATS), None)
    if coded is not None:
        by = (
            "names no quantiser" if method is None else f"says quant_method = {_short(method)}, unknown to transformers"
        )
        raise ModelError(
            f"{name} holds {coded} as {tensors[coded]}, and its config.json {by}: save the model with float weights, or choose "
            "the original checkpoint"
        )
