"""Texts that break formats, and a provenance that holds one."""

from __future__ import annotations

from sparsity_core.record import Provenance

NASTY = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
    "$x$",
    "$$\\alpha$$",
    "%{y}",
    "&lt;b&gt;",
    "# comment",
    "#",
    "",
    " leading",
    "trailing ",
    "a,b",
    'say "hi"',
    "line\nbreak",
    "cr\rhere",
    "crlf\r\nhere",
    "\t",
    "\x00",
    "a\x01\x1f\x7f",
    "שלום",
    "مرحبا",
    "\u202eoverride",
    "😀👩‍👩‍👧",
    "中文",
    "NaN",
    "None",
    "null",
    "12",
    "0012",
    "1e5",
    "True",
    "\u2028",
    "\ufeffbom",
    "\\n",
]
PROVENANCE = Provenance.of_fields(
    "Kept keys of <b>smollm2</b>, שלום & $x$",
    {
        "model": "smollm2-135m",
        "prompt hash": "9f86d081",
        "seed": "0",
        "dtype": "float32",
        "pipeline": "eviction=a2sf(budget=64)",
        "command": "sparselens export \\\n  --prompt '<script>alert(4)</script> $x$ é'",
    },
)
