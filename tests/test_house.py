"""Dependencies point one way, and what only reads a record stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ["kernels", "sparsity_core", "viz", "ui", "pages", "app"]  # each may import those before it
FORBIDDEN = {
    "kernels": {"transformers", "streamlit", "plotly", "pandas"},
    "sparsity_core": {"streamlit", "plotly"},
    "viz": {"streamlit", "torch", "transformers"},
    "ui": {"torch", "transformers"},
    "pages": {"torch", "transformers"},
    "app": {"torch", "transformers"},
}


def sources(package: str) -> list[Path]:
    file = ROOT / f"{package}.py"
    return [file] if file.exists() else sorted((ROOT / package).rglob("*.py"))


def imported(source: str) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found.add(str(node.module).partition(".")[0])
    return found


def strings(source: str) -> list[str]:
    """Every string of a module but its docstrings."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
    constants = [
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return [text for text in constants if text not in docs]


def names_a_method(text: str, names: list[str]) -> bool:
    """Whether a string is a method's name or spells a pipeline with it; a word of prose does not count."""
    return any(re.search(rf"^{name}$|\b{name}\(|=\s*{name}\b", text) for name in names)


def test_the_checkers_see_what_they_look_for():
    assert imported("import a.b\ndef f():\n    from c.d import e\n    import g as h") == {"a", "c", "g"}
    assert strings('"""doc"""\nx = "one"\ndef f():\n    """doc of f"""\n    return f"two{x}"') == ["one", "two"]
    assert names_a_method("a2sf", ["a2sf"])
    assert names_a_method("eviction=a2sf(budget=4)", ["a2sf"])
    assert names_a_method("eviction = random", ["random"])
    assert not names_a_method("a random text", ["random"])


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_one_way(package):
    above = set(ORDER[ORDER.index(package) + 1 :])
    files = sources(package)
    assert files, f"{package} has no files to check"
    for file in files:
        wrong = imported(file.read_text()) & (above | FORBIDDEN[package])
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def test_pages_name_no_method():
    from sparsity_core import methods

    for file in sources("pages"):
        named = [text for text in strings(file.read_text()) if names_a_method(text, methods.names())]
        assert not named, f"{file.name} names a method: {named}"


def test_reading_a_trace_imports_no_torch(tmp_path):
    from sparsity_core import Pipeline, methods, run
    from tests import tiny

    path = tmp_path / "trace.npz"
    run(tiny.model(), tiny.TEXT, Pipeline(eviction=methods.A2SF(budget=12))).save(path)
    script = (
        "import sys, sparsity_core\n"
        "from sparsity_core import Pipeline, Trace, methods, record, work\n"
        "record.Store, work.JobQueue\n"
        f"trace = Trace.load({str(path)!r})\n"
        "Pipeline.parse(trace.provenance.pipeline), trace.keep(0), trace.density(), methods.names()\n"
        "heavy = {'torch', 'transformers', 'streamlit', 'plotly', 'pandas'} & set(sys.modules)\n"
        "print(sorted(heavy), trace.n_tokens)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == f"[] {len(tiny.TEXT)}"


def test_reductions_are_spelled_as_the_kernels_spell_them():
    from sparselens_kernels import dispatch

    from sparsity_core import kinds

    assert kinds.REDUCTIONS == dispatch.REDUCTIONS
