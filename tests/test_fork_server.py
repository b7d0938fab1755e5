"""Servers that are forked behave as those that are started by their command line."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from . import fork_server
from .server import ROOT, Server, environment, gunicorn


@pytest.mark.parametrize(
    ("command", "settings", "cwd"),
    [
        (gunicorn("--config", "own.py"), {}, ROOT),
        (gunicorn("--worker-class", "gthread"), {}, ROOT),
        (gunicorn(), {"PYTHONPATH": "elsewhere"}, ROOT),
        (gunicorn(), {}, Path("/")),
        (["flask", "run"], {}, ROOT),
    ],
)
def test_what_a_fork_cannot_do_is_started(
    command: list[str], settings: dict[str, object], cwd: Path
) -> None:
    assert fork_server.forkable(gunicorn(), environment(), ROOT)
    assert not fork_server.forkable(command, environment(**settings), cwd)


@pytest.mark.parametrize("fork", [True, False])
def test_it_prints_the_same_and_ends_the_same(fork: bool) -> None:
    env = environment(model="openai:scripted", OPENAI_API_KEY="test")
    with Server(gunicorn(), env, fork=fork) as server:
        assert isinstance(server.process, fork_server.Forked) == fork
        assert server.stop(signal.SIGTERM) == 0
    said = ["Starting gunicorn", "Listening at", "Booting worker", "Handling signal: term"]
    assert [words for words in said if words not in server.log] == []


def test_a_killed_one_tells_by_which_signal() -> None:
    with Server(gunicorn(), environment(model="openai:x", OPENAI_API_KEY="x")) as server:
        assert isinstance(server.process, fork_server.Forked)
        server.kill()
        assert server.process.returncode == -signal.SIGKILL
