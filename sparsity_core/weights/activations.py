"""What text does inside a model: moments of what FFN matrices read, and gradients of masks on neurons and heads.

Hooks are put on a copy with modules of its own and the very same weights, so forwards of the shared model in other threads
never meet them. A stretch of text is read at a time; sums are float64, O(layers · neurons) of them unless said otherwise.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sparsity_core.models import Enough, Model
from sparsity_core.weights.ffn import down_projections, shared_copy, up_projections, weight_of
from sparsity_core.weights.heads import output_projections
from sparsity_core.work import Progress, silent

_MATRIX_BYTES = 1 << 30  # of second-moment matrices at once: as many layers a pass as fit, but at least one


@dataclass(frozen=True, eq=False)
class Moments:
    """Of one layer's neurons over `count` tokens, float64 [n]."""

    count: int
    mean: torch.Tensor
    square: torch.Tensor  # E x²

    @property
    def variance(self) -> torch.Tensor:
        return (self.square - self.mean.square()).clamp_min(0.0)

    @property
    def norm(self) -> torch.Tensor:
        """‖X_i‖₂ over all tokens."""
        return (self.count * self.square).sqrt()


@torch.no_grad()
def neuron_moments(model: Model, windows: torch.Tensor, progress: Progress = silent) -> list[Moments]:
    """The moments of every layer's neurons, what the down projection reads, over windows int64 [S, T]; one pass."""
    own = _own(model)
    downs = down_projections(own)
    mean: list[Any] = [0.0] * len(downs)
    square: list[Any] = [0.0] * len(downs)

    def add(layer: int, x: torch.Tensor) -> None:
        rows = x.flatten(0, -2).double()
        mean[layer] = mean[layer] + rows.sum(0) / windows.numel()
        square[layer] = square[layer] + rows.square().sum(0) / windows.numel()

    with _before(downs, add):
        for i, window in enumerate(windows):
            progress(i / len(windows), f"activations, stretch {i + 1} of {len(windows)}")
            own.hidden(window[None], use_cache=False)
    return [Moments(windows.numel(), m, s) for m, s in zip(mean, square, strict=True)]


@torch.no_grad()
def input_moments(
    model: Model, windows: torch.Tensor, progress: Progress = silent
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Layer after layer (E[x xᵀ] [d, d] of what gate and up read, [n, n] of what down reads), float64.

    O(n²) memory a layer: a pass serves as many layers as fit into a gigabyte, and ends after the last of them.
    """
    own = _own(model)
    modules = list(zip(up_projections(own), down_projections(own), strict=True))
    widths = [(_in_features(up), _in_features(down)) for up, down in modules]
    per_pass = max(1, _MATRIX_BYTES // max(8 * (d * d + n * n) for d, n in widths))
    for start in range(0, len(modules), per_pass):
        layers = modules[start : start + per_pass]
        watched = [module for pair in layers for module in pair]
        sums: list[Any] = [0.0] * len(watched)

        def add(at: int, x: torch.Tensor, sums: list[Any] = sums) -> None:
            rows = x.flatten(0, -2)
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            sums[at] = sums[at] + (rows.T @ rows).double()
            if at == len(sums) - 1:
                raise Enough

        for i, window in enumerate(windows):
            done = (start + len(layers) * i / len(windows)) / len(modules)
            progress(done, f"inputs of layers {start + 1} to {start + len(layers)}, stretch {i + 1} of {len(windows)}")
            with _before(watched, add), contextlib.suppress(Enough):
                own.hidden(window[None], use_cache=False)
        yield from ((sums[2 * i] / windows.numel(), sums[2 * i + 1] / windows.numel()) for i in range(len(layers)))


@torch.no_grad()
def stream_moment(
    model: Model,
    norms: Callable[[Model], Sequence[torch.nn.Module]],
    windows: torch.Tensor,
    progress: Progress = silent,
) -> torch.Tensor:
    """Σ x̂ x̂ᵀ [d, d] over what the `norms` of a model read, x̂ = x / rms(x), float64; each read counts alike."""
    own = _own(model)
    square = (model.arch.hidden_size, model.arch.hidden_size)
    total = torch.zeros(square, dtype=torch.float64, device=model.device)
    of_window = torch.zeros(square, dtype=torch.promote_types(model.dtype, torch.float32), device=model.device)

    def add(at: int, x: torch.Tensor) -> None:
        rows = x.flatten(0, -2).to(of_window)
        rows = rows * rows.square().mean(-1, keepdim=True).clamp_min(1e-30).rsqrt()
        of_window.addmm_(rows.T, rows)

    with _before(norms(own), add):
        for i, window in enumerate(windows):
            progress(i / len(windows), f"residual stream, stretch {i + 1} of {len(windows)}")
            own.hidden(window[None], use_cache=False)
            total += of_window
            of_window.zero_()
    return total


def mask_gradients(
    model: Model, windows: torch.Tensor, unit: str, progress: Progress = silent
) -> Iterator[list[torch.Tensor]]:
    """∂L/∂ξ at ξ = 1 for each window: float64 [n] a layer, where ξ multiplies each "neuron", or each query "head".

    L is the mean next-token loss of the window. No weight gets a gradient.
    """
    own = _own(model)
    modules = down_projections(own) if unit == "neuron" else output_projections(own)
    widths = [_in_features(m) if unit == "neuron" else model.arch.n_heads for m in modules]
    for i, window in enumerate(windows):
        progress(i / len(windows), f"gradients, stretch {i + 1} of {len(windows)}")
        yield _one_gradient(own, modules, widths, window)


def next_token_loss(model: Model, window: torch.Tensor) -> torch.Tensor:
    """Mean −log p of each next token of a window int64 [T]."""
    logits = model.logits(model.hidden(window[None], use_cache=False)[0, :-1])
    return torch.nn.functional.cross_entropy(logits, window[1:].to(logits.device))


def _one_gradient(
    own: Model, modules: Sequence[torch.nn.Module], widths: Sequence[int], window: torch.Tensor
) -> list[torch.Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        masks = [
            torch.ones(n, device=w.device, dtype=torch.promote_types(w.dtype, torch.float32), requires_grad=True)
            for n, w in ((n, next(m.parameters())) for n, m in zip(widths, modules, strict=True))
        ]

        def mask(layer: int, x: torch.Tensor) -> torch.Tensor:
            each = masks[layer].to(x.dtype).repeat_interleave(x.shape[-1] // widths[layer])
            return x * each

        with _before(modules, mask):
            loss = next_token_loss(own, window)
        return [g.double() for g in torch.autograd.grad(loss, masks)]


def _own(model: Model) -> Model:
    return replace(model, hf=shared_copy(model.hf))


def _in_features(module: torch.nn.Module) -> int:
    return weight_of(module).shape[1]


@contextlib.contextmanager
def _before(
    modules: Sequence[torch.nn.Module], seen: Callable[[int, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Calls `seen(index, x)` with what each module is about to read; a tensor that it returns is read instead."""

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], at: int) -> torch.Tensor | None:
        return seen(at, args[0])

    handles = [m.register_forward_pre_hook(functools.partial(hook, at=i)) for i, m in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
