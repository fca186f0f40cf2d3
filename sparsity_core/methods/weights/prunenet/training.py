"""PruneNet's policy trained on the weights alone, by REINFORCE."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sparsity_core.kinds import check_ratio
from sparsity_core.methods.weights.prunenet.layers import LayerSpectra
from sparsity_core.methods.weights.prunenet.policy import Policy
from sparsity_core.methods.weights.prunenet.view import (
    _SHARPNESS,
    SUMMARIES,
    _gumbel,
    _logistic,
    official_draw,
    seeded,
)
from sparsity_core.models import Model
from sparsity_core.work import Progress, read_checkpoint, silent, write_checkpoint

VARIANTS = ("corrected", "official")
_ROLLOUTS = 3  # draws a layer and episode; each is the others' baseline
_RATE = {"corrected": 0.15, "official": 1e-3}
_DECAY = {"corrected": 0.0, "official": 0.01}
_GAMMA = 0.99
_MOMENT = "adamw."  # before the name of each of the optimiser's tensors in a checkpoint


def train_policy(
    model: Model,
    *,
    variant: str = "corrected",
    ratio: float = 0.25,
    episodes: int = 20,
    seed: int = 0,
    progress: Progress = silent,
    checkpoint: str | Path | None = None,
) -> Policy:
    """A policy trained by REINFORCE on the weights of a model alone.

    `corrected`: three draws a layer and episode by Gumbel top-k, their exact Plackett–Luce log-probability, one Adam step an
    episode on the gradient of Σ (G − b) log p, clipped first. G_l = Σ_{k ≥ l} 0.99^{k−l} r_k is the return to go; no layer's
    choice changes another's reward, so the baseline b_l takes the later rewards off as they are, and of r_l the mean of the
    layer's other draws. Training starts from the better of keep-largest-norm and keep-largest-leverage, and what is returned
    is the choice of least mean D seen after any episode, both starts included.

    `official`: as the authors' code: r ~ U(0, 1), a relaxed Bernoulli keep = σ(logit ε + logit α), a draw without replacement in
    proportion to it, loss −γ^l / D · Σ_kept log keep under a second draw of ε, a step of AdamW a layer, the last policy. It
    does not beat random rows: that loss is no log-probability of the draw, has no baseline, and rewards are all positive, so
    it raises every kept row alike; it clips gradients that were zeroed before, and keeps a policy that is not the best.
    Differently: float32 in place of float16 autocast.

    In both D is at least 1 / (number of singular values), the least that it can be other than 0, so a choice that moves nothing
    is rewarded with that number. The authors' code sets 99999 there and then stops at `.item()` of an integer.

    Args:
        progress: called after every layer; whatever it raises cancels.
        checkpoint: a file that holds every finished episode; a training that finds it there goes on from it, with the same
            result as one that was never interrupted. Remove it once the policy is saved: a process that is killed before
            goes on from it. A disk that refuses it costs the checkpoint, not the training.

    Raises ValueError for a ratio, variant or model that does not fit, and for a checkpoint of another training.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is one of {', '.join(VARIANTS)}; got {variant!r}")
    if episodes < 1:
        raise ValueError(f"episodes is at least 1; got {episodes}")
    check_ratio("prunenet", ratio)
    with torch.inference_mode(False), torch.no_grad(), LayerSpectra(model, ratio) as spectra:
        recipe = {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "ratio": float(ratio),
            "seed": int(seed),
            "episodes": int(episodes),
        }
        training = (_Corrected if variant == "corrected" else _Official)(spectra, recipe, progress)
        file = None if checkpoint is None else Path(checkpoint)
        identity = {**recipe, "variant": variant, "dims": list(spectra.dims)}
        state = None if file is None else _resumed(file, identity)
        state = training.start() if state is None else state
        for episode in range(state.episode, episodes):
            state = training.episode(state)
            if file is not None and episode + 1 < episodes:
                _save_state(file, state, identity)
        parameters, kept = training.finish(state)
    recipe["history"] = state.history
    return Policy(variant, parameters, spectra.dims, recipe, kept)


def log_probability(scores: torch.Tensor, order: torch.Tensor, count: int) -> torch.Tensor:
    """log p of drawing order[…, :count] one after the other without replacement, each ∝ e^s (Plackett, 1975; Luce, 1959).

    log p = Σ_{i < count} (s_{π_i} − log Σ_{j ≥ i} e^{s_{π_j}}). `order` [..., n] is a permutation; returns [...].
    """
    drawn = scores.expand(order.shape).gather(-1, order)
    left = drawn.flip(-1).logcumsumexp(-1).flip(-1)
    return (drawn - left)[..., :count].sum(-1)


def returns_to_go(rewards: torch.Tensor, gamma: float = _GAMMA) -> torch.Tensor:
    """G_l = Σ_{k ≥ l} γ^{k−l} r_k over the last axis, the layers."""
    out = rewards.clone()
    for layer in range(rewards.shape[-1] - 2, -1, -1):
        out[..., layer] += gamma * out[..., layer + 1]
    return out


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """[draw, layer]: the return to go less a baseline that the layer's own draw does not enter, in standard deviations."""
    togo = returns_to_go(rewards)
    later = torch.nn.functional.pad(_GAMMA * togo[:, 1:], (0, 1))
    others = (rewards.sum(0) - rewards) / max(1, rewards.shape[0] - 1)
    found = togo - (later + others)
    return found / found.std().clamp_min(1e-12)


@dataclass(frozen=True, eq=False)
class _State:
    """A training after so many episodes."""

    episode: int
    parameters: torch.Tensor  # float32, flat; each step changes it in place
    optimiser: torch.optim.AdamW  # of `parameters` alone
    best: torch.Tensor
    best_ks: float
    history: dict[str, Any]


class _Training(ABC):
    """What both variants share: the layers, what was asked for, and how far it is."""

    variant: str

    def __init__(self, spectra: LayerSpectra, recipe: dict[str, Any], progress: Progress) -> None:
        self.spectra, self.recipe, self._progress = spectra, recipe, progress

    @abstractmethod
    def start(self) -> _State: ...

    @abstractmethod
    def episode(self, state: _State) -> _State: ...

    @abstractmethod
    def finish(self, state: _State) -> tuple[torch.Tensor, torch.Tensor]:
        """(parameters of the policy, bool [layer, n] that it keeps)."""

    def telling(self, share: float, width: float, doing: str) -> Callable[[int], None]:
        """Reports each layer of a pass that takes the part [share, share + width] of the whole."""
        total = self.recipe["episodes"] + 1  # the start takes about as long as an episode

        def tell(layer: int) -> None:
            inside = (layer + 1) / self.spectra.n_layers
            self._progress((share + width * inside) / total, f"{doing}, layer {layer + 1}")

        return tell


class _Corrected(_Training):
    variant = "corrected"

    def start(self) -> _State:
        self.spectra.prepare(self.telling(0.0, 0.4, "spectra"))
        starts = {}
        for at, name in enumerate(("norm", "leverage")):
            starts[name] = torch.zeros(SUMMARIES + self.spectra.dims[1])
            starts[name][at] = _SHARPNESS
        choices = torch.stack([self._choice(parameters) for parameters in starts.values()])
        found = self.spectra.distances(choices, self.telling(0.4, 0.6, "starts"))
        at = int(found.mean(1).argmin())
        chosen = list(starts.values())[at]
        history = {
            "start": list(starts)[at],
            "ks_of_starts": {name: _rounded(row) for name, row in zip(starts, found, strict=True)},
            "reward": [],
            "sampled_ks": [],
            "ks": [],
            "best_episode": 0,
        }
        return _State(
            0, chosen, optimiser_of(chosen, self.variant), chosen.clone(), float(found.mean(1).min()), history
        )

    def episode(self, state: _State) -> _State:
        doing = f"episode {state.episode + 1}"
        generator = seeded(self.recipe["seed"], state.episode, 0)
        scores = torch.stack([view.scores(state.parameters).cpu() for view in self.spectra.views])
        order = (scores + _gumbel((_ROLLOUTS, *scores.shape), generator)).argsort(stable=True, dim=-1, descending=True)
        kept = torch.zeros(order.shape, dtype=torch.bool).scatter(-1, order[..., : self.spectra.count], True)
        sampled = self.spectra.distances(kept, self.telling(state.episode + 1.0, 0.75, doing))
        reward = 1.0 / sampled.clamp_min(self.spectra.floor)
        with torch.enable_grad():
            scores.requires_grad_()
            chance = log_probability(scores, order, self.spectra.count)
            (uphill,) = torch.autograd.grad((advantages(reward).float() * chance).mean(), scores)
        gradient = -sum(
            (view.pullback(own) for view, own in zip(self.spectra.views, uphill, strict=True)),
            start=torch.zeros_like(state.parameters),
        )
        gradient = gradient / gradient.norm().clamp_min(1.0)  # clipped to norm 1
        _step(state, gradient)
        now = self.spectra.distances(
            self._choice(state.parameters)[None], self.telling(state.episode + 1.75, 0.25, doing + ", its choice")
        )[0]
        history = {
            **state.history,
            "reward": [*state.history["reward"], _rounded(reward.mean(0))],
            "sampled_ks": [*state.history["sampled_ks"], _rounded(sampled.mean(0))],
            "ks": [*state.history["ks"], _rounded(now)],
        }
        best, best_ks = state.best, state.best_ks
        if float(now.mean()) < best_ks:
            best, best_ks = state.parameters.clone(), float(now.mean())
            history["best_episode"] = state.episode + 1
        return replace(state, episode=state.episode + 1, best=best, best_ks=best_ks, history=history)

    def finish(self, state: _State) -> tuple[torch.Tensor, torch.Tensor]:
        return state.best, self._choice(state.best)

    def _choice(self, parameters: torch.Tensor) -> torch.Tensor:
        return torch.stack([_largest(view.scores(parameters), self.spectra.count) for view in self.spectra.views])


class _Official(_Training):
    variant = "official"

    def start(self) -> _State:
        n, d = self.spectra.dims
        self.spectra.prepare(self.telling(0.0, 1.0, "spectra"))
        generator = seeded(self.recipe["seed"], -1, 0)
        bound = d**-0.5  # torch's own linear layer
        inside = (2 * torch.rand(n * d + n, generator=generator) - 1) * bound
        parameters = torch.cat([inside, torch.rand(n, generator=generator)])
        history: dict[str, Any] = {"reward": [], "ks": []}
        optimiser = optimiser_of(parameters, self.variant)
        return _State(0, parameters, optimiser, torch.zeros(0), float("inf"), history)

    def episode(self, state: _State) -> _State:
        generator = seeded(self.recipe["seed"], state.episode, 0)
        collapsed = self._collapsed(state.parameters)
        keys = [official_draw(view.logits(collapsed), generator) for view in self.spectra.views]
        kept = torch.stack([_largest(each, self.spectra.count) for each in keys])
        doing = f"episode {state.episode + 1}"
        found = self.spectra.distances(kept[None], self.telling(state.episode + 1.0, 1.0, doing))[0]
        reward = 1.0 / found.clamp_min(self.spectra.floor)
        for layer, view in enumerate(self.spectra.views):
            logits = view.logits(self._collapsed(state.parameters)).cpu()
            keep = torch.sigmoid(logits + _logistic(logits.shape, generator))
            # of −γ^l / D · Σ_kept log keep, with respect to logit α
            gradient = -(_GAMMA**layer) * float(reward[layer]) * kept[layer] * (1.0 - keep)
            _step(state, self._spread(state.parameters, view.pullback_logits(gradient)))
        history = {
            "reward": [*state.history["reward"], _rounded(reward)],
            "ks": [*state.history["ks"], _rounded(found)],
        }
        return replace(state, episode=state.episode + 1, history=history)

    def finish(self, state: _State) -> tuple[torch.Tensor, torch.Tensor]:
        collapsed = self._collapsed(state.parameters)
        keys = [
            official_draw(view.logits(collapsed), seeded(self.recipe["seed"], state.episode, layer))
            for layer, view in enumerate(self.spectra.views)
        ]
        return collapsed, torch.stack([_largest(key, self.spectra.count) for key in keys])

    def _parts(self, parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A [n, d], b [n] and r [n] of (W Aᵀ + b) r."""
        n, d = self.spectra.dims
        inner, bias, outer = parameters.split([n * d, n, n])
        return inner.view(n, d), bias, outer

    def _collapsed(self, parameters: torch.Tensor) -> torch.Tensor:
        """[Aᵀ r, b · r]: the d + 1 numbers that the score depends on; multiplied out first, they save n² d products."""
        inner, bias, outer = self._parts(parameters)
        return torch.cat([inner.T @ outer, (bias @ outer)[None]])

    def _spread(self, parameters: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to A, b and r, from that with respect to `_collapsed`."""
        inner, bias, outer = self._parts(parameters)
        direction, offset = gradient[:-1], gradient[-1]
        return torch.cat([torch.outer(outer, direction).flatten(), offset * outer, inner @ direction + offset * bias])


def optimiser_of(parameters: torch.Tensor, variant: str) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019) as a variant uses it."""
    return torch.optim.AdamW([parameters], lr=_RATE[variant], weight_decay=_DECAY[variant])


def _step(state: _State, gradient: torch.Tensor) -> None:
    state.parameters.grad = gradient
    state.optimiser.step()


def _largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """bool [n]: the `count` largest, of equal ones the first: the choice that compression makes."""
    order = scores.double().cpu().sort(descending=True, stable=True).indices
    return torch.zeros(scores.shape, dtype=torch.bool).scatter(0, order[:count], True)


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 6) for value in values]


def _save_state(file: Path, state: _State, identity: dict[str, Any]) -> None:
    moments = state.optimiser.state_dict()["state"][0]
    tensors = {"parameters": state.parameters, "best": state.best} | {_MOMENT + name: t for name, t in moments.items()}
    numbers = {"episode": state.episode, "best_ks": state.best_ks, "history": state.history}
    with contextlib.suppress(OSError):
        write_checkpoint(file, tensors, training=identity, state=numbers)


def _resumed(file: Path, identity: dict[str, Any]) -> _State | None:
    """The training that a file holds, or None where there is no file. Raises ValueError for one that is not this training's."""
    if not file.exists():
        return None
    try:
        tensors, notes = read_checkpoint(file)
        stored, numbers = notes["training"], notes["state"]
        parameters = tensors["parameters"]
        optimiser = optimiser_of(parameters, stored["variant"])
        moments = {name: tensors[_MOMENT + name] for name in ("step", "exp_avg", "exp_avg_sq")}
        optimiser.load_state_dict({**optimiser.state_dict(), "state": {0: moments}})
        state = _State(parameters=parameters, optimiser=optimiser, best=tensors["best"], **numbers)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError):
        raise ValueError(f"{file} is no training that could go on: delete it to start again") from None
    differing = sorted(key for key in identity if stored.get(key) != identity[key])
    if differing:
        key = differing[0]
        raise ValueError(
            f"{file} holds a training with {key} {stored.get(key)}, not {identity[key]}: delete it, or name another file"
        )
    return state
