"""Losses and perplexity of a text, by the convention that papers use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sparsity_core.models.model import Model
from sparsity_core.models.numbers import check_losses
from sparsity_core.work import Progress, silent


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean −log p over `tokens` predicted tokens, in `blocks` blocks of `block` tokens of the text."""

    perplexity: float
    tokens: int
    blocks: int
    block: int
    pipeline: str
    add_bos: str = "auto"
    kv_share: float = (
        1.0  # bytes that the cache held at the end of each block over those of nothing dropped; their mean
    )
    of_blocks: tuple[float, ...] = ()  # the mean −log p of each block, nats

    @property
    def convention(self) -> str:
        """How it was measured, in words."""
        start = "a start token before each" if self.add_bos == "yes" else "no BOS added"
        return f"{self.tokens:,} tokens predicted in {self.blocks} blocks of {self.block}, {start}"

    @property
    def stderr(self) -> float:
        """Standard error of the perplexity over its blocks (nan: of one block): perplexity × that of the blocks' mean loss.

        It tells of other text of this kind. Two pipelines read the same blocks: hold their `of_blocks` against each other by
        `evaluate.paired`.
        """
        if len(self.of_blocks) < 2:
            return math.nan
        return self.perplexity * float(np.std(self.of_blocks, ddof=1)) / math.sqrt(len(self.of_blocks))


@torch.inference_mode()
def losses(model: Model, ids: Sequence[int]) -> np.ndarray:
    """float32 [T]: −log p of the next token at each of the T tokens, in one plain forward; nan at the last."""
    hidden = model.hidden(torch.tensor([list(ids)]), use_cache=False)[0]
    following = torch.tensor(list(ids[1:]))
    nll = np.full(len(ids), np.nan, np.float32)
    for start, end, logits in model.logit_rows(hidden):
        nll[start:end] = log_total(logits.clone()).cpu().numpy() - picked(logits, following[start:end])
    return nll


def log_total(logits: torch.Tensor) -> torch.Tensor:
    """[rows]: log Σ exp of each row [vocabulary], in the rows' own memory: a fifth of logsumexp's time."""
    top = logits.amax(-1, keepdim=True)
    return logits.sub_(top).exp_().sum(-1).log_() + top[:, 0]


def picked(rows: torch.Tensor, following: torch.Tensor) -> np.ndarray:
    """What each row [vocabulary] holds for the token that follows; nan for a last row that nothing follows."""
    out = np.full(rows.shape[0], np.nan, np.float32)
    out[: len(following)] = rows[: len(following)].gather(1, following.to(rows.device)[:, None])[:, 0].cpu().numpy()
    return out


def blocks_perplexity(
    model: Model,
    text: str,
    *,
    block: int = 2048,
    most_blocks: int | None = None,
    add_bos: str = "auto",
    losses_of: Callable[[list[int]], np.ndarray] | None = None,
    pipeline: str = "dense",
    progress: Progress = silent,
) -> Perplexity:
    """Tokenises the text once, cuts it into non-overlapping blocks, drops the tail, and reads each block by itself.

    That is the WikiText-2 convention of GPTQ and its followers. Each block starts with an empty cache, and its first token
    is not predicted.

    Args:
        block: tokens of a block, 2 to the model's positions.
        add_bos: "yes" starts every block with the start token, which predicts the block's first token too. Blocks have no
            start token otherwise, as the convention is.
        most_blocks: only so many of the first blocks, for a quicker answer.
        losses_of: the losses [T] of a block's token ids; the plain model's where None. `pipeline` names what it runs.

    Raises ValueError for a text shorter than one block, or a block that the model cannot read.
    """
    if not 2 <= block <= model.arch.max_positions:
        raise ValueError(
            f"block is 2 to {model.arch.max_positions:,} tokens, the positions of {model.name}; got {block}"
        )
    if most_blocks is not None and most_blocks < 1:
        raise ValueError(f"most_blocks is at least 1; got {most_blocks}")
    start = model.start_token(add_bos)
    if len(start) + block > model.arch.max_positions:
        raise ValueError(
            f"a start token and {block:,} tokens pass the {model.arch.max_positions:,} positions of {model.name}: "
            "choose a smaller block"
        )
    ids = model.encode_all(text)
    blocks = len(ids) // block
    if not blocks:
        raise ValueError(f"the text has {len(ids):,} tokens, fewer than one block of {block:,}: choose a smaller block")
    blocks = min(blocks, most_blocks or blocks)
    own: list[float] = []
    for i in range(blocks):
        progress(i / blocks, f"block {i + 1} of {blocks}")
        part = start + ids[i * block : (i + 1) * block]
        nll = losses(model, part) if losses_of is None else losses_of(part)
        check_losses(nll, model.name, i * block - len(start))
        own.append(float(nll[:-1].astype(np.float64).mean()))
    count = blocks * (block - 1 + len(start))
    mean = sum(own) / blocks  # blocks are of one length
    return Perplexity(math.exp(mean), count, blocks, block, pipeline, add_bos, of_blocks=tuple(own))
