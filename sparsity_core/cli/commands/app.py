"""Open SparseLens in the browser."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

from sparsity_core.cli import options as shared
from sparsity_core.work import app_folder


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=int, metavar="N", help="where the app listens; default: 8501, or the next free one"
    )
    parser.add_argument("--address", metavar="A", help="for whom; default: localhost, this machine alone")
    parser.add_argument("--headless", action="store_true", help="open no browser")
    shared.json_option(parser)


def answer(options: argparse.Namespace) -> shared.Answer:
    if importlib.util.find_spec("streamlit") is None:
        raise ValueError("the app needs Streamlit, which is not installed: pip install 'sparselens[app]'")
    script = app_folder() / "app.py"
    if not script.is_file():
        raise ValueError(f"there is no app at {script}: install SparseLens again")
    if options.port is not None and not 0 < options.port < 65536:
        raise ValueError(f"--port is 1 to 65535; got {options.port}")
    command = [sys.executable, "-m", "streamlit", "run", str(script)]
    command += [f"--server.port={options.port}"] if options.port else []
    command += [f"--server.address={options.address}"] if options.address else []
    command += ["--server.headless=true"] if options.headless else []
    sys.stdout.flush()
    os.execv(sys.executable, command)  # this process becomes the server: what ends it ends the server
