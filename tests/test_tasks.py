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
import gc
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from flask_stream.concurrency import tasks

said = []

def walk_the_heap(*_):
    raise AssertionError("the heap was walked")

gc.get_objects = gc.get_referrers = walk_the_heap

def waiting(name, seconds=30):
    try:
        said.append(name)
        time.sleep(seconds)
        said.append(name + " slept")
    except tasks.Interrupted:
        said.append(name + " interrupted")
        raise

def quiet(name):
    try:
        waiting(name)
    except tasks.Interrupted:
        pass

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
    """Each search looks at every greenlet: there is one for all tasks, not one for each."""
    said = greenlets("""
        searches = 0
        tracked = tasks.greenlets.tracked

        def counted():
            global searches
            searches += 1
            return tracked()

        tasks.greenlets.tracked = counted
        all = [tasks.start_task(lambda: waiting("one"), "one") for _ in range(400)]
        time.sleep(0.5)
        for task in all:
            task.interrupt()
        assert all[-1].join(20)
        for task in all:
            assert task.join(20)
        time.sleep(0.5)
        assert searches < 100, searches
    """)
    assert said.count("one interrupted") == 400


#: Ways in which a chain has work done elsewhere: each waits in "a" and "b" at the same time.
BRANCHES = {
    "an executor that is older than the task": """
        shared = ThreadPoolExecutor(2)
        list(shared.map(time.sleep, [0.1, 0.1]))

        def work():
            each = [shared.submit(copy_context().run, waiting, name) for name in ("a", "b")]
            waiting("task")
    """,
    "an executor that another task has started": """
        shared = ThreadPoolExecutor(2)
        first = tasks.start_task(lambda: list(shared.map(time.sleep, [0.1, 0.1])), "first")
        assert first.join(5)

        def work():
            each = [shared.submit(copy_context().run, waiting, name) for name in ("a", "b")]
            waiting("task")
    """,
    "executors within an executor": """
        def within(name):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(copy_context().run, waiting, name).result()

        def work():
            with ThreadPoolExecutor(2) as pool:
                for name in ("a", "b"):
                    pool.submit(copy_context().run, within, name)
    """,
    "a plain executor within LangChain's": """
        from langchain_core.runnables.config import ContextThreadPoolExecutor

        def within(name):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(copy_context().run, waiting, name).result()

        def work():
            with ContextThreadPoolExecutor(2) as pool:
                list(pool.map(within, ["a", "b"]))
    """,
    "greenlets of its own": """
        import gevent

        def work():
            for name in "ab":
                gevent.spawn(copy_context().run, quiet, name)
            waiting("task")
    """,
    "a queue that greenlets older than the task work off": """
        import gevent, gevent.queue

        queue = gevent.queue.Queue()
        workers = [gevent.spawn(lambda: queue.get()()) for _ in "ab"]
        time.sleep(0.1)

        def work():
            for name in "ab":
                context = copy_context()
                queue.put(lambda context=context, name=name: context.run(quiet, name))
            waiting("task")
    """,
    "RunnableParallel": """
        from langchain_core.runnables import RunnableLambda, RunnableParallel

        chain = RunnableParallel(
            a=RunnableLambda(lambda _: waiting("a")), b=RunnableLambda(lambda _: waiting("b"))
        )

        def work():
            list(chain.stream("x"))
    """,
    "RunnableLambda.batch": """
        from langchain_core.runnables import RunnableLambda

        def work():
            RunnableLambda(waiting).batch(["a", "b"])
    """,
    "retrievers beside each other": """
        from langchain_core.retrievers import BaseRetriever
        from langchain_core.runnables import RunnableParallel

        class Waiting(BaseRetriever):
            name: str

            def _get_relevant_documents(self, query, *, run_manager):
                waiting(self.name)
                return []

        def work():
            RunnableParallel(a=Waiting(name="a"), b=Waiting(name="b")).invoke("x")
    """,
    "tools of one message": """
        from langchain_core.messages import AIMessage
        from langchain_core.tools import tool
        from langgraph.graph import START, MessagesState, StateGraph
        from langgraph.prebuilt import ToolNode

        @tool
        def wait(name: str) -> str:
            "Wait."
            waiting(name)
            return name

        graph = StateGraph(MessagesState)
        graph.add_node("tools", ToolNode([wait]))
        graph.add_edge(START, "tools")
        graph = graph.compile()
        calls = [{"name": "wait", "args": {"name": n}, "id": n, "type": "tool_call"} for n in "ab"]

        def work():
            list(graph.stream({"messages": [AIMessage("", tool_calls=calls)]}))
    """,
    "a fan-out by Send": """
        from typing import TypedDict
        from langgraph.graph import START, StateGraph
        from langgraph.types import Send

        class State(TypedDict):
            name: str

        graph = StateGraph(State)
        graph.add_node("wait", lambda state: waiting(state["name"]))
        graph.add_conditional_edges(START, lambda _: [Send("wait", {"name": n}) for n in "ab"])
        graph = graph.compile()

        def work():
            list(graph.stream({"name": "x"}))
    """,
}


def test_branches_are_found_without_walking_the_heap() -> None:
    """All of them in one process: what takes time is to import LangChain."""
    after = """
        said.clear()
        task = started(work, "a", "b")
        assert task.interrupt()
        assert task.join(10), said
        until = time.monotonic() + 10
        while not {"a interrupted", "b interrupted"} <= {*said}:
            assert time.monotonic() < until, said
            time.sleep(0.01)
        assert not {"a slept", "b slept"} & {*said}
        done.append(case)
    """
    script = "done = []\n"
    for name, before in BRANCHES.items():
        script += f"case = {name!r}\n{textwrap.dedent(before)}{textwrap.dedent(after)}"
    said = greenlets(f"{script}said[:] = done\n")
    assert said == [*BRANCHES]


def test_greenlets_that_have_ended_are_forgotten() -> None:
    said = greenlets("""
        before = len(tasks.greenlets.tracked())
        for _ in range(100):
            task = tasks.start_task(lambda: None, "task")
            assert task.join(5)
        del task
        gc.collect()
        assert len(tasks.greenlets.tracked()) <= before + 1, tasks.greenlets.tracked()
        said.append("counted")
    """)
    assert said == ["counted"]


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
