"""Dependencies point one way, files and functions stay short, and what only reads a record stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.graph import House, circle, floors, grouped

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

HOUSE = House((ROOT, ROOT / "kernels"), ("sparselens_kernels", "sparsity_core", "viz", "ui", "pages", "app"))
ROOMS = """sparsity_core sparselens_kernels work kinds record models assets attention weights spectrum inference methods
evaluate studies cli __main__ viz ui pages app""".split()  # each may import those before it
MOST_FLOORS, MOST_LINES, MOST_OF_A_FUNCTION = 8, 400, 60
LONG = {  # kernels alone: an operation's equation, its arguments' meaning or its tiles are read in one piece
    "sparselens_kernels.evict_scan.evict_scan",
    "sparselens_kernels.evict_scan.kernel._scan",
    "sparselens_kernels.evict_scan.kernel._scanned",
    "sparselens_kernels.evict_scan.reference.evict_scan",
    "sparselens_kernels.evict_scan.walk._walk",
    "sparselens_kernels.flash_column_score.flash_column_score",
}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "sparsity_core" and len(parts) > 1 else parts[0]


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


def made(folder: Path, files: dict[str, str]) -> House:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return House((folder,), ("p",))


def test_the_graph_follows_names_through_stubs_and_sees_circles(tmp_path):
    house = made(
        tmp_path,
        {
            "p/__init__.py": "",
            "p/low/__init__.py": "import lazy_loader",
            "p/low/__init__.pyi": "from .one import thing as thing\n",
            "p/low/one.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.high.two import other\n",
            "p/low/alone.py": "",
            "p/high/__init__.py": "",
            "p/high/two.py": "def f():\n    from p.low import thing\n",
            "p/high/three.py": "from p.low.alone import x\nfrom p.low.one import thing\nimport p.high.two",
        },
    )
    assert house.graph["p.high.two"] == {"p.low.one"}  # inside a function, through the stub
    assert house.graph["p.low.one"] == {"p.high.two"}  # for types alone
    assert circle(house.graph)[0] == circle(house.graph)[-1]
    assert set(circle(house.graph)) == {"p.high.two", "p.low.one"}
    assert house.reached_past("p.high.three") == {"p.low.alone", "p.low.one"}
    assert not house.reached_past("p.high.two")
    rooms = grouped({"a.x": {"b.y"}, "b.y": {"b.z", "c.w"}, "b.z": set(), "c.w": set()}, dict(zip(
        ("a.x", "b.y", "b.z", "c.w"), "abbc", strict=True
    )))  # fmt: skip
    assert rooms == {"a": {"b"}, "b": {"c"}, "c": set()} and floors(rooms) == {"a": 3, "b": 2, "c": 1}


def test_no_files_import_each_other_in_a_circle():
    assert len(HOUSE.files) > 200
    assert not circle(HOUSE.graph)


def test_rooms_import_only_rooms_below_them():
    found = {name: room_of(name) for name in HOUSE.files}
    assert set(found.values()) == set(ROOMS), "a new room has a place in ROOMS"
    for room, others in grouped(HOUSE.graph, found).items():
        above = others - set(ROOMS[: ROOMS.index(room)])
        assert not above, f"{room} imports {sorted(above)}, which stand above it"


def test_nothing_reaches_past_what_a_room_makes_public():
    """But what one method alone needs: that stands beside it, and whoever asks for that method's own asks there."""
    for name in HOUSE.files:
        past = {other for other in HOUSE.reached_past(name) if not other.startswith("sparsity_core.methods.")}
        assert not past, f"{name} reaches {sorted(past)}: import from the room, and add the name to its __init__.pyi"


def test_a_method_s_files_are_reached_from_outside_only_where_they_are_its_folder_s():
    for name in HOUSE.files:
        past = {other for other in HOUSE.reached_past(name) if other.startswith("sparsity_core.methods.")}
        folders = {other.rpartition(".")[0] for other in past}
        kinds = {f"sparsity_core.methods.{stage}" for stage in ("weights", "gate", "prefill", "eviction", "decode")}
        assert not folders & kinds, f"{name} names a method's own file: ask the registry"


def test_there_are_few_floors():
    rooms = {name: room_of(name) for name in HOUSE.files}
    library = {name: room for name, room in rooms.items() if not name.startswith(("viz", "ui", "pages", "app"))}
    stories = floors(grouped({name: HOUSE.graph[name] for name in library}, rooms))
    assert max(stories[room] for room in library.values()) <= MOST_FLOORS
    for room in set(rooms.values()):
        own = {name for name, of in rooms.items() if of == room}
        highest = max(floors({name: HOUSE.graph[name] & own for name in own}).items(), key=lambda item: item[1])
        assert highest[1] <= MOST_FLOORS, f"{highest[0]} stands on floor {highest[1]} of {room}"


def test_files_and_functions_stay_short():
    long_files, long_functions = {}, {}
    for name, path in HOUSE.files.items():
        text = path.read_text()
        if (lines := text.count("\n")) > MOST_LINES:
            long_files[name] = lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_OF_A_FUNCTION:
                    long_functions[f"{name}.{node.name}"] = lines
    assert not long_files
    assert long_functions.keys() <= LONG, sorted(long_functions.keys() - LONG)
    assert long_functions.keys() >= LONG, f"no longer long: {sorted(LONG - long_functions.keys())}"


def test_files_of_tests_stay_short():
    folder = ROOT / "tests"
    lines = {str(file.relative_to(folder)): file.read_text().count("\n") for file in folder.rglob("*.py")}
    assert not {name for name, count in lines.items() if count > MOST_LINES}


def test_importing_the_library_is_light():
    heavy = ("torch", "transformers", "pandas", "scipy", "numpy", "streamlit", "plotly", "tqdm", "huggingface_hub")
    script = f"import sys, sparsity_core\nprint(sorted(set({heavy}) & set(sys.modules)), len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded, count = done.stdout.rsplit(maxsplit=1)
    assert loaded == "[]"
    bare = subprocess.run(
        [sys.executable, "-c", "import sys; print(len(sys.modules))"], capture_output=True, text=True, check=True
    )
    assert int(count) - int(bare.stdout) < 60, "a tenth of a second is about a hundred modules of Python's own"


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


def test_one_file_knows_what_is_of_cuda_alone():
    asks = re.compile(r"torch\.cuda|torch\.version\.(cuda|hip)|torch\.mps|\.is_cuda\b|\.type [!=]= .cuda.")
    assert all(asks.search(text) for text in ("torch.cuda.Event()", "x.is_cuda", 'device.type == "cuda"'))
    found = [file.relative_to(ROOT) for package in ORDER for file in sources(package) if asks.search(file.read_text())]
    assert found == [Path("kernels/sparselens_kernels/device.py")], "ask sparselens_kernels.device"


def test_every_method_has_a_card_and_the_docs_hold_it():
    from sparsity_core import methods
    from sparsity_core.cli.commands.methods import page

    for name in methods.names():
        card = methods.get(name).card
        assert card is not None and all(card.rows().values()), f"{name} has no card: see kinds/card.py"
    held = (ROOT / "docs" / "cards.md").read_text()
    assert held == page() + "\n", "run `python -m sparsity_core methods --markdown > docs/cards.md`"
