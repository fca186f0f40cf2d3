"""Where the app lies, whose figures the command line and a script draw with."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def app_folder() -> Path:
    """The folder of app.py, and of `viz` that it imports: `sparselens_app` where installed, a clone's root otherwise."""
    beside = Path(__file__).resolve().parents[2]
    installed = beside / "sparselens_app"
    return installed if installed.is_dir() else beside


def from_app(module: str) -> ModuleType:
    """A module that lies beside app.py, as "viz" does. Raises ValueError where what it needs is not installed."""
    folder = str(app_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    missing = [name for name in ("plotly", "pandas", "pypdf") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"figures need {', '.join(missing)}, not installed here: pip install 'sparselens[app]'")
    return importlib.import_module(module)
