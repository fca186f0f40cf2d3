from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsity_core.kinds import MOST_TOKENS, Card, EvictionMethod, LayerShape, ScanRule, knob, register


@register
@dataclass(frozen=True)
class DuoAttention(EvictionMethod):
    """Some heads keep the whole cache, the others sinks and a recent window: `budget` keys in all.

    Which is which a pattern says, a score for each layer and KV head: the authors' trained one (`full_attention_heads.tsv` of
    their repository), or one measured here (`auto`): the share of its attention that a head would lose by streaming, over
    4 stretches of 512 tokens of the calibration text. The highest scores of all layers together keep everything.
    """

    source: ClassVar[str] = "arXiv:2410.10819; mit-han-lab/duo-attention"
    equation: ClassVar[str] = (
        r"K^{(l,h)}_n = \begin{cases}\{k \le n\} & a_{l,h} \text{ among the highest} \\"
        r" \{k < n_{\text{sink}}\} \cup \{k > n - (\text{budget} - n_{\text{sink}})\} & \text{else}\end{cases}"
    )
    card: ClassVar[Card] = Card(
        sees="positions alone, once the heads' pattern is known",
        costs="nothing while it runs; `auto` once measures four stretches of 512 tokens, the authors train the pattern",
        defaults="half of the heads keep everything; 16 sinks, where the authors have 64 beside 256 recent ones",
        fails=(
            "with few KV heads a layer has no head to spare, and a pattern measured on one kind of text may not serve "
            "another; its cache grows with the text"
        ),
    )

    retrieval: float = knob(
        0.5, low=0.0, high=1.0, at_least=0, at_most=1, prominent=True, help="share of all KV heads that keep everything"
    )
    n_sink: int = knob(
        16,
        low=0,
        high=64,
        at_least=0,
        at_most=MOST_TOKENS,
        help="first tokens, never dropped; the authors' are 64, beside 256 recent",
    )
    pattern: str = knob("auto", path=True, help="auto, or a file of scores: a line for each layer, a tab between heads")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_protected("n_sink")

    @property
    def cuts_once(self) -> bool:
        return False

    def inputs(self) -> dict[str, str]:
        from sparsity_core.models import calibration_digest

        return super().inputs() or {"calibration text": calibration_digest()}

    def rule_within(self, budget: int, layer: LayerShape) -> ScanRule:
        from sparsity_core.methods.eviction.duo_attention.pattern import head_scores, kept_whole

        scores = head_scores(self.pattern, layer, self.n_sink, self.budget - self.n_sink)
        whole = kept_whole(scores, self.retrieval)[layer.index]
        own = tuple(None if keeps else budget for keeps in whole.tolist())
        return ScanRule(budget=own, n_sink=self.n_sink, recent=max(0, budget - self.n_sink), scored=False)
