"""PruneNet's policy and its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsity_core.methods.weights.prunenet.view import SUMMARIES, View, official_draw, seeded
from sparsity_core.weights import FeedForward
from sparsity_core.work import read_trained, write_trained

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Policy:
    """A trained policy: scores every neuron of a layer [n, d]; the lowest go.

    `corrected`: s = θ · (z(log ‖w‖), z(ℓ), z(log ℓ in each of four bands of singular values), z(w) / d), z over the layer's
    neurons, ℓ the leverage score. `official`: α = σ(w · v + c), the authors' σ((W Aᵀ + b) r) with v = Aᵀ r and c = b · r.
    """

    variant: str
    parameters: torch.Tensor  # float32 [6 + d], or [d + 1] for `official`
    dims: tuple[int, int]  # (d_ff, d)
    recipe: dict[str, Any]  # plain JSON values: model, fingerprint, ratio, seed, episodes, history
    kept: torch.Tensor  # bool [layer, d_ff]: what it keeps of the model and at the ratio of its training

    def scores(self, block: FeedForward) -> torch.Tensor:
        """float32 [n]: how much each neuron of this block matters. Raises ValueError for a block of other dimensions.

        The official policy draws even at compression, in proportion to a relaxed Bernoulli keep. Keys log keep + Gumbel noise
        from the recipe's seed have that distribution at every ratio, so they are its scores.
        """
        if tuple(block.first.shape) != self.dims:
            raise ValueError(
                f"the policy was trained on {self.dims[0]:,} neurons over {self.dims[1]:,} channels and layer {block.layer} "
                f"has {block.first.shape[0]:,} over {block.first.shape[1]:,}: train one for this model"
            )
        view = View(block.first)
        if self.variant == "corrected":
            return view.scores(self.parameters)
        generator = seeded(self.recipe["seed"], self.recipe["episodes"], block.layer)
        return official_draw(view.logits(self.parameters), generator)

    def save(self, path: str | Path) -> Path:
        """Writes `name.safetensors` and, beside it, `name.json` with the recipe and the first one's hash.

        Raises ValueError for another suffix, and OSError where the folder cannot be written.
        """
        path = _policy_path(path)
        tensors = {"parameters": self.parameters, "kept": self.kept}
        write_trained(
            path, tensors, {"format": FORMAT, "variant": self.variant, "dims": list(self.dims), **self.recipe}
        )
        return path

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Reads what `save` wrote. Raises ValueError, with the next step, where a file is missing, damaged or changed."""
        path = _policy_path(path)
        tensors, card = read_trained(path, "policy", FORMAT)
        try:
            variant, (n, d) = card.pop("variant"), card.pop("dims")
            policy = cls(variant, tensors["parameters"], (int(n), int(d)), card, tensors["kept"])
            expected = {"corrected": SUMMARIES + d, "official": d + 1}[variant]
            sound = policy.parameters.shape == (expected,) and bool(policy.parameters.isfinite().all())
            if not sound or {"ratio", "seed", "episodes", "fingerprint"} - set(card):
                raise KeyError(variant)
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path} does not hold what its recipe says: train it again, or give another file"
            ) from None
        return policy


def _policy_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a policy is two files, name.safetensors and name.json: give the first; got {path}")
    return path
