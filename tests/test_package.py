"""What is declared, what is pinned, and what a wheel holds agree; the wheel runs where the clone is out of sight."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sparsity_core
from tests.test_house import imported

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"sparsity_core", "sparselens_kernels", "sparselens_app"}  # the names that we take in site-packages


def declared(*extras: str) -> dict[str, Requirement]:
    """The requirements of the library and of some extras, by name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(found.name): found for found in map(Requirement, lines)}


def pinned(file: str) -> dict[str, str]:
    """name: version of a requirements file; the version is empty where none is pinned."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("-r")]
    return {canonicalize_name(item.name): str(item.specifier).removeprefix("==") for item in found}


@pytest.mark.parametrize(
    ("file", "extras", "beyond"),
    [
        ("requirements.txt", ("app",), ()),
        ("requirements-dev.txt", ("dev", "eval", "cluster"), declared("app")),
    ],
    ids=["app", "dev"],
)
def test_what_is_pinned_is_what_the_extras_declare(file, extras, beyond):
    found, wanted = pinned(file), declared(*extras)
    assert set(found) == set(wanted) - set(beyond)
    for name, version in found.items():
        assert (name == "triton") == (not version), f"{name} is not pinned"
        assert not version or wanted[name].specifier.contains(version), f"{name} {version} is not {wanted[name]}"


def test_the_extras_are_those_that_the_readme_names():
    assert set(PROJECT["optional-dependencies"]) == {"app", "eval", "cluster", "int8", "dev"}


def test_one_place_names_the_version():
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    version = sparsity_core.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M).group(1) == version
    assert re.findall(r"Version ([\d.]+\d)", (ROOT / "README.md").read_text()) == [version]


@pytest.mark.parametrize(
    ("folders", "extras"),
    [(("sparsity_core", "kernels"), ("eval", "cluster", "int8")), (("viz", "ui", "pages"), ("app",))],
    ids=["library", "app"],
)
def test_what_is_imported_is_declared(folders, extras):
    """Tasks need lm-evaluation-harness and tables pandas, which `eval` brings, and int8 weights torchao."""
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert files
    names = {name for file in files for name in imported(file.read_text())} - set(sys.stdlib_module_names) - OWN
    places = packages_distributions()
    found = {canonicalize_name(places[name][0]) for name in names if name in places}
    assert found <= set(declared(*extras)) | {"choreographer"}, sorted(found - set(declared(*extras)))  # kaleido's own


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_holds_everything_under_names_of_our_own(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == OWN
    for source, place in (("sparsity_core", ""), ("kernels/sparselens_kernels", ""), ("ui", "sparselens_app/")):
        tracked = subprocess.run(["git", "ls-files", source], cwd=ROOT, capture_output=True, text=True).stdout.split()
        wanted = {place + name.removeprefix("kernels/") for name in tracked}
        assert wanted and wanted <= set(names), sorted(wanted - set(names))
    for name in ("sparsity_core/py.typed", "sparselens_kernels/py.typed", "sparsity_core/kinds/__init__.pyi"):
        assert name in names
    assert {"sparselens_app/app.py", "sparselens_app/.streamlit/config.toml"} <= set(names)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The scripts' folder of an environment that has the wheel, and of this one only its third-party packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = next((folder / "lib").glob("python*/site-packages"))
    ours = [Path(path) for path in sys.path if path.endswith("site-packages")]
    (site / "machine.pth").write_text(
        "\n".join(map(str, ours))
    )  # .pth files of a folder that a .pth names are not read
    return folder / "bin"


def outside(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """A command that cannot see the clone."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SPARSELENS_PLUGINS")}
    return subprocess.run(list(map(str, command)), cwd=cwd, env=kept | environment, capture_output=True, text=True)


@pytest.mark.slow
def test_an_installed_wheel_runs_a_method_with_the_clone_out_of_sight(installed, tmp_path, smollm):
    found = outside(
        installed / "python", "-c", "import sparsity_core, sparselens_kernels as k; print(sparsity_core.__file__, k.__file__)",
        cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert all(str(installed.parent) in path for path in found.stdout.split())
    prompt = "The harbour office opens at six, when the fog still hides the far pier."
    done = outside(
        installed / "sparselens", "run", "--prompt", prompt, "--pipeline", "eviction=a2sf(budget=8)", "--device", "cpu",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "a2sf(budget=8)" in done.stdout and "perplexity" in done.stdout


@pytest.mark.slow
def test_the_installed_app_answers(installed, tmp_path):
    import socket

    from tests.server import wait_for

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(installed / "sparselens"), "app", "--headless", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=kept, stdout=log, stderr=log)
        try:
            wait_for(f"http://localhost:{port}/")
        finally:
            server.terminate()
            server.wait()
    assert "localhost" in (tmp_path / "log").read_text()  # the address that the app's own settings name
