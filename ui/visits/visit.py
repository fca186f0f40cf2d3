"""What a guided example is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sparsity_core.record import RunSpec, Trace
from ui.address import EXAMPLE, write_address
from ui.session import trace_of


@dataclass(frozen=True)
class Step:
    """A page with its runs and where to look in them, what is told there, and what to look at."""

    page: str  # its address
    told: str  # a sentence or two, as Markdown, with numbers that were computed of what is shown
    look: str  # what to look at, as Markdown
    specs: tuple[RunSpec, ...] = (EXAMPLE,)
    names: tuple[str, ...] = ()  # of the pipelines
    view: Mapping[str, int | str] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)  # the page's own part of the address


@dataclass(frozen=True)
class Visit:
    """A guided example of one line of work. `steps` reads the bundled results; raises LookupError where one is not there."""

    name: str  # in the address
    method: str
    title: str
    steps: Callable[[], tuple[Step, ...]]

    def link(self, stop: int) -> dict[str, str]:
        """The address of a step, from 1."""
        step = self.steps()[stop - 1]
        where = write_address(step.specs, step.view, step.names)
        return {**where, **step.choices, "visit": self.name, "stop": str(stop)}


def bundled(spec: RunSpec) -> Trace:
    """A run that ships. Raises LookupError where it is not there."""
    trace = trace_of(spec)
    if trace is None:
        raise LookupError(f"the bundled run {spec.pipeline} is not there: run `make assets`")
    return trace
