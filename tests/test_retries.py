"""A model that fails before its first token is asked again, so often as the settings say."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Self

import pytest
from langchain_core.exceptions import ModelConnectionError
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_openai import ChatOpenAI

from flask_stream.chains import retries
from flask_stream.chains.fallback_model import FallbackModel
from flask_stream.chains.models import _DEFAULT_URLS
from flask_stream.chains.summary import Summary
from flask_stream.concurrency import tasks
from flask_stream.config import Settings
from flask_stream.errors import ErrorCode, RunFailed
from flask_stream.sources.base import Input
from flask_stream.sources.error_codes import error_code
from flask_stream.sources.function import FunctionSource
from flask_stream.sources.langchain import LangChainSource

from . import provider as scripted
from .claude import Claude
from .provider import Provider, Script


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long, and nothing is set."""
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def failing(provider: Provider, script: Script, times: int = 1_000) -> None:
    """The provider fails so often, then answers."""
    left = iter([script] * times)
    provider.script = lambda _: next(left, Script(["yes"]))


def settings(url: str, **more: Any) -> Settings:
    return Settings(model="openai:scripted", base_url=url, **{"model_retries": 2} | more)


def said(settings: Settings) -> list[tuple[str, Any]]:
    source = LangChainSource(FallbackModel(settings=settings))
    return [(type, json.loads(data)) for type, data in source.stream(Input({"question": "Why?"}))]


def text(settings: Settings) -> str:
    return "".join(data["content"] for type, data in said(settings) if type == "chunk")


broken = pytest.mark.parametrize("fault", ["rst", "fin", "short", "json", "utf8", "error", "html"])


@broken
def test_an_answer_that_breaks_off_before_its_first_token_is_asked_for_again(
    provider: Provider, fault: scripted.Fault
) -> None:
    failing(provider, Script(["never said"], fault=fault), times=2)
    events = said(settings(provider.url))
    assert [type for type, _ in events] == ["message_start", "chunk", "usage"]
    assert events[1][1]["content"] == "yes"
    assert len(provider.calls) == 3


@broken
def test_it_is_asked_no_more_often_than_that(provider: Provider, fault: scripted.Fault) -> None:
    failing(provider, Script(["never said"], fault=fault))
    with pytest.raises(Exception, match=r".+") as raised:
        said(settings(provider.url))
    unreached = fault in ("rst", "fin")
    expected = ErrorCode.MODEL_UNAVAILABLE if unreached else ErrorCode.MODEL_ERROR
    assert error_code(raised.value) in (
        expected,
        ErrorCode.CHAIN_ERROR if fault == "error" else expected,
    )
    assert len(provider.calls) == 3


def test_then_the_fallback_is_asked_as_often(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(provider, Script(fault="rst"))
    with Provider() as other:
        failing(other, Script(fault="short"), times=1)
        monkeypatch.setitem(_DEFAULT_URLS, "ollama", other.url)
        assert text(settings(provider.url, fallback_model="ollama:x", model_retries=1)) == "yes"
        assert (len(provider.calls), len(other.calls)) == (2, 2)


@pytest.mark.parametrize(
    "script",
    [
        Script([], reasoning=["Hm", "."], fault="rst", after=1),
        Script([], tools=[("look", {"where": "here"})], fault="rst", after=1),
        Script(["a", "b"], fault="error", after=1),
    ],
    ids=["reasoning", "tool", "text"],
)
def test_nothing_is_asked_again_after_anything_that_was_said(
    provider: Provider, script: Script
) -> None:
    failing(provider, script)
    with pytest.raises(Exception, match=r".+"):
        said(settings(provider.url))
    assert len(provider.calls) == 1


@pytest.mark.parametrize(("status", "calls"), [(400, 1), (401, 1), (429, 3), (500, 3), (503, 3)])
def test_what_a_server_refuses_is_its_clients_to_repeat(
    provider: Provider, status: int, calls: int
) -> None:
    failing(provider, Script(status=status, retry_after="0"))
    with pytest.raises(Exception, match=r".+"):
        said(settings(provider.url))
    assert len(provider.calls) == calls


def test_an_empty_answer_is_an_answer(provider: Provider) -> None:
    provider.script = Script([])
    assert [type for type, _ in said(settings(provider.url))][-1] == "usage"
    assert len(provider.calls) == 1


class Line:
    """A server that reads each request, says these bytes and hangs up; it counts the requests."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self.calls = 0
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                head = b""
                while b"\r\n\r\n" not in head:
                    if not (piece := connection.recv(65536)):
                        break
                    head += piece
                self.calls += b"\r\n\r\n" in head
                head, _, body = head.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                while len(body) < length:
                    body += connection.recv(65536)
                connection.sendall(self._answer)
                if not self._answer:
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def stream(**error: Any) -> bytes:
    """An answer that is an error from its first event."""
    event = b"data: %b\n\n" % json.dumps({"error": {"message": "no"} | error}).encode()
    return HEAD + b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event)


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        (b"", 3),  # the client has asked three times by itself
        (HEAD, 3),
        (stream(type="server_error"), 3),
        (stream(type="rate_limit_exceeded", code=429), 3),
        (stream(type="invalid_request_error"), 1),
        (stream(type="BadRequestError", code=400), 1),
        (stream(type="oops", code="context_length_exceeded"), 1),
    ],
    ids=["no status", "no body", "error", "limit", "refusal", "status", "too long"],
)
def test_a_connection_is_made_no_more_often_than_the_settings_say(
    answer: bytes, calls: int
) -> None:
    with Line(answer) as line:
        with pytest.raises(Exception, match=r".+"):
            said(settings(line.url))
        assert line.calls == calls


@pytest.mark.parametrize(("own", "calls"), [(0, 3), (1, 2), (None, 3), (5, 6)])
def test_the_client_of_a_model_of_ones_own_may_ask_by_itself(
    monkeypatch: pytest.MonkeyPatch, own: int | None, calls: int
) -> None:
    with Line(b"") as line:
        model = ChatOpenAI(model="own", base_url=line.url, api_key=lambda: "test", max_retries=own)
        given = Settings(model=ones_own(monkeypatch, lambda: model), model_retries=2)
        with pytest.raises(ModelConnectionError):
            said(given)
        # Never oftener than the settings say, unless its client does so by itself.
        assert line.calls == calls


def test_an_overloaded_claude_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test")
    for fails, calls in ((1, 3), (3, 1)):  # after the message's start, and after a thought
        with Claude(["Hm"], ["yes"], fails=fails) as claude:
            monkeypatch.setenv("ANTHROPIC_BASE_URL", claude.url)
            with pytest.raises(Exception, match="Overloaded"):
                said(Settings(model="anthropic:claude-test", model_retries=2))
            assert len(claude.calls) == calls


def ones_own(monkeypatch: pytest.MonkeyPatch, make: Callable[[], BaseChatModel]) -> str:
    """The setting that names a function which makes this model."""
    module = ModuleType("another_module_of_ones_own")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.__dict__["make"] = make
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return f"{module.__name__}:make"


class Failing(BaseChatModel):
    """Raises these, one after another, then answers."""

    errors: list[Any]

    @property
    def _llm_type(self) -> str:
        return "failing"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        if self.errors:
            raise self.errors.pop(0)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("yes"))])


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError("gone"), True),
        (TimeoutError("late"), True),
        (RunFailed(ErrorCode.MODEL_UNAVAILABLE), True),
        (RunFailed(ErrorCode.MODEL_AUTH), False),
        (KeyError("a mistake"), False),
        (ValueError("a mistake"), False),
    ],
)
def test_a_model_of_ones_own_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception, again: bool
) -> None:
    model = Failing(errors=[error, error])
    given = Settings(model=ones_own(monkeypatch, lambda: model), model_retries=2)
    if again:
        assert text(given) == "yes"
        return
    with pytest.raises(Exception, match=r".+"):
        said(given)
    assert len(model.errors) == 1


def test_each_pause_is_longer_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    pauses = [retries.backoff(asked) for asked in range(1, 9)]
    for pause, most in zip(pauses, [0.5, 1, 2, 4, 8, 8, 8, 8], strict=True):
        assert 0.75 * most <= pause <= most
    assert len({retries.backoff(1) for _ in range(20)}) > 1


@pytest.mark.parametrize("chain", ["chat", "summary"])
def test_a_stop_ends_the_pause_and_asks_nobody(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE", 60.0)
    monkeypatch.setattr(retries, "MAX_PAUSE", 60.0)
    failing(provider, Script(fault="rst"))
    given = settings(provider.url, fallback_model="openai:other")
    source = (
        LangChainSource(FallbackModel(settings=given))
        if chain == "chat"
        else FunctionSource(Summary(given))
    )
    ends: list[type[BaseException]] = []

    def run() -> None:
        try:
            list(source.stream(Input({"question": "Why?"})))
        except BaseException as error:
            ends.append(type(error))

    waits = threading.Event()
    pause = tasks.pause

    def paused(seconds: float) -> None:
        waits.set()
        pause(seconds)

    monkeypatch.setattr(tasks, "pause", paused)
    task = tasks.start_task(run, "stopped")
    assert waits.wait(10)
    task.interrupt()
    assert task.join(10)
    assert ends == [tasks.Interrupted]
    assert len(provider.calls) == 1


def test_a_greenlet_that_pauses_is_stopped_as_well() -> None:
    code = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import threading\nfrom flask_stream.concurrency import tasks\n"
        "ends, waits = [], threading.Event()\n"
        "def run():\n"
        "    waits.set()\n"
        "    try: tasks.pause(60)\n"
        "    finally: ends.append(tasks.scope().interrupted)\n"
        "task = tasks.start_task(run, 'stopped')\n"
        "assert waits.wait(10) and task.interrupt() and task.join(10) and ends == [True]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
