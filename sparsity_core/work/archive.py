"""Arrays in one .npz file that says what it is of, and carries a digest by which any change is found."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

_SEAL = "seal"
_ROOM = 64 * 1024**2  # bytes that the arrays of any file, however small, may take
_TIGHTEST = 100  # bytes of arrays that a byte of a file may stand for beyond that


def sealed(arrays: Mapping[str, np.ndarray], about: str = "") -> bytes:
    """One .npz file of the arrays and a seal: `about`, which names what they are of, and a digest over all of it.

    The arrays are compressed, but for those that would pack more tightly than `opened` unpacks.
    """
    seal = json.dumps({"about": about, "blake2b": _digest(arrays, about)}).encode()
    members = {**arrays, _SEAL: np.frombuffer(seal, np.uint8)}
    packed = _npz(members, np.savez_compressed)
    n_bytes = sum(np.asarray(array).nbytes for array in members.values())
    return (
        packed if n_bytes <= _most_unpacked(packed) // 2 else _npz(members, np.savez)
    )  # half, since headers take some


def opened(data: bytes, about: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file that `sealed` made.

    Raises ValueError for a file that is damaged, was changed, would unpack to far more than it holds, or is of something
    other than `about`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            if sum(member.file_size for member in packed.infolist()) > _most_unpacked(data):
                raise ValueError("it would unpack to far more than it holds")
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            arrays: dict[str, np.ndarray] = {name: stored[name] for name in stored.files}
        seal = dict(json.loads(arrays.pop(_SEAL).tobytes()))
    except Exception as error:  # zip, zlib, numpy and JSON each have errors of their own for a damaged file
        raise ValueError(f"the file is damaged, or is no SparseLens file ({type(error).__name__})") from error
    if seal.get("blake2b") != _digest(arrays, str(seal.get("about"))):
        raise ValueError("the file was changed after it was written")
    if about is not None and json.dumps(seal["about"]) != json.dumps(
        about
    ):  # JSON writes a character and its two halves alike
        raise ValueError("the file is of something else")
    return arrays


def _most_unpacked(data: bytes) -> int:
    return _ROOM + _TIGHTEST * len(data)


def _digest(arrays: Mapping[str, np.ndarray], about: str) -> str:
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=32)
    for name, array in sorted(arrays.items()):
        array = np.asarray(array)
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _npz(arrays: Mapping[str, np.ndarray], save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()
