"""The singular values of a model's own FFN matrices, kept in the user's cache."""

from __future__ import annotations

import contextlib

import numpy as np

from sparsity_core.models import Model
from sparsity_core.weights.ffn import feed_forwards
from sparsity_core.weights.spectrum import each_spectrum
from sparsity_core.work import Progress, cache_dir, opened, read_regular, sealed, shelve, silent, used


def spectra_of(model: Model, progress: Progress = silent) -> dict[tuple[int, str], np.ndarray]:
    """The singular values of every FFN matrix by (layer, matrix), from the user's cache where they are known."""
    path = cache_dir() / "spectra" / f"{model.fingerprint}-{model.dtype_name}.npz"
    with contextlib.suppress(OSError, ValueError):
        stored = opened(read_regular(path), path.name)
        used(path)
        return {(int(name.split("_")[0]), name.split("_")[1]): values for name, values in stored.items()}
    matrices = {(block.layer, name): w for block in feed_forwards(model) for name, w in block.matrices.items()}
    found = {}
    with contextlib.closing(each_spectrum(list(matrices.values()))) as spectra:
        for (layer, name), values in zip(matrices, spectra, strict=True):
            progress(layer / model.arch.n_layers, f"spectra of layer {layer + 1}")
            found[layer, name] = values.cpu().numpy()
    with contextlib.suppress(OSError):  # a cache that cannot be written costs seconds the next time, no more
        shelve(path, sealed({f"{layer}_{name}": values for (layer, name), values in found.items()}, path.name))
    return found
