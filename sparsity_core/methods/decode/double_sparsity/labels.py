"""Double Sparsity's label cache."""

from __future__ import annotations

import torch
from sparselens_kernels import Labels, dequantise, label_scores, quantise, reduce_group

from sparsity_core.attention import spread_visible
from sparsity_core.kinds import ALL_HEADS, Selector

_ROOM = 256  # tokens by which a label cache grows


class LabelSelector(Selector):
    """Double Sparsity's label cache: a few channels of every key, in few bits (arXiv 2408.07092)."""

    def __init__(self, channels: torch.Tensor, dtype: str, reduction: str, rerank: int = 0) -> None:
        self._channels = channels  # int64 [Hkv, r], or [H, r] where each query head has its own
        self._calibrated = channels
        self._dtype, self._reduction = dtype, reduction
        self.rerank = rerank  # tokens from one ranking of the channels to the next; 0: the calibration's stays
        self._seen: torch.Tensor | None = None  # Σ |q ⊙ k| of tokens with themselves, [Hkv or H, D]
        self.drift: list[tuple[int, float]] = []  # (tokens read, share of the calibrated channels still chosen)
        # Channel by channel, so that a product reads along the tokens, with room for more: [B, lists, r, room], [B, lists, room].
        self._values: torch.Tensor | None = None
        self._scale: torch.Tensor | None = None
        self._n = 0  # keys labelled
        self._lists = 1  # of channels, per KV head

    def follow(self, q: torch.Tensor, k: torch.Tensor) -> None:
        """Counts what some tokens' queries q [1, H, R, D] and keys k [1, Hkv, R, D] have in each channel."""
        lists = self._channels.shape[0]
        product = (q[0].float().unflatten(0, (k.shape[1], -1)) * k[0].float()[:, None]).abs().sum(2)  # [Hkv, G, D]
        own = product.flatten(0, 1) if lists == q.shape[1] else product.mean(1)
        self._seen = own if self._seen is None else self._seen + own

    def rank_again(self, k: torch.Tensor, read: int) -> None:
        """Chooses the channels by what `follow` counted, and labels the cache's keys k [1, Hkv, C, D] anew."""
        assert self._seen is not None
        r = self._channels.shape[1]
        chosen = self._seen.topk(r, dim=-1).indices
        stay = (chosen[:, :, None] == self._calibrated[:, None]).any(-1).float().mean()
        self.drift.append((read, float(stay)))
        self._channels, self._n = chosen, 0
        self.append(k)

    def append(self, k: torch.Tensor) -> None:
        self._lists = self._channels.shape[0] // k.shape[1]
        own = k.repeat_interleave(self._lists, 1)
        new = quantise(
            own.gather(3, self._channels[None, :, None].expand(own.shape[0], -1, own.shape[2], -1)), self._dtype
        )
        self._put(new)

    def keep(self, columns: torch.Tensor) -> None:
        labels = self._held()
        index = columns.repeat_interleave(labels.values.shape[1] // columns.shape[1], 1)
        values = labels.values.gather(2, index[..., None].expand(*index.shape, labels.values.shape[3]))
        scale = None if labels.scale is None else labels.scale.gather(2, index)
        self._n = 0
        self._put(Labels(values, scale, self._dtype))

    def _put(self, new: Labels) -> None:
        end = self._n + new.values.shape[2]
        self._values = _with_room(self._values, new.values.transpose(-1, -2), self._n, end)
        if new.scale is not None:
            self._scale = _with_room(self._scale, new.scale, self._n, end)
        self._n = end

    def scores(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        *,
        scale: float,
        heads: slice = ALL_HEADS,
        visible: torch.Tensor | None = None,
    ) -> torch.Tensor:
        (batch, n_heads, rows, _), (n_kv, n) = q.shape, k.shape[1:3]
        labels, channels = self._of(heads, n)
        n_lists = channels.shape[0]
        group = n_heads // n_lists
        spread = channels[None, :, None, None].expand(batch, -1, group, rows, -1)
        own_q = q.unflatten(1, (n_lists, group)).gather(4, spread).flatten(1, 2)
        softmax = self._reduction == "softmax"
        if rows == 1 and visible is None:
            found = label_scores(own_q[:, :, 0], labels, reduction=self._reduction, scale=scale)
            return found.view(batch, n_kv, -1, 1, n)
        if rows == 1:
            found = label_scores(own_q[:, :, 0], labels, reduction="none" if softmax else self._reduction, scale=scale)
            found = found.view(batch, n_lists, -1, 1, n)
        else:
            grouped = own_q.float().view(batch, n_lists, -1, rows, own_q.shape[-1]) * scale
            keys = dequantise(labels).transpose(-1, -2)[:, :, None]
            if softmax:
                found = grouped @ keys
            elif self._reduction == "max":
                found = (grouped @ keys).amax(2, keepdim=True)
            else:  # linear: over the queries before the product, as label_scores does
                found = reduce_group(grouped, self._reduction)[:, :, None] @ keys
        if softmax:
            if visible is not None:
                found = found.masked_fill(~spread_visible(visible, n_lists)[:, None], float("-inf"))
            found = torch.softmax(found, dim=-1).sum(2, keepdim=True)
        return found.view(batch, n_kv, -1, rows, n)

    @property
    def nbytes(self) -> int:
        return 0 if self._values is None else self._held().nbytes

    def _held(self) -> Labels:
        if self._values is None:
            raise RuntimeError("no key has entered the label cache")
        scale = None if self._scale is None else self._scale[..., : self._n]
        return Labels(self._values[..., : self._n].transpose(-1, -2), scale, self._dtype)

    def _of(self, heads: slice, n: int) -> tuple[Labels, torch.Tensor]:
        """The labels of some KV heads' first n keys, and the heads' channels."""
        labels = self._held()
        if heads == ALL_HEADS and n == labels.values.shape[2]:
            return labels, self._channels
        lists = slice(*(None if i is None else i * self._lists for i in (heads.start, heads.stop)))
        scale = None if labels.scale is None else labels.scale[:, lists, :n]
        return Labels(labels.values[:, lists, :n], scale, labels.dtype), self._channels[lists]


def _with_room(buffer: torch.Tensor | None, new: torch.Tensor, n: int, end: int) -> torch.Tensor:
    """The buffer [..., room] with `new` at n … end of its last axis; a larger one where it is full."""
    if buffer is None or buffer.shape[-1] < end:
        larger = new.new_empty(*new.shape[:-1], -(-end // _ROOM) * _ROOM)
        if buffer is not None:
            larger[..., :n] = buffer[..., :n]
        buffer = larger
    buffer[..., n:end] = new
    return buffer
