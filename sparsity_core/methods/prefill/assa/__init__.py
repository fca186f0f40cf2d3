from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparsity_core.kinds import Card, PrefillMethod, PromptView, knob, register

if TYPE_CHECKING:
    from sparselens_kernels import KeyMask


@register
@dataclass(frozen=True)
class ASSA(PrefillMethod):
    """Adaptive structured sparse attention: probe queries score the keys, each segment keeps as many as it needs.

    Known from the user's notes alone, whose link names another paper. A key's importance is the mean attention of the probes
    that could see it; a segment keeps the fewest keys that hold `coverage` of its importance, between `min_ratio` and
    `max_ratio` of its length. The mask of a block of queries uses probes that end before it, so nothing later decides.
    `look_ahead` is the notes' literal reading: all probes of the prompt decide for all its queries.
    """

    name: ClassVar[str] = "assa"
    source: ClassVar[str] = "the user's notes; no paper"
    equation: ClassVar[str] = (
        r"I_k = \operatorname{mean}_{p \in \text{probes},\, p \ge k} \textstyle\sum_g S_{p,k},\quad"
        r"n_s = \min |K| : \textstyle\sum_{k \in K} I_k \ge c \sum_{k \in s} I_k"
    )
    card: ClassVar[Card] = Card(
        sees="the attention of the last 2 queries of every block, and where sentences end",
        costs="2 of 128 queries' rows; .29 of the dense FLOPs in all at a density of .25",
        defaults="coverage 0.95, two probes of 128, a window of 64: what measured best here; the notes give no numbers",
        fails=(
            "what no probe has looked at yet: a key that only a later question wants is left out; at such widths it "
            "is far from dense"
        ),
    )

    coverage: float = knob(
        0.95, low=0.5, high=1.0, at_least=1e-6, at_most=1.0, help="share of a segment's importance that is kept"
    )
    min_ratio: float = knob(0.05, low=0.0, high=1.0, at_least=0.0, at_most=1.0, help="least share of a segment kept")
    max_ratio: float = knob(0.3, low=0.0, high=1.0, at_least=0.0, at_most=1.0, help="largest share of a segment kept")
    segment: str = knob(
        "sentence", choices=("block", "sentence"), help="what a budget is for: a block of tokens, or a sentence"
    )
    block: int = knob(
        128, low=16, high=256, at_least=1, at_most=10**6, help="tokens of a block of queries, and of a segment"
    )
    probes: int = knob(
        2, low=1, high=64, at_least=1, at_most=10**6, help="last queries of each block, which score the keys"
    )
    window: int = knob(
        64,
        low=1,
        high=512,
        at_least=1,
        at_most=10**9,
        help="last keys that every query sees, counted from the first query of its stretch of as many",
    )
    n_sink: int = knob(4, low=0, high=64, at_least=0, at_most=10**6, help="first keys, always kept")
    queries: str = knob(
        "all", choices=("all", "selected"), help="which queries see the kept keys; the others see the window alone"
    )
    samplers: str = knob(
        "attention",
        choices=("attention", "union", "vote"),
        help="who chooses: the probes' attention alone, or with it clusters of keys and the text's structure",
    )
    hierarchical: bool = knob(
        False, help="first the paragraphs that hold the coverage, in them the sentences, then keys"
    )
    rescored: int = knob(
        0, low=0, high=3, at_least=0, at_most=16, help="how often the probes judge again, by what they kept alone"
    )
    repeated: str = knob(
        "all",
        choices=("all", "newest", "mean"),
        help="of keys that point the same way (cosine above 0.95), which may be kept; mean: the newest, read as their mean",
    )
    compensation: str = knob(
        "none",
        choices=("none", "mean", "low_rank"),
        help="what stands in for keys that are left out: their mean value, or a map fitted to the probes",
    )
    look_ahead: bool = knob(False, help="the whole prompt's probes decide for every query of it, as the notes have it")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_ratio > self.max_ratio:
            raise ValueError(
                f"{self.name}: min_ratio is at most max_ratio; got {self.min_ratio:g} and {self.max_ratio:g}: lower the first"
            )
        if self.probes > self.block:
            raise ValueError(f"{self.name}: probes are the last of a block of {self.block} queries; got {self.probes}")
        if self.compensation != "none" and self.look_ahead:
            raise ValueError(
                f"{self.name}: compensation follows the blocks of queries, which look_ahead does not have: set one of the two"
            )
        if self.queries == "selected" and not self.look_ahead:
            raise ValueError(
                f"{self.name}: which queries are selected is known once later ones have scored them: "
                "set look_ahead=True, or queries=all"
            )

    @property
    def looks_ahead(self) -> bool:
        return self.look_ahead

    def mask(self, view: PromptView) -> KeyMask:
        from sparsity_core.methods.prefill.assa.selection import select

        return select(self, view)
