"""Results on disk by spec: what was computed once, in any session, is looked up afterwards.

Traces that ship with the library are looked up in the same way, so the first picture needs no model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from sparsity_core.record.spec import RunSpec
from sparsity_core.record.trace import FORMAT, Trace
from sparsity_core.work import ASSETS, cache_dir, weights_on_disk

SHIPPED = ASSETS / "traces"
_MOST_BYTES = 2 * 1024**3
_RESULTS = 2  # raised when a run of an equal spec comes out otherwise, so that what is stored is run again


def key_of(spec: RunSpec) -> str:
    """The name under which a spec's result is stored; another one once a local model's files have changed."""
    asked = "\n".join(filter(None, (f"{FORMAT}.{_RESULTS}", spec.to_json(), weights_on_disk(spec.model))))
    return hashlib.sha256(asked.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Store:
    """Traces by spec in a folder of the user's, and below it those that ship with the library.

    Files appear whole (they are renamed into place), so processes and sessions may share one folder.
    """

    def __init__(self, root: Path | None = None, assets: Path = SHIPPED) -> None:
        self.root = cache_dir() / "traces" if root is None else root
        self.assets = assets

    def get(self, spec: RunSpec) -> Trace | None:
        """The stored trace, or None; a damaged file counts as absent and is removed."""
        name = f"{key_of(spec)}.npz"
        own = self.root / name
        if own.exists():
            try:
                trace = Trace.load(own)
                with contextlib.suppress(OSError):  # a folder of somebody else's, which we may only read
                    os.utime(own)
                return trace
            except ValueError:
                with contextlib.suppress(OSError):
                    own.unlink(missing_ok=True)
            except OSError:
                pass
        bundled = self.assets / name
        return Trace.load(bundled) if bundled.exists() else None

    def has(self, spec: RunSpec) -> bool:
        name = f"{key_of(spec)}.npz"
        return (self.root / name).exists() or (self.assets / name).exists()

    def put(self, spec: RunSpec, trace: Trace) -> str | None:
        """Keeps a trace. Returns None, or the sentence that says why it could not be kept."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            trace.save(self.root / f"{key_of(spec)}.npz")
            self._make_room()
        except OSError as error:
            return (
                f"The result is shown but could not be kept in {self.root} ({error.strerror or error}): "
                "free some space, or set SPARSELENS_CACHE to a folder you can write."
            )
        return None

    def _make_room(self) -> None:
        """Drops the traces that were used longest ago once the folder passes 2 GiB."""
        files = []
        for path in self.root.glob("*.npz"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = 0
        for _, size, path in sorted(files, reverse=True):
            total += size
            if total > _MOST_BYTES:
                path.unlink(missing_ok=True)
