"""GGUF files, converted once to safetensors in the cache, under the hash of their content.

python -m sparsity_core.models.gguf FILE FOLDER     converts, in a process that can be stopped
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sparsity_core.models.compat import quiet
from sparsity_core.models.refusals import ModelError, explained
from sparsity_core.work import Progress, cache_dir, silent

_MOST_LAYERS = 2048


def converted(gguf: Path, name: str, progress: Progress = silent, target: Path | None = None) -> tuple[str, str | None]:
    """The folder of the converted file and None, or the file's own folder and its name where nothing can be kept.

    `target` is where the conversion is kept: in the cache, under the hash of the file's content, where None.

    Raises ModelError for a file that is no model, and whatever `progress` raises to cancel.
    """
    if target is None:
        progress(0.0, f"looking at {gguf.name}")
        target = cache_dir() / "models" / f"gguf-{file_hash(gguf)[:32]}"
    if intact(target):  # before the lock, which a folder of somebody else's does not give
        return str(target), None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock"), timeout=300):
            if not intact(target):
                convert(gguf, target, name, progress)
    except (OSError, Timeout) as error:
        warnings.warn(
            f"{name} could not be kept as safetensors in {target.parent} ({error}), and each start reads the GGUF file "
            "anew, which takes longer: set SPARSELENS_CACHE to a folder you can write",
            stacklevel=3,
        )
        return str(gguf.parent), gguf.name
    return str(target), None


def convert(gguf: Path, target: Path, name: str, progress: Progress = silent) -> None:
    """`build` in a process of its own, which ends with whatever `progress` raises.

    Raises ModelError for a file that is no model, and OSError where the folder cannot be written.
    """
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "sparsity_core.models.gguf", str(gguf.resolve()), str(target.resolve())]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, "PYTHONPATH": path})
        try:
            while process.poll() is None:
                progress(0.0, f"converting {gguf.name}, once for this machine: {time.monotonic() - began:.0f} s")
                try:
                    process.wait(0.5)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()
            for left in target.parent.glob(f"building-{process.pid}-*"):
                shutil.rmtree(left, ignore_errors=True)
        if process.returncode:
            out.seek(0)
            err.seek(0)
            _raise(out.read(), err.read(), name)


def _raise(said: str, errors: str, name: str) -> None:
    try:
        answer = json.loads(said.splitlines()[-1])
    except (IndexError, ValueError):
        last = errors.strip().splitlines()[-1:] or ["it ran out of memory, or was stopped"]
        answer = {"model": f"the model {name} cannot be converted ({last[0]}): choose another file"}
    if "disk" in answer:
        raise OSError(answer["disk"])
    raise ModelError(answer["model"])


def build(gguf: Path, target: Path) -> None:
    """Writes the file's model as float32 safetensors with its tokenizer and a manifest of hashes, whole or not at all."""
    from transformers import AutoTokenizer

    building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"building-{os.getpid()}-"))
    try:
        with quiet():
            with explained(gguf.name):
                tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
            plain(read(gguf)).save_pretrained(building)
            tokenizer.save_pretrained(building)
        manifest = {p.name: file_hash(p) for p in sorted(building.iterdir())}
        (building / "manifest.json").write_text(json.dumps(manifest))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def read(gguf: Path) -> Any:
    """The file's model in float32, as transformers unpacks it. Raises ModelError for an implausible number of layers."""
    import torch
    from transformers import AutoModelForCausalLM

    with explained(gguf.name):
        _check_header(gguf)
        return AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )


def _check_header(gguf: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    for key, field in reader.fields.items():
        if key.endswith(".block_count"):
            n = int(field.contents())
            if not 0 < n <= min(_MOST_LAYERS, len(reader.tensors)):
                raise ModelError(
                    f"{gguf.name} says that it has {n:,} layers, and it holds {len(reader.tensors):,} tensors: "
                    "the file is damaged, fetch it again"
                )


def plain(hf: Any) -> Any:
    """The same model without a sign of its quantisation, so that it can be cut and saved."""
    from transformers import AutoModelForCausalLM

    config = hf.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain floats
    clean = AutoModelForCausalLM.from_config(config, dtype=hf.dtype)
    clean.load_state_dict(hf.state_dict())
    return clean


def intact(folder: Path) -> bool:
    """Whether every file of a converted model is as it was written."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return bool(manifest) and all(file_hash(folder / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, AttributeError):
        return False


def file_hash(path: Path) -> str:
    from blake3 import blake3  # the standard library's hashes need a second for the embedded model, at each start

    return blake3().update_mmap(path).hexdigest()


def main(gguf: str, target: str) -> int:
    from safetensors import SafetensorError

    try:
        build(Path(gguf), Path(target))
    except ModelError as error:
        print(json.dumps({"model": str(error)}))
    except (OSError, SafetensorError) as error:  # the last is what safetensors raises on a full disk
        print(json.dumps({"disk": str(error)}))
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
