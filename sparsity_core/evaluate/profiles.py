"""What a run did along its text, by shares of it, so that texts of any lengths are put over one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsity_core.record import Trace

BINS = 20  # equal shares of a text


@dataclass(frozen=True, eq=False)
class Profile:
    """A run by shares of its text; token t of T lies in share ⌊t · bins / T⌋. NaN where a share holds no token."""

    n_tokens: int
    kl: np.ndarray  # float32 [bin]: mean KL to the dense model after the tokens, nats; nan where not compared
    kept: np.ndarray  # float32 [layer, bin]: share of the keys, over KV heads, that the last query still holds

    @property
    def kept_by_depth(self) -> np.ndarray:
        """float32 [bin]: the mean of `kept` over the layers; nan where a share holds no token."""
        return np.asarray(self.kept.mean(axis=0))

    @property
    def kept_by_layer(self) -> np.ndarray:
        """float32 [layer]: the mean of `kept` over the tokens."""
        counts = np.bincount(_shares(self.n_tokens, self.kept.shape[1]), minlength=self.kept.shape[1])
        return np.asarray(np.nan_to_num(self.kept) @ (counts / self.n_tokens), np.float32)


def profile_of(trace: Trace, bins: int = BINS) -> Profile:
    """The profile of a run. Raises ValueError for less than one share."""
    if bins < 1:
        raise ValueError(f"a text is divided into one share or more; got {bins}")
    t = trace.n_tokens
    share = _shares(t, bins)
    held = (trace.evicted_at > t - 1).mean(axis=1, dtype=np.float32)
    kl = trace.kl_to_dense[None]
    return Profile(t, _means(kl, share, bins)[0], _means(held, share, bins))


def _shares(n_tokens: int, bins: int) -> np.ndarray:
    """int [token]: the share of the text that each token lies in."""
    return np.arange(n_tokens) * bins // n_tokens


def _means(values: np.ndarray, share: np.ndarray, bins: int) -> np.ndarray:
    """float32 [row, bin]: the means of values [row, token] within each share, of those that are known."""
    known = ~np.isnan(values)
    sums = np.stack([np.bincount(share, np.where(k, v, 0), bins) for v, k in zip(values, known, strict=True)])
    counts = np.stack([np.bincount(share, k, bins) for k in known])
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / counts, np.float32)
