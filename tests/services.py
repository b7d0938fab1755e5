"""Which tests start a process: found in the code they reach, and watched while they run.

Those tests get the marker `service`, so that `pytest -m "not service"` is the part of the suite
that runs in the test's own process. A test without the marker that starts a process fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

#: What starts a process, as it is named in a test's code.
STARTERS = {"Popen", "sync_playwright", "get_context", "fetch", "start_local", "LocalServer"}
_EVENTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec", "os.system"}
_allowed = True


def starts_process(item: pytest.Function) -> bool:
    """Return whether the test, a fixture it uses, or a helper they call starts a process."""
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return _Search(item, {param for param in params if isinstance(param, str)}).found()


class _Search:
    """A walk through the code that a test may reach within `tests`."""

    def __init__(self, item: pytest.Function, params: set[str]) -> None:
        self._fixtures = item._fixtureinfo.name2fixturedefs
        self._manager = item.session._fixturemanager
        self._item = item
        self._params = params
        self._seen: set[int] = set()

    def found(self) -> bool:
        names = [*self._item.fixturenames]
        return self._reaches(self._item.function) or any(map(self._fixture, names))

    def _fixture(self, name: str) -> bool:
        known = self._fixtures.get(name) or self._manager.getfixturedefs(name, self._item) or ()
        return any(self._reaches(fixture.func) for fixture in known)

    def _reaches(self, value: Any) -> bool:
        value = getattr(value, "__wrapped__", value)
        value = getattr(value, "__func__", value)
        if id(value) in self._seen:
            return False
        self._seen.add(id(value))
        if isinstance(value, FunctionType):
            return _of_tests(value.__module__) and self._code(value.__code__, value.__globals__)
        if isinstance(value, type):
            return _of_tests(value.__module__) and any(map(self._reaches, vars(value).values()))
        if isinstance(value, Mapping):
            picked = [value[name] for name in self._params if name in value]
            return any(map(self._reaches, picked or value.values()))
        if isinstance(value, property):
            return self._reaches(value.fget)
        return False

    def _code(self, code: CodeType, names: Mapping[str, Any]) -> bool:
        codes = list(_nested(code))
        used = {name for each in codes for name in each.co_names}
        if used & STARTERS or {"subprocess", "run"} <= used:
            return True
        if "getfixturevalue" in used:
            texts = (const for each in codes for const in each.co_consts)
            if any(self._fixture(text) for text in texts if isinstance(text, str)):
                return True
        for name in used & names.keys():
            value = names[name]
            if isinstance(value, ModuleType) and _of_tests(value.__name__):
                inside = vars(value)
                if any(self._reaches(inside[each]) for each in used & inside.keys()):
                    return True
            elif self._reaches(value):
                return True
        return False


def _of_tests(module: str | None) -> bool:
    return (module or "").split(".")[0] == "tests"


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _nested(const)


def allow(allowed: bool) -> None:
    """Say whether a process may be started from now on."""
    global _allowed
    _allowed = allowed


def _watch(event: str, _: object) -> None:
    if not _allowed and event in _EVENTS:
        raise RuntimeError("a test that starts a process needs the marker `service`")


def watch() -> None:
    """Refuse processes where they are not allowed, for as long as this process lives."""
    sys.addaudithook(_watch)
