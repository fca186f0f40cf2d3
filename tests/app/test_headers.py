"""What a real server sends beside its pages, and how the app is opened and ended."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.server import ROOT, cache_with_models, wait_for
from ui.headers import HEADERS


def got(address: str) -> tuple[dict[str, str], str]:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return dict(answer.headers), answer.read().decode(errors="replace")


def test_every_response_forbids_foreign_frames_and_guessed_types(address: str) -> None:
    _, page = got(f"{address}/")
    script = re.search(r'src="\./(static/[^"]+\.js)"', page)
    assert script
    for path in ("", "spectra", script[1], "_stcore/health", "_stcore/host-config"):
        headers = {name.lower(): value for name, value in got(f"{address}/{path}")[0].items()}
        assert "frame-ancestors 'self'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["referrer-policy"] == HEADERS["Referrer-Policy"], path


@pytest.mark.skipif(sys.platform != "linux", reason="xdg-open is how Linux opens a browser")
def test_the_command_opens_a_browser_unless_it_is_headless(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    asked, browser = tmp_path / "asked", tmp_path / "xdg-open"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {asked}\n')
    browser.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SPARSELENS_CACHE": str(cache_with_models(tmp_path)),
        "STREAMLIT_SERVER_HEADLESS": "false",
    }
    command = [sys.executable, "-m", "sparsity_core", "app", f"--port={port}"]
    server = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        wait_for(f"http://localhost:{port}/_stcore/health")
        deadline = time.monotonic() + 20
        while not asked.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert asked.read_text().split() == [f"http://localhost:{port}"]
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
    finally:
        server.kill()
        server.wait()
