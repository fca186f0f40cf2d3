"""What a reader of a paper's table asks of a method."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A method in four sentences."""

    sees: str  # what it may look at when it decides
    costs: str  # what deciding takes: operations, and bytes held beside the cache or the weights
    defaults: str  # whose settings its defaults are
    fails: str  # where it is known to do badly

    def rows(self) -> dict[str, str]:
        """The sentences by what they answer, for tables."""
        return {
            "looks at": self.sees,
            "deciding costs": self.costs,
            "defaults": self.defaults,
            "does badly": self.fails,
        }
