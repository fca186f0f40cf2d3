"""A loaded model, and the few things that the library asks of its architecture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sparsity_core.models.families import Family, decoder_layers, family_of
from sparsity_core.models.numbers import NotANumber, check_rows, damaged
from sparsity_core.models.prompts import ADD_BOS
from sparsity_core.models.refusals import explained
from sparsity_core.models.seam import backbone

if TYPE_CHECKING:
    from sparsity_core.kinds import Compressed, WeightMethod
    from sparsity_core.models.caches import LayerCache


_LOGIT_ELEMENTS = (
    2**25 * 3 // 4
)  # 100 MB of float32: smaller blocks read the head's weights more often, up to a third slower


@dataclass(frozen=True)
class Architecture:
    family: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    max_positions: int


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model and its tokenizer. The transformers model inside is shared and never changed."""

    name: str
    hf: Any
    tokenizer: Any
    arch: Architecture
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    revision: str = ""  # the hub's commit, where the model is from there
    caches: tuple[LayerCache, ...] = ()  # what transformers caches of each layer
    no_steps: str = ""  # why no token can be generated from a cache
    no_eviction: str = ""  # why nothing can leave its cache
    weights_in: str = ""  # the number format of the weights, where it is not the one that is computed in

    @property
    def dtype_name(self) -> str:
        return self.weights_in or str(self.dtype).removeprefix("torch.")

    def check_plain(self) -> None:
        """Raises ValueError where the weights are codes, which cannot be cut or looked at as matrices."""
        if self.weights_in:
            raise ValueError(
                f"the weights of {self.name} are {self.weights_in} numbers, which are neither cut nor taken apart: "
                "choose another number format (dtype), or leave weights empty"
            )

    def n_bytes(self, beside: Model | None = None) -> int:
        """Memory of the weights, each tensor that several share counted once; `beside` another model, of its own alone."""
        shared = (
            set()
            if beside is None
            else {part.untyped_storage().data_ptr() for w in beside.hf.parameters() for part in _parts(w)}
        )
        stores = (part.untyped_storage() for weight in self.hf.parameters() for part in _parts(weight))
        return sum({s.data_ptr(): s.nbytes() for s in stores if s.data_ptr() not in shared}.values())

    def token_flops(self) -> int:
        """Floating-point operations of the matrices that one token passes, the language head's too: 2 a weight."""
        linear = (m.weight for m in self.hf.modules() if type(m).__name__ in ("Linear", "Conv1D"))
        return sum(2 * weight.numel() for weight in linear)

    @property
    def layers(self) -> torch.nn.ModuleList:
        """The decoder's layers."""
        return decoder_layers(self.hf, self.arch.n_layers)

    @property
    def family(self) -> Family:
        """What is known of the model's family."""
        return family_of(self.arch.family, self.layers[0], self.hf.config.get_text_config())

    def encode(self, text: str, add_bos: str = "auto") -> list[int]:
        """Token ids, with the tokenizer's own special tokens and never two start tokens.

        `add_bos`: "auto" starts as the tokenizer does, "yes" with a start token, "no" without one, unless the text itself
        spells it. Raises ValueError for text of no tokens or too many, and where there is no start token to add.
        """
        if not text.strip():
            raise ValueError("the prompt is empty: type or choose some text")
        check_characters(text)
        ids = self._started(self._tokenised(text), text, add_bos)
        self.check_length(len(ids))
        return ids

    def encode_all(self, text: str) -> list[int]:
        """Token ids of a text of any length without special tokens, for methods that cut it into pieces themselves."""
        check_characters(text)
        return self._tokenised(text, add_special_tokens=False, verbose=False)

    def _tokenised(self, text: str, **options: Any) -> list[int]:
        with explained(self.name):
            return list(self.tokenizer(text, **options)["input_ids"])

    def start_token(self, add_bos: str) -> list[int]:
        """The start token where `add_bos` is "yes", nothing otherwise. Raises ValueError where there is none to add."""
        if add_bos not in ADD_BOS:
            raise ValueError(f"add_bos is one of {', '.join(ADD_BOS)}; got {add_bos!r}")
        bos = self.tokenizer.bos_token_id
        if add_bos == "yes" and bos is None:
            raise ValueError(f"the tokenizer of {self.name} has no start token: leave add_bos at auto or no")
        return [bos] if add_bos == "yes" else []

    def _started(self, ids: list[int], text: str, add_bos: str) -> list[int]:
        wanted, bos = self.start_token(add_bos), self.tokenizer.bos_token_id
        if bos is None or (add_bos == "auto" and ids[:1] != [bos]):
            return ids
        spelled = self.encode_all(text)[:1] == [bos]  # as a chat template does
        body = list(itertools.dropwhile(lambda i: i == bos, ids))
        return [bos, *body] if wanted or spelled or add_bos == "auto" else body

    def compress(self, method: WeightMethod) -> Compressed:
        """This model with fewer weights, for example `model.compress(methods.PruneNet(ratio=0.25))`; itself unchanged."""
        self.check_plain()
        compressed: Compressed = method.compress(self)
        return compressed

    def check_length(self, n: int) -> None:
        if n > self.arch.max_positions:
            raise ValueError(
                f"the prompt has {n:,} tokens and {self.name} reads at most {self.arch.max_positions:,}: "
                f"shorten it by {n - self.arch.max_positions:,} tokens"
            )

    def cache_bytes(self, n: int) -> int:
        """What transformers' own cache holds after a text of n tokens: keys and values, or the latent they are made from."""
        return sum(layer.bytes_of(n) for layer in self.caches)

    @property
    def shares_caches(self) -> bool:
        """Whether any layer reads another's cache."""
        return any(layer.source is not None for layer in self.caches)

    @property
    def changes_with_length(self) -> bool:
        """Whether a text's rotary frequencies depend on how long it is."""
        return bool(frequency_limits(self.hf))

    def cached_in(self, layer: int) -> int:
        """The layer whose cache this one reads: itself, or the one that it shares with."""
        source = self.caches[layer].source if self.caches else None
        return layer if source is None else source

    def check_steps(self, n_prompt: int, n_inputs: int, *, drops: bool) -> None:
        """Raises ValueError where tokens after a prompt cannot be generated from a cache as one forward would read them.

        Args:
            n_inputs: prompt and new tokens that the model reads.
            drops: whether a pipeline lets keys leave the cache.
        """
        if self.no_steps:
            raise ValueError(f"{self.name} cannot generate from a cache: {self.no_steps}. Use run, not generate")
        if drops and self.no_eviction:
            raise ValueError(f"nothing can leave the cache of {self.name}: {self.no_eviction}. Use run, not generate")
        for limit, every in frequency_limits(self.hf):
            if n_inputs > limit and (every or n_prompt <= limit):
                raise ValueError(
                    f"past {limit:,} tokens {self.name} takes other rotary frequencies, which the keys in its cache have not: "
                    f"generate at most {max(0, limit - n_prompt) + 1:,} tokens"
                    + ("" if every else f", or after a prompt of more than {limit:,}")
                )

    def hidden(self, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The last layer's normalised hidden states [B, T, hidden]. Raises ValueError where they are not finite."""
        try:
            states: torch.Tensor = backbone(self.hf)(input_ids=ids.to(self.device), **kwargs).last_hidden_state
            check_rows(states)
        except NotANumber as error:
            positions = kwargs.get("position_ids")
            start = 0 if positions is None else int(positions.min())
            raise ValueError(damaged(start + self._first_damaged(ids, error.row), self.name, self.dtype_name)) from None
        return states

    def _first_damaged(self, ids: torch.Tensor, row: int) -> int:
        """The first row whose embedding is not finite, which plain attention spreads to earlier ones; else `row`."""
        try:
            check_rows(self.hf.get_input_embeddings()(ids.to(self.device)))
        except NotANumber as error:
            return error.row
        return row

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 (or wider) logits of hidden states [..., hidden] → [..., vocabulary]."""
        head = self.hf.get_output_embeddings()
        out = head(hidden.to(head.weight.device, head.weight.dtype))
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        config = self.hf.config.get_text_config()
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        out = out if scale == 1.0 else out * scale  # Cohere's multiply, Granite's divide
        cap = getattr(config, "final_logit_softcapping", None)
        return out if cap is None else cap * torch.tanh(out / cap)

    def logit_rows(self, hidden: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(start, end, logits [end − start, vocabulary]) over hidden states [T, hidden], a bounded block at a time."""
        rows = max(1, _LOGIT_ELEMENTS // self.hf.get_output_embeddings().weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            block = hidden[start : start + rows]
            yield start, start + block.shape[0], self.logits(block)

    def rotary_frequencies(self, needed_by: str = "re_rotate") -> torch.Tensor:
        """Radians per position of each rotary pair. Raises ValueError where positions are not rotary."""
        rotary = getattr(backbone(self.hf), "rotary_emb", None)
        if rotary is None:
            raise ValueError(
                f"{self.name} ({self.arch.family}) has no rotary positions, which {needed_by} needs: leave it out"
            )
        if not self.family.rotated_by_halves:
            raise ValueError(
                f"{needed_by} does not know how {self.name} ({self.arch.family}) lays out its rotary channels: leave it out"
            )
        return rotary.inv_freq


def check_characters(text: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("the text holds half a surrogate pair, which is no character: remove it, or save it as UTF-8")


def frequency_limits(hf: Any) -> set[tuple[int, bool]]:
    """(tokens, whether every length past them is another) at which a model's rotary frequencies change with the text."""
    found = set()
    for module in hf.modules():
        kinds = getattr(module, "rope_type", None)
        for name, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
            if kind == "longrope":
                parameters = module.config.rope_parameters
                own = parameters if name is None else parameters[name]
                found.add((int(own["original_max_position_embeddings"]), False))
            elif isinstance(kind, str) and "dynamic" in kind:
                found.add((int(module.original_max_seq_len), True))
    return found


def _parts(weight: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a weight is made of: itself, or its codes and scales."""
    inner = getattr(weight, "__tensor_flatten__", None)
    return [weight] if inner is None else [getattr(weight, name) for name in inner()[0]]
