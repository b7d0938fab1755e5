"""A scripted language model on a real socket.

It serves OpenAI's chat completions on loopback. Tests use it through the real `ChatOpenAI`. It
records the requests, and when a client closed its connection:

    with Provider(Script(["Hel", "lo"], stall=1)) as provider:
        model = ChatOpenAI(base_url=provider.url, api_key="test", model="scripted")
"""

import contextlib
import itertools
import json
import os
import re
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, Literal

from .times import PATIENCE

JSON = dict[str, Any]
CANARY = "sk-canary-5e1f0d"  # in every error of the provider; clients must never see it
Fault = Literal["rst", "fin", "short", "json", "utf8", "error", "html"]
"""rst, fin: the connection ends within the body. short: the body ends properly, but without
finish_reason and [DONE]. json, utf8: invalid data. error: OpenAI's error object. html: a page
instead of a stream."""
RUBBISH: dict[str, bytes] = {
    "json": f'{{"id": "{CANARY}", "choices": [{{"del'.encode(),
    "utf8": b'{"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": "\xff\xfe"}}]}',
    "error": json.dumps({"error": {"message": f"Bad key {CANARY}", "type": "oops"}}).encode(),
    "html": f"<!doctype html><p>{CANARY}".encode(),
}


@dataclass(frozen=True)
class Script:
    """The response to one request: reasoning, then tokens, then tool calls.

    Each piece of these counts as a token. A late token does not delay the next one.
    """

    tokens: Iterable[str] = ("Hello", " ", "world")
    reasoning: Iterable[str] = ()
    tools: Sequence[tuple[str, JSON]] = ()  # names and arguments
    first_delay: float = 0.0
    delay: float = 0.0  # seconds from token to token
    gated: bool = False  # each token waits for Provider.allow()
    mute: bool = False  # sends nothing, not even a status line, before release()
    stall: int | None = None  # silent after this many tokens until release()
    fault: Fault | None = None
    after: int = 0  # tokens before the fault
    status: int = 200  # any other status refuses the request
    retry_after: str | None = None
    finish_reason: str | None = None  # default: "stop" or "tool_calls"

    def deltas(self) -> Iterator[JSON]:
        """Yield the values of `choices[0].delta`."""
        yield from ({"reasoning_content": text} for text in self.reasoning)
        yield from ({"content": text} for text in self.tokens)
        for index, call in enumerate(self.calls()):
            text, call["function"]["arguments"] = call["function"]["arguments"], ""
            yield {"tool_calls": [{"index": index} | call]}
            for piece in re.findall(".{1,6}", text):
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}

    def calls(self) -> list[JSON]:
        """Return the tool calls, each in one piece."""
        functions = [{"name": name, "arguments": json.dumps(given)} for name, given in self.tools]
        return [
            {"id": f"call_{function['name']}_{index}", "type": "function", "function": function}
            for index, function in enumerate(functions)
        ]


class Call:
    """One request and its progress. Times are `time.monotonic()`."""

    def __init__(self, request: JSON, headers: dict[str, str], news: threading.Condition) -> None:
        self.json = request
        self.headers = headers  # names in lower case
        self.at = time.monotonic()
        self.sent = 0  # counted before the write, so that a token that was read is counted
        self.finished = False  # the script has ended, possibly with its fault
        self.closed_at: float | None = None  # when the provider noticed that the client closed
        self._news = news

    @property
    def question(self) -> str:
        """Return the text of the last user message."""
        texts = [m["content"] for m in self.json["messages"] if m["role"] == "user"] or [""]
        return texts[-1] if isinstance(texts[-1], str) else "".join(p["text"] for p in texts[-1])

    def wait_closed(self, timeout: float = PATIENCE) -> bool:
        """Wait until the client closes. Return False if the call finishes first, or too late."""
        with self._news:
            self._news.wait_for(lambda: self.finished or self.closed_at, timeout)
            return self.closed_at is not None

    def wait_sent(self, count: int, timeout: float = PATIENCE) -> bool:
        with self._news:
            return self._news.wait_for(lambda: self.sent >= count, timeout)

    def update(self, *, sent: int = 0, finished: bool = False, closed: bool = False) -> None:
        with self._news:
            self.sent += sent
            self.finished = finished
            self.closed_at = time.monotonic() if closed else None
            self._news.notify_all()


class Provider(ThreadingTCPServer):
    """Serves on a free port of loopback until `stop`. `scripts` has scripts of single questions."""

    request_queue_size = 1024

    def __init__(self, script: Script | Callable[[JSON], Script] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script or Script()
        self.scripts: dict[str, Script] = {}  # by question
        self.calls: list[Call] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.news = threading.Condition()
        self.gate = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self.releases = [os.eventfd(0)]  # never read, so that one write wakes all calls that wait
        self._open: set[Any] = set()
        self._errors: list[BaseException | None] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        """Close all connections, wait for all threads, and raise an error that happened in one."""
        if not self._thread.is_alive():
            return
        self.shutdown()
        self._thread.join()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        for descriptor in (self.gate, *self.releases):
            os.close(descriptor)
        for error in self._errors:
            raise RuntimeError("the scripted provider itself failed") from error

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def connections(self) -> int:
        """Return how many connections are open, including idle ones in a client's pool."""
        return len(self._open)

    def wait_calls(self, count: int, timeout: float = PATIENCE) -> bool:
        with self.news:
            return self.news.wait_for(lambda: len(self.calls) >= count, timeout)

    def allow(self, count: int = 1) -> None:
        """Let present and future gated calls send `count` more tokens in total."""
        os.eventfd_write(self.gate, count)

    def release(self) -> None:
        """End present and future stalls and gates of all calls that have been made."""
        with self.news:
            os.eventfd_write(self.releases[-1], 1)
            self.releases.append(os.eventfd(0))

    def record(self, call: Call) -> tuple[Script, int]:
        """Record a call. Return its script, and a descriptor that is readable after `release`."""
        with self.news:
            self.calls.append(call)
            self.news.notify_all()
            released = self.releases[-1]
        script = self.scripts.get(call.question, self.script)
        return script if isinstance(script, Script) else script(call.json), released

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(error := sys.exception(), OSError):
            self._errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Provider

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        length = int(headers["content-length"])
        raw = self.rfile.read(length)
        if len(raw) < length:  # the client stopped while it sent
            self.close_connection = True
            return
        request = json.loads(raw)
        self.call = Call(request, headers, self.server.news)
        script, self.released = self.server.record(self.call)
        try:
            self.answer(script)
        except OSError:
            self.close_connection = True
            self.call.update(closed=True)

    def answer(self, script: Script) -> None:
        if script.mute:
            self.wait(self.released)
        page = "error" if script.status != 200 else "html" if script.fault == "html" else ""
        self.streams = bool(self.call.json.get("stream")) and not page
        mime = "text/event-stream" if self.streams else "application/json"
        self.send_response(script.status)
        self.send_header("Content-Type", "text/html" if page == "html" else mime)
        self.send_header("Transfer-Encoding", "chunked")
        if script.retry_after is not None:
            self.send_header("Retry-After", script.retry_after)
        self.end_headers()
        self.end(RUBBISH[page]) if page else self.play(script)

    def play(self, script: Script) -> None:
        text = ""
        self.say({"role": "assistant", "content": "", "refusal": None})
        due = time.monotonic() + script.first_delay
        for count, delta in enumerate(itertools.chain(script.deltas(), [None])):
            if count == script.stall:
                self.wait(self.released)
                due = time.monotonic()
            if script.fault and count == script.after:
                return self.fail(script.fault)
            if delta is None:
                break
            self.wait(due=due)
            due += script.delay
            while script.gated and self.released not in self.wait(self.server.gate, self.released):
                with contextlib.suppress(BlockingIOError):  # another call read it first
                    os.eventfd_read(self.server.gate)
                    break
            self.call.update(sent=1)
            self.say(delta)
            text += delta.get("content", "")
        return self.conclude(script, text)

    def wait(self, *wake: int, due: float | None = None) -> list[int]:
        """Wait until a descriptor is readable or `due`. Return the readable ones.

        Raises ConnectionError when the client closes.
        """
        poll = select.poll()
        poll.register(self.connection, select.POLLRDHUP)
        for descriptor in wake:
            poll.register(descriptor, select.POLLIN)
        timeout = None if due is None else max(0, due - time.monotonic()) * 1000
        ready = [descriptor for descriptor, _ in poll.poll(timeout)]
        if self.connection.fileno() in ready:
            raise ConnectionError("the client closed the connection")
        return ready

    def say(self, delta: JSON, reason: str | None = None) -> None:
        if self.streams:
            self.write(self.body(None, delta=delta, finish_reason=reason))

    def body(self, usage: JSON | None, **choice: Any) -> bytes:
        body: JSON = {"id": "chatcmpl-1", "object": "chat.completion" + ".chunk" * self.streams}
        body |= {"model": self.call.json["model"], "created": 1, "usage": usage}
        return json.dumps(body | {"choices": [{"index": 0} | choice] if choice else []}).encode()

    def conclude(self, script: Script, text: str) -> None:
        reason = script.finish_reason or ("tool_calls" if script.tools else "stop")
        prompt, sent = len(str(self.call.json["messages"]).split()), self.call.sent
        usage = {"prompt_tokens": prompt, "completion_tokens": sent, "total_tokens": prompt + sent}
        if not self.streams:
            message = {"role": "assistant", "content": text, "tool_calls": script.calls() or None}
            return self.end(self.body(usage, message=message, finish_reason=reason))
        self.say({}, reason)
        if self.call.json.get("stream_options", {}).get("include_usage"):
            self.write(self.body(usage))
        return self.end(b"[DONE]")

    def fail(self, fault: Fault) -> None:
        self.close_connection = True
        if fault not in ("rst", "fin"):
            return self.end(RUBBISH.get(fault, b""))
        self.call.update(finished=True)
        linger = struct.pack("ii", fault == "rst", 0)  # lingering for zero seconds sends a RST
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return os.close(self.connection.detach())  # close() would wait for rfile and wfile

    def end(self, body: bytes) -> None:
        self.call.update(finished=True)
        if body:
            self.write(body)
        self.wfile.write(b"0\r\n\r\n")

    def write(self, body: bytes) -> None:
        body = b"data: %b\n\n" % body if self.streams else body
        self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body))
