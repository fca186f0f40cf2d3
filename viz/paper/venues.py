"""How wide a figure is in a paper: the widths that the venues' own style files set."""

from __future__ import annotations

from dataclasses import dataclass

_CM = 1 / 2.54


@dataclass(frozen=True)
class Venue:
    """Inches across one column, and across the page; the same where a paper has one column."""

    title: str
    column: float
    page: float
    source: str  # where the two numbers come from


def _two(title: str, page: float, gap: float, source: str) -> Venue:
    return Venue(title, (page - gap) / 2, page, source)


VENUES: dict[str, Venue] = {
    "neurips": Venue("NeurIPS", 5.5, 5.5, "neurips.sty: textwidth=5.5in"),
    "iclr": Venue("ICLR", 5.5, 5.5, "iclr_conference.sty: textwidth 5.5in"),
    "icml": _two("ICML", 6.75, 0.25, "icml.sty: textwidth 6.75in, columnsep 0.25in"),
    "acl": _two("ACL", 16 * _CM, 0.6 * _CM, "acl.sty: A4 paper, margins of 2.5 cm, columnsep 0.6 cm"),
    "aaai": _two("AAAI", 7.0, 0.375, "aaai.sty: textwidth 7.0in, columnsep 0.375in"),
    "cvpr": _two("CVPR", 6.875, 0.3125, "cvpr.sty: textwidth 6.875in, columnsep 0.3125in"),
    "thesis": Venue("Thesis", 6.0, 6.0, "letter paper with margins of 1.5 and 1 in, as most graduate schools ask"),
    "slides": _two(
        "Slides", 14 * _CM, 0.56 * _CM, "beamer, 16:9: a page of 16 cm, margins of 1 cm; two columns of 0.48"
    ),
}


def venue_width(venue: str, columns: int = 1) -> float:
    """Inches of a figure across 1 or 2 columns of a venue. Raises ValueError for another venue or number of columns."""
    if venue not in VENUES:
        raise ValueError(f"there is no venue {venue!r}; known are {', '.join(VENUES)}")
    if columns not in (1, 2):
        raise ValueError(f"a figure spans 1 or 2 columns; got {columns}")
    return VENUES[venue].column if columns == 1 else VENUES[venue].page
