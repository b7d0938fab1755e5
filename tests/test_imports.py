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

#: From the top down. A module imports from the rows below its own, and from no other; what
#: matches no pattern has no place in the house yet. The first pattern that matches counts.
LAYERS = [
    ["__init__"],
    ["app", "gunicorn"],
    ["extension"],
    ["blueprint", "sockets", "plugs"],
    ["checkpoints"],
    ["checkpoints_sqlite", "checkpoints_postgres", "checkpoints_redis"],
    ["checkpoints_redis_saver"],
    ["checkpoints_lazy"],
    ["desk"],
    ["serving", "openapi", "commands", "headers"],
    ["permits"],
    ["access"],
    ["identity", "tickets", "quotas"],
    ["keys", "origins", "problems", "requests", "bodies"],
    ["transports.sse", "transports.websocket", "transports.socketio"],
    ["transports.websocket_connection", "transports.socketio_client", "transports.socketio_wire"],
    ["transports.websocket_frames", "transports.socketio_packets"],
    ["talk"],
    ["runs"],
    ["starts", "conversations"],
    ["cache"],
    ["live"],
    ["keeper", "history"],
    ["runner", "journal"],
    ["log"],
    ["tail", "rights"],
    ["*.base"],
    ["calls", "line"],
    ["messages", "inputs"],
    ["pace"],
    ["config", "faults", "tasks", "logs", "schemas", "documents", "redis_pool"],
    ["events", "endings"],
    ["errors"],
]
#: Plugs: they stand beside the rows, and import nothing of ours but this.
PLUGS = ["stores", "sources", "dialects"]
#: A plug of several files has its name in all of them: `stores.sqlite`, `stores.sqlite_file`.
PLUG_MAY = ["<kind>.base", "<plug>_*", "calls", "messages", "inputs"]
PLUG_MAY += ["config", "faults", "tasks", "events", "errors", "redis_pool"]
#: The built-in chains are users of LangChain, from the top down, and know little of ours.
CHAINS = ["chains.*", "chains.tools", "chains.documents_index", "chains.pieces", "chains.chosen"]
CHAINS += ["chains.retries", "chains.models", "chains.openai", "chains.local", "chains.llama"]
CHAINS_MAY = ["config", "endings", "errors", "tasks"]
#: Who may name an implementation of a plug or a transport.
NAMES_IMPLEMENTATIONS = ["app", "extension", "plugs"]
#: Who may name a built-in chain or its model.
NAMES_CHAINS = ["app", "gunicorn", "chains.*"]
#: Who may know that there is a web framework, or a server, around.
WEB = [
    "app",
    "gunicorn",
    "extension",
    "blueprint",
    "serving",
    "sockets",
    "desk",
    "headers",
    "permits",
]
WEB += [
    "access",
    "identity",
    "quotas",
    "keys",
    "origins",
    "problems",
    "requests",
    "bodies",
    "transports.*",
]
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


def kind(module: str) -> str:
    return module.partition(".")[0]


def is_plug(module: str) -> bool:
    return kind(module) in PLUGS and "." in module and not module.endswith(".base")


def row(module: str) -> int:
    rows = [n for n, names in enumerate(LAYERS) if any(fnmatch(module, name) for name in names)]
    assert rows, f"{module} has no place in LAYERS: say where it belongs"
    return rows[0]


def may(module: str, names: list[str]) -> bool:
    return any(fnmatch(module, name) for name in names)


def test_the_source_is_read_as_python_reads_it(tmp_path: Path) -> None:
    source = tmp_path / "it.py"
    source.write_text(
        "import os.path\n"
        "from ..errors import Code\n"
        "from .. import tasks\n"
        "from .base import Run\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import one\nelse:\n    import two\n"
        "def f():\n    if True:\n        import three\n    from flask_stream.runs import Runs\n"
    )
    assert imported(source, ["flask_stream", "stores"]) == {
        "os.path",
        "flask_stream.errors",
        "flask_stream.tasks",
        "flask_stream.stores.base",
        "flask_stream.runs",
        "typing",
        "two",
        "three",
    }


@modules
def test_imports_run_downward_only(module: str) -> None:
    if empty(module) or is_plug(module) or kind(module) == "chains":
        return
    # The implementations of plugs are nobody's layer: who may name them is told below.
    below = {name for name in ours(module) if not is_plug(name) and kind(name) != "chains"}
    wrong = {name for name in below - {module} if row(name) <= row(module)}
    assert not wrong, f"{module} imports {wrong}, which are not below it"


@pytest.mark.parametrize("module", [module for module in MODULES if is_plug(module)])
def test_a_plug_knows_its_contract_and_nothing_beside_it(module: str) -> None:
    allowed = [name.replace("<kind>", kind(module)).replace("<plug>", module) for name in PLUG_MAY]
    wrong = {name for name in ours(module) if not may(name, allowed)}
    assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize("module", [m for m in MODULES if kind(m) == "chains" and "." in m])
def test_chains_know_the_settings_and_models_below_them(module: str) -> None:
    place = CHAINS.index(module) if module in CHAINS else 0
    allowed = CHAINS_MAY + CHAINS[place + 1 :]
    wrong = {name for name in ours(module) if not may(name, allowed)}
    assert not wrong, f"{module} imports {wrong}"


@modules
def test_only_the_wiring_names_implementations(module: str) -> None:
    named = {name for name in ours(module) if is_plug(name) or kind(name) == "transports"}
    plug = module.partition("_")[0]
    others = {n for n in named if n.partition("_")[0] != plug and not n.endswith(".base")}
    assert not others or module in NAMES_IMPLEMENTATIONS, f"{module} names {others}"


@modules
def test_the_built_in_chains_are_for_the_service_alone(module: str) -> None:
    named = {name for name in ours(module) if kind(name) == "chains"}
    assert not named or may(module, NAMES_CHAINS), f"{module} names {named}"


@modules
def test_only_the_top_knows_the_web(module: str) -> None:
    known = {name.split(".")[0] for name in imports(module)} & WEB_PACKAGES
    assert not known or may(module, WEB), f"{module} imports {known}"


def test_one_module_names_gevent() -> None:
    naming = [
        path.relative_to(ROOT).as_posix()
        for path in [*MODULES.values(), *ROOT.glob("*.py")]
        if any(name.split(".")[0] == "gevent" for name in imported(path, ["flask_stream"]))
    ]
    assert sorted(naming) == ["flask_stream/tasks.py", "gunicorn.conf.py"]


def test_packages_of_plugs_hold_no_code_and_no_third_level() -> None:
    for package in (path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()):
        assert (package / "__init__.py").read_text() == "", package
    assert all(module.count(".") <= 1 for module in MODULES)


@pytest.mark.parametrize("package", [*PLUGS])
def test_each_kind_of_plug_has_its_contract(package: str) -> None:
    assert f"{package}.base" in MODULES
    assert len([module for module in MODULES if kind(module) == package and is_plug(module)]) > 1


@modules
def test_a_file_is_short_enough_to_read(module: str) -> None:
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= LONGEST, f"{module} has {lines} lines: split it by noun"
