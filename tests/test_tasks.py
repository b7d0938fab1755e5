"""Tasks that are interrupted: on plain threads here, on greenlets in a process of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import pytest
from langchain_openai import ChatOpenAI

from flask_stream.concurrency import tasks
from flask_stream.sources.base import Input
from flask_stream.sources.langgraph import LangGraphSource

from . import graphs
from .provider import Provider, Script
from .server import ROOT

#: What each script below begins with: greenlets, and a way to see where a task has got to.
PREFACE = """
from gevent import monkey
monkey.patch_all()
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from flask_stream.concurrency import tasks

said = []

def waiting(name, seconds=30):
    try:
        said.append(name)
        time.sleep(seconds)
        said.append(name + " slept")
    except tasks.Interrupted:
        said.append(name + " interrupted")
        raise

def started(target, *names):
    task = tasks.start_task(target, "task")
    until = time.monotonic() + 10
    while not {*names} <= {*said}:
        assert time.monotonic() < until, said
        time.sleep(0.01)
    return task
"""


def greenlets(script: str) -> list[str]:
    """The names that a script under gevent has left in `said`. It must end by itself."""
    code = PREFACE + textwrap.dedent(script) + "\nprint('\\n'.join(said))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_an_interrupt_reaches_whoever_works_for_the_task() -> None:
    said = greenlets("""
        def task():
            with ThreadPoolExecutor(2) as pool:
                for name in ("a", "b"):
                    pool.submit(copy_context().run, waiting, name)
                waiting("task")

        task = started(task, "a", "b", "task")
        assert task.interrupt()
        assert task.join(5)
    """)
    assert sorted(said) == [
        *("a", "a interrupted", "b", "b interrupted", "task", "task interrupted")
    ]


def test_a_worker_that_serves_somebody_else_by_now_is_left_alone() -> None:
    said = greenlets("""
        with ThreadPoolExecutor(1) as pool:
            def one():
                pool.submit(copy_context().run, said.append, "one's").result()
                waiting("one")

            task = started(one, "one")
            other = pool.submit(waiting, "other", 0.5)
            task.interrupt()
            assert task.join(5)
            other.result()
    """)
    assert said == ["one's", "one", "other", "one interrupted", "other slept"]


def test_who_does_not_leave_is_told_again() -> None:
    said = greenlets("""
        def deaf():
            try:
                waiting("deaf")
            except tasks.Interrupted:
                waiting("still deaf")

        task = started(deaf, "deaf")
        task.interrupt()
        assert task.join(10)
    """)
    assert said == ["deaf", "deaf interrupted", "still deaf", "still deaf interrupted"]


def test_many_that_leave_at_once_are_looked_after_together() -> None:
    """Each look goes through every object there is: one for all of them, not one for each."""
    said = greenlets("""
        import gc

        looks = 0
        get_objects = gc.get_objects

        def counted():
            global looks
            looks += 1
            return get_objects()

        gc.get_objects = counted
        all = [tasks.start_task(lambda: waiting("one"), "one") for _ in range(400)]
        time.sleep(0.5)
        for task in all:
            task.interrupt()
        assert all[-1].join(20)
        for task in all:
            assert task.join(20)
        time.sleep(0.5)
        assert looks < 100, looks
    """)
    assert said.count("one interrupted") == 400


def test_what_is_shielded_is_not_left_half_done() -> None:
    said = greenlets("""
        def careful():
            with tasks.shield():
                waiting("shielded", 0.3)
            waiting("open")

        task = started(careful, "shielded")
        task.interrupt()
        assert task.join(5)
    """)
    assert said == ["shielded", "shielded slept", "open", "open interrupted"]


def test_a_task_that_leaves_by_itself_is_given_time_for_it() -> None:
    said = greenlets("""
        def polite():
            said.append("polite")
            time.sleep(0.1)
            tasks.scope().notice()
            waiting("leaving", 0.3)

        task = started(polite, "polite", "leaving")
        task.interrupt()
        assert task.join(5)
    """)
    assert said == ["polite", "leaving", "leaving slept"]


def test_a_checkpointer_is_not_left_half_done(tmp_path: Path) -> None:
    said = greenlets(f"""
        import sqlite3
        from langgraph.checkpoint.sqlite import SqliteSaver
        from langgraph.graph import START, MessagesState, StateGraph
        from flask_stream.sources.base import Input
        from flask_stream.sources.langgraph import LangGraphSource

        class Slow(SqliteSaver):
            def put(self, *args):
                waiting("put", 0.3)
                return super().put(*args)

        saver = Slow(sqlite3.connect({str(tmp_path / "c.db")!r}, check_same_thread=False))
        graph = StateGraph(MessagesState)
        graph.add_node("node", lambda state: said.append("node"))
        graph.add_edge(START, "node")
        source = LangGraphSource(graph.compile(checkpointer=saver))
        task = started(lambda: list(source.stream(Input({{"question": "x"}}, thread="t"))), "put")
        task.interrupt()
        assert task.join(10)
        found = saver.get_tuple({{"configurable": {{"thread_id": "t"}}}})
        assert found.metadata["source"] == "input", found
        saver.conn.close()
    """)
    assert said == ["put", "put slept"]


# Plain threads


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a task waits for; opened at the end so that no thread is left waiting."""
    gate = threading.Event()
    yield gate
    gate.set()


def test_a_thread_that_was_stopped_begins_nothing_new(gate: threading.Event) -> None:
    found: list[bool] = []

    def look() -> None:
        gate.wait()
        try:
            tasks.scope().check()
            found.append(False)
        except tasks.Interrupted:
            found.append(True)

    def target() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(copy_context().run, look)
            look()

    task = tasks.start_task(target, "task")
    assert not task.interrupt(), "a thread cannot be interrupted"
    gate.set()
    assert task.join(10)
    assert found == [True, True]
    tasks.scope().check()  # outside of any task nobody is stopped


def test_on_threads_a_graph_that_speaks_is_stopped_at_its_next_words(provider: Provider) -> None:
    provider.script = Script(["a"] * 2000, delay=0.01)
    model = ChatOpenAI(model="scripted", base_url=provider.url, api_key=lambda: "test")
    source = LangGraphSource(graphs.fan(model).compile())

    def ask() -> None:
        for _ in source.stream(Input({"question": "Why?"})):
            pass

    task = tasks.start_task(ask, "task")
    with provider.news:
        assert provider.news.wait_for(
            lambda: len([call for call in provider.calls if call.sent > 2]) == 2, 10
        )
    task.interrupt()
    assert task.join(10)
    assert [call.wait_closed() for call in provider.calls] == [True, True]
