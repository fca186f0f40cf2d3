"""What PruneNet's policy sees of a neuron, and its random draws."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import torch

_BANDS = 4  # of singular values, from the largest to the smallest, in which a row's leverage is told apart
SUMMARIES = 2 + _BANDS  # what the corrected policy sees of a neuron beside its weights
_RELIABLE = 1e-16  # of the largest eigenvalue of a Gram matrix: smaller ones are rounding
_SLICE = 2048  # rows in float64 at once
_SHARPNESS = 3.0  # of the starting scores against the Gumbel noise: at 1, half of every draw would be noise


class View:
    """What a policy sees of one layer's first matrix [n, d]."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight.detach()

    @property
    def weight(self) -> torch.Tensor:
        """float32 [n, d]: the model's own where it is that, a passing copy of a narrower one."""
        return self._weight.float()

    @cached_property
    def summaries(self) -> torch.Tensor:
        """float32 [n, 6]: log row norm, leverage score, and its logarithm by band; each z-scored over the neurons."""
        leverage = _band_leverages(self.weight)
        norm = self.weight.double().norm(dim=1, keepdim=True)
        # exact zeros have no logarithm; the floor is far below any neuron that does something
        raw = [norm.clamp_min(1e-30).log(), leverage.sum(1, keepdim=True), leverage.clamp_min(1e-30).log()]
        return _standardised(torch.cat(raw, 1)).float()

    @cached_property
    def _moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean of each channel, and the factor that makes the channels together weigh as much as one summary."""
        deviation, mean = torch.std_mean(self.weight, dim=0, correction=0)
        return mean, 1.0 / (deviation.clamp_min(1e-12) * self._weight.shape[1])

    def scores(self, parameters: torch.Tensor) -> torch.Tensor:
        """[n] of the corrected policy. z(w) is never made: its mean and deviation go into the parameters."""
        parameters = parameters.to(self._weight.device)
        mean, scale = self._moments
        direction = parameters[SUMMARIES:] * scale
        return self.summaries @ parameters[:SUMMARIES] + self.weight @ direction - mean @ direction

    def pullback(self, gradient: torch.Tensor) -> torch.Tensor:
        """[6 + d]: the gradient with respect to the parameters, from that [n] with respect to `scores`."""
        gradient = gradient.to(self._weight.device)
        mean, scale = self._moments
        return torch.cat(
            [self.summaries.T @ gradient, (self.weight.T @ gradient - mean * gradient.sum()) * scale]
        ).cpu()

    def logits(self, parameters: torch.Tensor) -> torch.Tensor:
        """[n]: logit α of the official policy."""
        parameters = parameters.to(self._weight.device)
        return self.weight @ parameters[:-1] + parameters[-1]

    def pullback_logits(self, gradient: torch.Tensor) -> torch.Tensor:
        """[d + 1]: the same for `logits`."""
        gradient = gradient.to(self._weight.device)
        return torch.cat([self.weight.T @ gradient, gradient.sum()[None]]).cpu()


def _band_leverages(weight: torch.Tensor) -> torch.Tensor:
    """float64 [n, 4]: Σ U_ik² of W = U Σ Vᵀ over each quarter of the singular values, largest first."""
    rows, columns = weight.shape
    if rows <= columns:
        wide = weight.double()
        eigenvalues, vectors = torch.linalg.eigh(wide @ wide.T)
        squares = [vectors.square()]
    else:
        gram = torch.zeros(columns, columns, dtype=torch.float64, device=weight.device)
        for part in weight.split(_SLICE):
            gram.addmm_(part.double().T, part.double())
        eigenvalues, vectors = torch.linalg.eigh(gram)
        whitened = vectors / eigenvalues.clamp_min(1e-300).sqrt()
        squares = [(part.double() @ whitened).square() for part in weight.split(_SLICE)]
    sound = (eigenvalues > _RELIABLE * eigenvalues[-1]).double()
    found = torch.cat(squares) * sound
    return torch.stack([band.sum(1) for band in found.flip(1).tensor_split(_BANDS, dim=1)], 1)


def _standardised(columns: torch.Tensor) -> torch.Tensor:
    """Mean 0 and deviation 1 down each column; zeros where a column is constant but for rounding."""
    deviation, mean = torch.std_mean(columns, dim=0, correction=0)
    constant = deviation <= 1e-9 * mean.abs().clamp_min(1.0)
    return torch.where(constant, 0.0, (columns - mean) / deviation.masked_fill(constant, 1.0))


def official_draw(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """[n]: keys whose k largest are a draw of k without replacement ∝ keep = σ(logit ε + logit α)."""
    logits = logits.cpu()
    log_keep = torch.nn.functional.logsigmoid(logits + _logistic(logits.shape, generator))
    return log_keep + _gumbel(logits.shape, generator)


def _logistic(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """logit ε, ε ~ U(0, 1)."""
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12).logit().float()


def _gumbel(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    uniform = torch.rand(tuple(shape), generator=generator, dtype=torch.float64).clamp(1e-300, 1 - 1e-16)
    return -(-uniform.log()).log().float()


def seeded(seed: int, episode: int, layer: int) -> torch.Generator:
    """Its own for each episode and layer, so that a training that goes on draws what it would have drawn."""
    digest = hashlib.blake2b(f"{seed} {episode} {layer}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))
