"""An on-disk cache of results, keyed by run spec and shared by all sessions and processes.

Traces that ship with the library are looked up in the same way, so that the first picture needs no model.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from sparsity_core.kinds import Pipeline
from sparsity_core.record.spec import RunSpec
from sparsity_core.record.trace import FORMAT, Trace
from sparsity_core.work import ASSETS, cache_dir, read_regular, shelve, used, weights_on_disk

SHIPPED = ASSETS / "traces"
_RESULTS = 2  # raised when runs of equal specs give other results, so that what is stored is computed again


def key_of(spec: RunSpec) -> str:
    """The name under which a spec's result is stored.

    It changes with what the spec names: a model's weights, the files of its methods, the text that they are calibrated on.
    """
    stated = [f"{FORMAT}.{_RESULTS}", spec.to_json(), weights_on_disk(spec.model)]
    stated += [f"{name} {digest}" for name, digest in sorted(_inputs(spec).items())]
    asked = "\n".join(filter(None, stated))
    return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _inputs(spec: RunSpec) -> dict[str, str]:
    try:
        return Pipeline.parse(spec.pipeline).inputs()
    except ValueError:  # a pipeline that cannot run has no result either
        return {}


class Store:
    """Traces by spec in the user's cache folder, and behind it those that ship with the library.

    Each file names the spec that it is the result of, and one of another spec counts as absent.
    """

    def __init__(self, assets: Path = SHIPPED) -> None:
        self.root = cache_dir() / "traces"
        self.assets = assets

    def get(self, spec: RunSpec) -> Trace | None:
        """The stored trace, or None. A damaged file counts as absent, and is removed where it is the user's."""
        name, about = f"{key_of(spec)}.npz", spec.to_json()
        own = self.root / name
        try:
            trace = Trace.from_bytes(read_regular(own), about)
            used(own)
            return trace
        except ValueError:
            with contextlib.suppress(OSError):  # a folder of somebody else's, which we may only read
                own.unlink(missing_ok=True)
        except OSError:
            pass
        with contextlib.suppress(OSError, ValueError):
            return Trace.from_bytes(read_regular(self.assets / name), about)
        return None

    def has(self, spec: RunSpec) -> bool:
        name = f"{key_of(spec)}.npz"
        return (self.root / name).exists() or (self.assets / name).exists()

    def put(self, spec: RunSpec, trace: Trace) -> str | None:
        """Keeps a trace. Returns None, or the sentence that says why it could not be kept."""
        try:
            shelve(self.root / f"{key_of(spec)}.npz", trace.to_bytes(spec.to_json()))
        except OSError as error:
            return (
                f"The result is shown but could not be kept in {self.root} ({error.strerror or error}): "
                "free some space, or set SPARSELENS_CACHE to a folder you can write."
            )
        return None
