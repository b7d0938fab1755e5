"""What the package uses of other packages without their promise: what has moved, if it breaks."""

from __future__ import annotations

import inspect
import logging
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.base import Worker
from gunicorn.workers.ggevent import GeventWorker
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from redis.connection import Connection

from flask_stream.sources import langgraph_internals as langgraph

ROOT = Path(__file__).parent.parent


def parameters(function: Any) -> set[str]:
    return {*inspect.signature(function).parameters}


@pytest.mark.parametrize(
    ("word", "files"),
    {
        "gr_context": {"concurrency/greenlets.py"},
        "add_spawn_callback": {"concurrency/greenlets.py"},
        "__pregel": {"sources/langgraph_internals.py"},
        '"__interrupt__"': {"sources/langgraph_internals.py"},
        '"__resume__"': {"sources/langgraph_internals.py"},
        "checkpoint_map": {"sources/langgraph_internals.py"},
        "_should_stream": {"chains/langchain_internals.py"},
        "_generate_with_cache": {"chains/langchain_internals.py"},
        "_custom_headers": {"chains/langchain_internals.py"},
        "_connection._sock": {"stores/redis_news.py"},
        "worker.alive": {"gunicorn.py"},
    }.items(),
)
def test_each_stands_in_one_file(word: str, files: set[str]) -> None:
    package = ROOT / "flask_stream"
    naming = {path for path in package.rglob("*.py") if word in path.read_text()}
    assert {path.relative_to(package).as_posix() for path in naming} == files


# gevent


def test_gevent() -> None:
    script = """
        from gevent import monkey
        monkey.patch_all()
        import contextvars, socket, threading, time
        import gevent
        from flask_stream.concurrency import greenlets

        variable = contextvars.ContextVar("variable", default=0)
        greenlets.track()
        threading.Thread(target=variable.set, args=[1]).start()
        threading.Thread(
            target=contextvars.copy_context().run, args=[lambda: (variable.set(2), time.sleep(9))]
        , daemon=True).start()
        time.sleep(0.1)
        contexts = [greenlets.context_of(each) for each in greenlets.tracked()]
        found = [context for context in contexts if context and context.get(variable) == 2]
        assert found, "gevent moved Greenlet.add_spawn_callback, or greenlet its gr_context"
        one, other = socket.socketpair()
        assert type(greenlets.plain_socket(one)) is not type(one), "gevent moved socket._sock"
        try:
            greenlets.plain_socket(one).recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        hub = []
        greenlets.call_in_hub(lambda: hub.append(gevent.getcurrent() is gevent.get_hub()))
        time.sleep(0.1)
        assert hub == [True], "gevent moved hub.loop.run_callback"
        pool = greenlets.native_thread_pool()
        native = pool.spawn(monkey.get_original("threading", "get_ident")).get()
        assert native != monkey.get_original("threading", "get_ident")(), "gevent moved ThreadPool"
        pool.join()
        pool.kill()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr  # an old gevent also prints as the interpreter ends


# gunicorn


def test_gunicorns_worker() -> None:
    app: Any = None
    worker = Worker(0, 0, [], app, 1, Config(), Logger(Config()))
    assert worker.alive is True, "gunicorn moved Worker.alive"
    assert worker.cfg.graceful_timeout == 30, "gunicorn moved Worker.cfg"
    assert isinstance(worker.log.error_log, logging.Logger), "gunicorn moved Worker.log.error_log"
    assert "self.wsgi =" in inspect.getsource(Worker), "gunicorn moved Worker.wsgi"
    worker.tmp.close()
    run = inspect.getsource(GeventWorker.run)
    assert "self.alive" in run, "gunicorn's gevent worker does not end by Worker.alive"


def test_gunicorns_log() -> None:
    assert parameters(Logger.setup) == {"self", "cfg"}, "gunicorn moved Logger.setup"
    text = inspect.getsource(Worker)
    assert '"Invalid request from ip=' in text, "gunicorn says otherwise who sent a bad request"


def test_gunicorns_socket() -> None:
    from gunicorn.http import wsgi

    text = inspect.getsource(wsgi)
    assert '"gunicorn.socket"' in text, "gunicorn moved environ['gunicorn.socket']"


# LangGraph


def test_langgraphs_channels() -> None:
    def ask(state: MessagesState) -> None:
        langgraph.stream_writer()(((), "tasks", "posted"))
        interrupt("first?")
        interrupt("second?")

    graph: Any = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    saver = InMemorySaver()
    graph = graph.compile(checkpointer=saver)
    config: Any = {"configurable": {"thread_id": "t"}}
    asked = list(
        graph.stream({"messages": []}, config, stream_mode=["tasks", "updates"], subgraphs=True)
    )
    posted = [data for _, _, data in asked if data == "posted"]
    assert posted == ["posted"], "langgraph moved get_config()['configurable']['__pregel_stream']"
    updates = [data for _, mode, data in asked if mode == "updates"]
    assert langgraph.INTERRUPT in updates[-1], "langgraph moved the update '__interrupt__'"
    list(graph.stream(Command(resume="yes"), config, subgraphs=True))
    found = saver.get_tuple(config)
    assert found is not None
    writes = {name: (task, value) for task, name, value in found.pending_writes or []}
    assert langgraph.INTERRUPT in writes, "langgraph moved the channel '__interrupt__'"
    assert langgraph.RESUME in writes, "langgraph moved the channel '__resume__'"
    tasks = {task for task, name, _ in found.pending_writes or [] if name == langgraph.RESUME}
    assert langgraph.NULL_TASK_ID in tasks, "langgraph moved the task id of the thread's writes"


def test_langgraphs_constants() -> None:
    from langgraph._internal import _constants as own

    named = {
        "INTERRUPT": langgraph.INTERRUPT,
        "RESUME": langgraph.RESUME,
        "NO_WRITES": langgraph.NO_WRITES,
        "NULL_TASK_ID": langgraph.NULL_TASK_ID,
        "CONFIG_KEY_CHECKPOINT_MAP": langgraph.CHECKPOINT_MAP,
    }
    for name, value in named.items():
        assert getattr(own, name, None) == value, f"langgraph moved {name}"


# LangChain


def test_langchains_models() -> None:
    for name, needed in {
        "_should_stream": {"async_api", "kwargs"},
        "_stream": {"messages", "stop", "kwargs"},
        "_generate_with_cache": {"messages", "stop", "kwargs"},
    }.items():
        method = getattr(BaseChatModel, name, None)
        assert method is not None, f"langchain-core moved BaseChatModel.{name}"
        assert needed <= parameters(method), f"langchain-core changed BaseChatModel.{name}"
    assert "rate_limiter" in BaseChatModel.model_fields, "langchain-core moved rate_limiter"


def test_langchain_openais_chunks() -> None:
    convert = getattr(ChatOpenAI, "_convert_chunk_to_generation_chunk", None)
    assert convert is not None, "langchain-openai moved _convert_chunk_to_generation_chunk"
    assert parameters(convert) == {"self", "chunk", "default_chunk_class", "base_generation_info"}


def test_openais_clients() -> None:
    model = ChatOpenAI(model="m", api_key=lambda: "key", base_url="http://localhost:1")
    for name in ("root_client", "root_async_client"):
        client = getattr(model, name, None)
        assert client is not None, f"langchain-openai moved ChatOpenAI.{name}"
        for attribute in ("organization", "project", "_custom_headers"):
            assert hasattr(client, attribute), f"openai moved the client's {attribute}"


# redis-py


def test_redis_pys_connection() -> None:
    kind: Any = Connection
    connection = kind(host="127.0.0.1", port=1)
    assert hasattr(connection, "_sock"), "redis-py moved Connection._sock"
    assert connection._sock is None
    one, other = socket.socketpair()
    with one, other:
        connection._sock = one
        connection._parser.on_connect(connection)
        assert not connection.can_read(0), "redis-py moved Connection.can_read"
        other.sendall(b"+PONG\r\n")
        assert connection.can_read(0)
        assert connection.read_response() == b"PONG", "redis-py moved Connection.read_response"
        connection._sock = None
