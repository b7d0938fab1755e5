"""The house keeps its shape: who may import whom, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flask_stream"

#: The floors, from the top down. A module imports from the floors below its own and from its own
#: folder, and from no other; the first pattern that matches counts.
FLOORS = [
    ["__init__"],
    ["app", "gunicorn"],
    ["extension"],
    ["web.*"],
    ["service"],
    ["registry"],
    ["transports.*", "security.*"],
    ["engine.*"],
    ["chains.*"],
    ["sources.*"],
    ["stores.*", "checkpoints.*"],
    ["dialects.*", "concurrency.*", "config", "redis_connection", "json_logs"],
    ["events", "errors"],
]
#: A folder of plugs holds the contract in `base`, and implementations that only `WIRING` names.
PLUGS = ["stores", "sources", "dialects", "checkpoints", "transports"]
WIRING = ["registry", "service"]
#: Built-in chains use LangChain as anybody's chain does, and little of this package.
CHAINS_MAY = ["chains.*", "config", "errors", "concurrency.*", "sources.finish_reasons"]
CHAINS_ARE_NAMED_BY = ["app", "gunicorn", "chains.*"]
#: Who may know that there is a web framework, or a server.
WEB = ["app", "gunicorn", "extension", "service", "web.*", "security.*", "transports.*"]
WEB_PACKAGES = {"flask", "flask_cors", "werkzeug", "gunicorn", "jinja2"}
LONGEST = 300


def name_of(path: Path) -> str:
    """A module's name within the package: `runs`, `stores.base`, `stores` for its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
modules = pytest.mark.parametrize("module", MODULES)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Everything in the source, also inside functions; not what only a type checker reads.

    A name that stands for a type alone is no dependency: at run time it is not imported.
    """
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for other in child.orelse:
                yield from (other, *nodes(other))
            continue
        yield child
        yield from nodes(child)


def imported(path: Path, package: list[str]) -> set[str]:
    """Full names of the modules that a file imports; `package` is the one that it is in."""
    found: set[str] = set()
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            # `from . import tasks` names a module, `from .events import Event` a thing in one.
            for alias in node.names:
                inside = is_module(base, alias.name)
                found.add(f"{base}.{alias.name}" if inside else base)
    return found


def is_module(base: str, name: str) -> bool:
    inside = base.removeprefix("flask_stream").replace(".", "/").lstrip("/")
    return base.split(".")[0] == "flask_stream" and (
        (PACKAGE / inside / f"{name}.py").exists() or (PACKAGE / inside / name).is_dir()
    )


@cache
def imports(module: str) -> frozenset[str]:
    """What a module of the package imports, with our own modules named as in `MODULES`."""
    path = MODULES[module]
    return frozenset(imported(path, ["flask_stream", *path.relative_to(PACKAGE).parts[:-1]]))


def ours(module: str) -> set[str]:
    """Which modules of the package a module imports."""
    names = {name for name in imports(module) if name.split(".")[0] == "flask_stream"}
    inside = {name.removeprefix("flask_stream").lstrip(".") or "__init__" for name in names}
    return {name for name in inside if name in MODULES and not empty(name)}


def empty(module: str) -> bool:
    return not MODULES[module].read_text().strip()


def folder(module: str) -> str:
    return module.rpartition(".")[0]


def floor(module: str) -> int:
    found = [n for n, names in enumerate(FLOORS) if may(module, names)]
    assert found, f"{module} is on no floor: say in FLOORS where it belongs"
    return found[0]


def may(module: str, names: list[str]) -> bool:
    return any(fnmatch(module, name) for name in names)


def test_the_source_is_read_as_python_reads_it(tmp_path: Path) -> None:
    source = tmp_path / "it.py"
    source.write_text(
        "import os.path\n"
        "from ..errors import Code\n"
        "from ..concurrency import tasks\n"
        "from .base import Run\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import one\nelse:\n    import two\n"
        "def f():\n    if True:\n        import three\n"
        "    from flask_stream.engine.runs import Runs\n"
    )
    assert imported(source, ["flask_stream", "stores"]) == {
        "os.path",
        "flask_stream.errors",
        "flask_stream.concurrency.tasks",
        "flask_stream.stores.base",
        "flask_stream.engine.runs",
        "typing",
        "two",
        "three",
    }


@modules
def test_imports_run_downward_only(module: str) -> None:
    if empty(module):
        return
    others = {
        name
        for name in ours(module) - {module}
        if not folder(name) or folder(name) != folder(module)
    }
    wrong = {name for name in others if floor(name) <= floor(module)}
    assert not wrong, f"{module} imports {wrong}, which are not on a floor below it"


def test_no_two_modules_import_each_other() -> None:
    left = {module: ours(module) - {module} for module in MODULES if not empty(module)}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"circles among {sorted(left)}"


@modules
def test_only_the_wiring_names_implementations(module: str) -> None:
    named = {
        name
        for name in ours(module)
        if folder(name) in PLUGS and folder(name) != folder(module) and implements(name)
    }
    assert not named or may(module, WIRING), f"{module} names {named}"


def implements(module: str) -> bool:
    """Whether a module of a folder of plugs defines an implementation of the folder's contract."""
    contract = {"stores": "Store", "sources": "Source"}.get(folder(module))
    bases = {
        ast.unparse(base)
        for node in ast.parse(MODULES[module].read_text()).body
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    }
    return contract in bases


@pytest.mark.parametrize("module", [m for m in MODULES if folder(m) == "chains"])
def test_chains_know_little_of_the_package(module: str) -> None:
    wrong = {name for name in ours(module) if not may(name, CHAINS_MAY)}
    assert not wrong, f"{module} imports {wrong}"


@modules
def test_the_built_in_chains_are_for_the_service_alone(module: str) -> None:
    named = {name for name in ours(module) if folder(name) == "chains"}
    assert not named or may(module, CHAINS_ARE_NAMED_BY), f"{module} names {named}"


@modules
def test_only_the_top_knows_the_web(module: str) -> None:
    known = {name.split(".")[0] for name in imports(module)} & WEB_PACKAGES
    assert not known or may(module, WEB), f"{module} imports {known}"


def test_one_module_names_gevent() -> None:
    naming = {
        path.relative_to(ROOT).as_posix()
        for path in [*MODULES.values(), *ROOT.glob("*.py")]
        if any(name.split(".")[0] == "gevent" for name in imported(path, ["flask_stream"]))
    }
    assert naming == {"flask_stream/concurrency/greenlets.py", "gunicorn.conf.py"}


def test_folders_hold_no_code_of_their_own_and_no_third_level() -> None:
    for package in (path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()):
        assert (package / "__init__.py").read_text() == "", package
    assert all(module.count(".") <= 1 for module in MODULES)


@pytest.mark.parametrize("package", PLUGS)
def test_each_kind_of_plug_has_its_contract(package: str) -> None:
    assert f"{package}.base" in MODULES


@modules
def test_a_file_is_short_enough_to_read(module: str) -> None:
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LONGEST, f"{module} has {lines} lines: split it by noun"
