from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsity_core.kinds import (
    MOST_TOKENS,
    Card,
    ForgettingFactor,
    LayerShape,
    PrefillRule,
    ScanRule,
    ScoredEviction,
    Sweep,
    forgetting_factor_of,
    knob,
    normalised_factor,
    register,
)
from sparsity_core.work import digest_of


@register
@dataclass(frozen=True)
class A2SF(ScoredEviction):
    """Accumulated attention with a forgetting factor: A[n, k] = Σ_q α^(n − q) · S[q, k]; the lowest goes.

    `paper` drops one key at each step once the cache is full. `prefill_only` is the authors' 2026 code, which cuts once when
    the prompt ends (their settings: forgetting_factor 0.95, recent 16) and then keeps all; `prefill` goes on as `paper` does.
    `factors` gives each layer and KV head its own, fitted to the attention that the dense model's later queries give.
    """

    name: ClassVar[str] = "a2sf"
    source: ClassVar[str] = "arXiv:2407.20485; Dirac-Notation/A2SF"
    equation: ClassVar[str] = r"A_{n,k} = \sum_{q=k}^{n} \alpha^{\,n-q}\, S_{q,k} = \alpha\,A_{n-1,k} + S_{n,k}"
    card: ClassVar[Card] = Card(
        sees="the attention that the queries so far gave to each held key",
        costs=(
            "one multiply-add for each held key, query and KV head, on attention that is computed anyway; a float32 a "
            "held key"
        ),
        defaults=(
            "α = 0.3, the upper end of the paper's best at a cache ratio of 0.3; nothing is protected, as in the "
            "paper. The 2026 code: 0.95, 16 recent keys, one cut"
        ),
        fails=(
            "a small α forgets the start of the text: what was read long ago and is asked for at the end is gone by "
            "then; no sinks are protected"
        ),
    )

    forgetting_factor: ForgettingFactor = knob(
        0.3,
        low=0.0,
        high=1.0,
        parse=normalised_factor,
        prominent=True,
        help="α: 0 looks at the last query alone, 1 forgets nothing. A number, [one per layer], [[one per KV head]] "
        "or {number: 0.9, other: 0.3} by token class",
        sweep=Sweep(
            (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 1.0),
            symbol="α",
            read="At 0 only the last query counts, as in TOVA; at 1 nothing is forgotten, as in H2O without its recent window.",
        ),
    )
    factors: str = knob(
        "",
        path=True,
        help="a file of factors fitted to each layer and KV head, in place of forgetting_factor; auto: those that ship for the "
        "embedded model",
    )
    variant: str = knob(
        "paper",
        choices=("paper", "prefill", "prefill_only"),
        help="drop at each step; once when the prompt ends and then at each step; or then alone",
    )
    n_sink: int = knob(0, low=0, high=64, at_least=0, at_most=MOST_TOKENS, help="first tokens, never dropped")
    recent: int = knob(0, low=0, high=256, at_least=0, at_most=MOST_TOKENS, help="last tokens, never dropped")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_protected("n_sink", "recent")

    def files(self) -> dict[str, str]:
        return {} if self.factors == "auto" else super().files()

    def inputs(self) -> dict[str, str]:
        if self.factors != "auto":
            return super().inputs()
        from sparsity_core.methods.eviction.a2sf.factors import SHIPPED

        return {"factors": digest_of(str(SHIPPED))}

    def _factor(self, layer: LayerShape) -> ForgettingFactor:
        """The layer's own. A file's are of a model: they are read once there is one."""
        if not self.factors or layer.model is None:
            return forgetting_factor_of(self.forgetting_factor, layer)
        from sparsity_core.methods.eviction.a2sf.factors import factors_for

        return tuple(factors_for(layer.model, self.factors).values[layer.index].tolist())

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule | PrefillRule:
        scan = ScanRule(
            budget=budget,
            decay=self._factor(layer),
            n_sink=self.n_sink,
            recent=self.recent,
            value_norm=self.value_norm,
            reduction=self.reduction,
        )
        if self.variant == "paper":
            return scan
        return PrefillRule(
            budget=budget,
            decay=scan.decay,
            n_sink=self.n_sink,
            recent=self.recent,
            value_norm=self.value_norm,
            reduction=self.reduction,
            then=scan if self.variant == "prefill" else ScanRule(budget=None),
        )
