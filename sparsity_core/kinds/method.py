"""A pruning method: a frozen dataclass whose fields are its knobs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from sparsity_core.kinds.card import Card
from sparsity_core.kinds.knobs import RULES, canonical, knob
from sparsity_core.kinds.rules import parse_rules
from sparsity_core.kinds.spelling import spell
from sparsity_core.work import digest_of


class Method:
    """A pruning method: subclasses are frozen dataclasses, registered with @register."""

    stage: ClassVar[str]
    name: ClassVar[str]
    source: ClassVar[str]
    equation: ClassVar[str]  # LaTeX; shown on the pages
    card: ClassVar[Card | None] = None

    def __post_init__(self) -> None:
        for knob_ in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, knob_.name, canonical(self.name, knob_, getattr(self, knob_.name)))

    @classmethod
    def knobs(cls) -> tuple[dataclasses.Field[Any], ...]:
        """The method's fields, a user's own rules last."""
        return tuple(sorted(dataclasses.fields(cls), key=lambda f: f.name in RULES))  # type: ignore[arg-type]

    def files(self) -> dict[str, str]:
        """The paths that the user gave, by the names of their knobs."""
        given = {k.name: (getattr(self, k.name), k.default) for k in self.knobs() if k.metadata.get("path")}
        return {name: path for name, (path, default) in given.items() if path != default}

    def inputs(self) -> dict[str, str]:
        """Digests of what decides the result beside the knobs' values, by name: the content of the files that they name."""
        return {name: digest_of(path) for name, path in self.files().items()}

    def __str__(self) -> str:
        """The canonical spelling: the knobs that are always spelled, and every other that is not at its default."""
        shown = [
            f"{knob_.name}={spell(getattr(self, knob_.name))}"
            for knob_ in self.knobs()
            if knob_.metadata.get("always") or getattr(self, knob_.name) != knob_.default
        ]
        return f"{self.name}({', '.join(shown)})"

    def __hash__(self) -> int:
        return hash(str(self))


@dataclass(frozen=True)
class Ruled(Method):
    """A method that drops tokens for good, under rules of the user's own."""

    protect: str = knob("", help="tokens never dropped: positions, spans and expressions, as in 0-3, 17, /[0-9]+/")
    drop: str = knob(
        "", help="tokens dropped as soon as they are read, in every layer and head; written as `protect` is"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for rules in (self.protect, self.drop):
            parse_rules(rules)
