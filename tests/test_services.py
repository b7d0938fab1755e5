"""The marker `service` is on every test that starts a process."""

from __future__ import annotations

import subprocess
import sys

import pytest


def _start() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def _starter(name: str) -> None:
    """Tests call it by names that the search does not follow."""
    globals()[name]()


def test_a_process_is_refused_without_the_marker() -> None:
    with pytest.raises(RuntimeError, match="needs the marker `service`"):
        _starter("_start")


def test_a_test_that_starts_a_process_has_the_marker(request: pytest.FixtureRequest) -> None:
    assert "service" in {mark.name for mark in request.node.iter_markers()}
    _start()


@pytest.fixture
def started() -> None:
    _start()


@pytest.mark.usefixtures("started")
def test_so_has_one_whose_fixture_does(request: pytest.FixtureRequest) -> None:
    assert "service" in {mark.name for mark in request.node.iter_markers()}


STARTS = {"one": _start, "none": len}


@pytest.mark.parametrize("which", STARTS)
def test_what_a_parameter_picks_counts(which: str, request: pytest.FixtureRequest) -> None:
    assert STARTS[which]
    marks = {mark.name for mark in request.node.iter_markers()}
    assert ("service" in marks) == (which == "one")
