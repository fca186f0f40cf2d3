"""A model's layers with their spectra, on which choices of neurons are tried."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from sparsity_core.methods.weights.prunenet.view import View
from sparsity_core.models import Model
from sparsity_core.weights import Gram, feed_forwards, kept_count, ks_distance

_MOST_THREADS = 8  # each holds a few matrices [d, d] in float64


class LayerSpectra:
    """The layers of a model with their spectra, and a pool of threads that tries choices on them.

    Each thread works alone on a layer: two threads on one small eigenproblem mostly wait for each other.
    """

    def __init__(self, model: Model, ratio: float) -> None:
        blocks = feed_forwards(model)
        shapes = {tuple(block.first.shape) for block in blocks}
        if len(shapes) > 1:
            raise ValueError(
                f"{model.name} has layers of different sizes {sorted(shapes)}: one policy serves all layers, so choose "
                "another method, such as leverage"
            )
        self.dims: tuple[int, int] = (int(blocks[0].first.shape[0]), int(blocks[0].first.shape[1]))
        self.count = kept_count(self.dims[0], ratio)
        self.views = [View(block.first) for block in blocks]
        self._grams = [Gram(block.first) for block in blocks]
        self._before: dict[int, torch.Tensor] = {}
        self._pool = ThreadPoolExecutor(
            min(len(blocks), _MOST_THREADS, os.cpu_count() or 1), initializer=torch.set_num_threads, initargs=(1,)
        )

    def __enter__(self) -> LayerSpectra:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)  # of this thread alone: what it does itself between two passes is small
        return self

    def __exit__(self, *raised: object) -> None:
        torch.set_num_threads(self._threads)
        self._pool.shutdown(cancel_futures=True)

    @property
    def n_layers(self) -> int:
        return len(self.views)

    @property
    def floor(self) -> float:
        """The least D other than 0."""
        return 1.0 / min(self.dims)

    def prepare(self, tell: Callable[[int], None]) -> None:
        """The features and the spectrum of every layer."""
        for layer, _ in enumerate(self._each(lambda layer: (self.views[layer].summaries, self._spectrum(layer)))):
            tell(layer)

    def distances(self, kept: torch.Tensor, tell: Callable[[int], None]) -> torch.Tensor:
        """float64 [choice, layer]: D of choices `kept`, bool [choice, layer, n]; tells each layer when it is done."""
        found = []
        for layer, row in enumerate(self._each(lambda layer: [self._distance(layer, each) for each in kept[:, layer]])):
            found.append(row)
            tell(layer)
        return torch.tensor(found, dtype=torch.float64).T

    def _each(self, work: Callable[[int], Any]) -> Iterator[Any]:
        futures: Sequence[Future[Any]] = [self._pool.submit(work, layer) for layer in range(self.n_layers)]
        for future in futures:
            yield future.result()

    def _spectrum(self, layer: int) -> torch.Tensor:
        if layer not in self._before:
            self._before[layer] = self._grams[layer].singular_values().cpu()
        return self._before[layer]

    def _distance(self, layer: int, kept: torch.Tensor) -> float:
        return ks_distance(self._spectrum(layer), self._grams[layer].singular_values(kept).cpu()).statistic
