"""BibTeX of the methods that a figure shows, each by the source that it declares."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from sparsity_core import methods
from sparsity_core.kinds import spelled_stages

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_WITHOUT_ARXIV = {"leverage": "drineas2008cur", "svd_truncation": "eckart1936approximation"}


def bibtex(pipelines: list[str]) -> str:
    """The entries of all methods of some pipelines as spelled, each once; empty where none has a paper.

    An arXiv number that `references.bib` does not know, as a method from outside may have, is cited by it alone.
    """
    return "\n\n".join(_entries(pipelines).values())


def cite_keys(pipelines: list[str]) -> list[str]:
    """What `\\cite` takes for the entries of `bibtex`, in their order."""
    return list(_entries(pipelines))


def _entries(pipelines: list[str]) -> dict[str, str]:
    names = [call.partition("(")[0] for text in pipelines for _, call in spelled_stages(text)]
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        found |= _of_method(name)
    return found


def _of_method(name: str) -> dict[str, str]:
    if name not in methods.names():  # a trace of others names no method of ours
        return {}
    numbers = _ARXIV.findall(methods.get(name).source)
    known, by_number = _references()
    if not numbers:
        return {key: known[key] for key in [_WITHOUT_ARXIV.get(name, "")] if key}
    entries: dict[str, str] = {}
    for number in numbers:
        key = by_number.get(number, f"arxiv{number}")
        entries[key] = known.get(key) or (
            f"@misc{{{key},\n  title = {{arXiv:{number}}},\n  note = {{the source of {name.replace('_', ' ')}}},\n"
            f"  eprint = {{{number}}},\n  archiveprefix = {{arXiv}}\n}}"
        )
    return entries


@cache
def _references() -> tuple[dict[str, str], dict[str, str]]:
    """(entries by key, keys by arXiv number) of the file beside this one."""
    text = Path(__file__).with_name("references.bib").read_text()
    entries = [entry.strip() for entry in re.split(r"^(?=@)", text, flags=re.MULTILINE) if entry.strip()]
    by_key = {re.match(r"@\w+\{([^,]+),", entry)[1]: entry for entry in entries}  # type: ignore[index]
    numbers = {key: re.search(r"eprint = \{([^}]+)\}", entry) for key, entry in by_key.items()}
    return by_key, {found[1]: key for key, found in numbers.items() if found}
