"""Clients of Socket.IO: the official one, and two written from the specification.

Those two do nothing by themselves: they read, and answer pings, only when a test calls them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

import requests
import socketio

from .sse import Response, request
from .times import PATIENCE
from .ws import Ended, Socket

#: Separates the packets of a payload.
SEPARATOR = "\x1e"
OPEN, CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = "0123456"
CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR = "01234"
StreamEvent = dict[str, Any]


class ConnectError(Exception):
    """The server refused the namespace. `data` is the reason that it gave."""

    def __init__(self, data: Any) -> None:
        super().__init__(str(data))
        self.data = data
        self.message: str = data["message"]


class SocketIOClient:
    """A Socket.IO client over any transport of Engine.IO.

    `acks` contains the acknowledgements by their ids, and `packets` the packet of every event.
    """

    session: dict[str, Any]

    def __init__(self) -> None:
        self.acks: dict[int, Any] = {}
        self.packets: list[str] = []
        self.pongs = True
        self._last_ack = 0

    def put(self, packet: str) -> None:
        """Send one packet of Engine.IO."""
        raise NotImplementedError

    def take(self, timeout: float | None = None) -> str:
        """Return the next packet of Engine.IO. Raise Ended."""
        raise NotImplementedError

    def packet(self, timeout: float = PATIENCE) -> str:
        """Return the next message, answering pings."""
        until = time.monotonic() + timeout
        while True:
            packet = self.take(max(0.0, until - time.monotonic()))
            if packet == PING:
                if self.pongs:
                    self.put(PONG)
            elif packet == CLOSE:
                raise Ended(1000, "closed by the server")
            elif packet != NOOP:
                assert packet[0] == MESSAGE, packet
                return packet[1:]

    def connect(self, auth: Any = None) -> None:
        """Connect to the default namespace. Raise ConnectError."""
        self.put(MESSAGE + CONNECT + ("" if auth is None else json.dumps(auth)))
        packet = self.packet()
        if packet[0] == CONNECT_ERROR:
            raise ConnectError(json.loads(packet[1:]))
        assert packet[0] == CONNECT, packet

    def emit(self, name: str, *data: Any, ack: bool = True) -> int:
        """Send an event; return the id of its acknowledgement."""
        self._last_ack += 1
        number = str(self._last_ack) if ack else ""
        self.put(MESSAGE + EVENT + number + json.dumps([name, *data]))
        return self._last_ack

    def next_event(self, timeout: float = PATIENCE) -> tuple[str, Any]:
        """Return the next event's name and data; keep acknowledgements before it in `acks`."""
        until = time.monotonic() + timeout
        while True:
            packet = self.packet(max(0.0, until - time.monotonic()))
            if packet[0] == EVENT:
                self.packets.append(packet)
                name, *data = json.loads(packet[1:])
                return name, (data[0] if len(data) == 1 else data)
            if packet[0] == DISCONNECT:
                raise Ended(1000, "disconnected from the namespace")
            self._keep_ack(packet)

    def _keep_ack(self, packet: str) -> None:
        assert packet[0] == ACK, packet
        digits = len(packet[1:]) - len(packet[1:].lstrip("0123456789"))
        (self.acks[int(packet[1 : 1 + digits])],) = json.loads(packet[1 + digits :])

    def event(self, timeout: float = PATIENCE) -> StreamEvent:
        """Return the next `stream_…` event."""
        return stream_event(*self.next_event(timeout))

    def events(self, until: str = "end") -> list[StreamEvent]:
        """Return all `stream_…` events up to the next one of this type."""
        found = [self.event()]
        while found[-1]["type"] != until:
            found.append(self.event())
        return found

    def acknowledged(self, number: int, timeout: float = PATIENCE) -> Any:
        """Return an event's acknowledgement; skip the events that come before it."""
        until = time.monotonic() + timeout
        while number not in self.acks:
            packet = self.packet(max(0.0, until - time.monotonic()))
            if packet[0] != EVENT:
                self._keep_ack(packet)
        return self.acks[number]

    def end(self, timeout: float = PATIENCE) -> int:
        """Read until the connection ends; return its close code."""
        until = time.monotonic() + timeout
        try:
            while True:
                packet = self.packet(max(0.0, until - time.monotonic()))
                if packet[0] == EVENT:
                    self.packets.append(packet)
        except Ended as ended:
            return ended.code


class Wire(SocketIOClient):
    """A session over WebSocket."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: str = "",
        receive_buffer: int | None = None,
    ) -> None:
        super().__init__()
        path = f"{url}/socket.io/?EIO=4&transport=websocket{query}"
        self.socket = Socket(path, headers, receive_buffer=receive_buffer)
        if "sid=" not in query:
            self.session = opened(self.socket.next())

    def put(self, packet: str) -> None:
        self.socket.say(packet)

    def take(self, timeout: float | None = None) -> str:
        return self.socket.next(timeout)

    def close(self) -> None:
        """Close the socket without a close frame."""
        self.socket.close()

    def reset(self) -> None:
        """Reset the connection, as a broken network does."""
        self.socket.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Poll(SocketIOClient):
    """A session over long-polling."""

    def __init__(
        self, url: str, *, headers: Mapping[str, str] | None = None, query: str = ""
    ) -> None:
        super().__init__()
        self._path = f"{url}/socket.io/?EIO=4&transport=polling{query}"
        self._headers = dict(headers or {})
        self.waiting: list[str] = []
        answer = request("GET", self._path, headers=self._headers)
        if answer.status != 200:
            raise SessionRefused(answer)
        self.headers = answer.headers
        self.session = opened(answer.body.decode())
        self._path += f"&sid={self.session['sid']}"

    def post(self, body: bytes | str, query: str = "") -> Response:
        """Send any payload."""
        sent = body if isinstance(body, bytes) else body.encode()
        given = self._headers | {"Content-Type": "text/plain;charset=UTF-8"}
        return request("POST", self._path + query, body=sent, headers=given, timeout=PATIENCE)

    def get(self, timeout: float = PATIENCE, query: str = "") -> Response:
        """Send one poll."""
        return request("GET", self._path + query, headers=self._headers, timeout=timeout)

    def put(self, packet: str) -> None:
        try:
            answer = self.post(packet)
        except ConnectionError as error:
            raise Ended(1006, str(error)) from error
        if answer.status != 200:
            raise Ended(1006, answer.body.decode())

    def take(self, timeout: float | None = None) -> str:
        while not self.waiting:
            try:
                answer = self.get(PATIENCE if timeout is None else max(timeout, 0.01))
            except ConnectionError as error:
                raise Ended(1006, str(error)) from error
            if answer.status != 200:
                raise Ended(1006, answer.body.decode())
            if answer.body:
                self.waiting = answer.body.decode().split(SEPARATOR)
        return self.waiting.pop(0)

    @property
    def url(self) -> str:
        """The session's URL."""
        return self._path

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Close the session."""
        with suppress(OSError):
            self.post(CLOSE)

    def __exit__(self, *_: object) -> None:
        self.close()


class SessionRefused(Exception):
    """The server refused a session over long-polling."""

    def __init__(self, answer: Response) -> None:
        super().__init__(f"{answer.status} {answer.body!r}")
        self.status = answer.status
        self.answer = answer


def opened(packet: str) -> dict[str, Any]:
    """Return the session that an OPEN packet describes."""
    assert packet[0] == OPEN, packet
    session: dict[str, Any] = json.loads(packet[1:])
    return session


def stream_event(name: str, data: Any) -> StreamEvent:
    """Return a `stream_…` event with its id apart from its data."""
    assert name.startswith("stream_"), name
    data = dict(data)
    return {"id": data.pop("id"), "type": name.removeprefix("stream_"), "data": data}


class Client:
    """The official client for Python.

    It handles each event in a thread of its own, so the events are sorted here by their ids. With
    `reconnection` it reconnects by itself and resumes as the documentation shows. `said` are
    headers of all of its requests; its own option `headers` applies to the handshake only.
    """

    def __init__(
        self,
        url: str,
        *transports: str,
        reconnection: bool = False,
        said: Mapping[str, str] | None = None,
        **options: Any,
    ):
        self._reconnection = reconnection
        self._news = threading.Condition()
        self.received: list[tuple[str, Any]] = []
        self.connects = 0
        self.disconnects: list[str] = []
        self._lost: list[Any] = []
        self._http = requests.Session()
        if said is not None:
            self._http.headers.update(said)
            options["headers"] = dict(said)  # for a WebSocket
        self.official = socketio.Client(
            http_session=self._http,
            reconnection=reconnection,
            reconnection_delay=0.1,
            reconnection_delay_max=0.2,
            handle_sigint=False,
        )
        self.official.on("*", self._on_event)
        self.official.on("connect", self._connected)
        self.official.on("disconnect", self._disconnected)
        try:
            self.official.connect(
                url, transports=list(transports) or None, wait_timeout=PATIENCE, **options
            )
        except BaseException:
            self._close()
            raise

    def _on_event(self, name: str, *data: Any) -> None:
        with self._news:
            self.received.append((name, data[0] if len(data) == 1 else data))
            self._news.notify_all()

    def _connected(self) -> None:
        with self._news:
            self.connects += 1
            self._news.notify_all()
        if self.connects > 1:
            run = next(data["run"] for name, data in self.received if name == "stream_start")
            places = {place for place, _ in self._places(run)}
            last = next(place for place in range(len(places) + 1) if place + 1 not in places)
            self.official.emit("stream_resume", {"after": f"{run}:{last}"})

    def _disconnected(self, reason: str) -> None:
        with self._news:
            self.disconnects.append(reason)
            self._lost.append(self.official.eio.ws)
            self._news.notify_all()

    @property
    def transport(self) -> str:
        return str(self.official.transport())

    def wait(self, condition: Callable[[], bool], timeout: float = PATIENCE) -> None:
        with self._news:
            assert self._news.wait_for(condition, timeout), self.received[-5:]

    def call(self, name: str, *data: Any) -> Any:
        """Send an event; return its acknowledgement."""
        return self.official.call(name, data if len(data) != 1 else data[0], timeout=PATIENCE)

    def ask(self, message: Any) -> str:
        """Ask a question; return the run's id."""
        ack = self.call("stream_question", message)
        assert ack.keys() == {"run", "conversation"}, ack
        run: str = ack["run"]
        return run

    def data_of(self, name: str) -> list[Any]:
        """Return the data of all events of this name."""
        return [data for each, data in list(self.received) if each == name]

    def _places(self, run: str) -> list[tuple[int, StreamEvent]]:
        found = []
        for name, data in list(self.received):
            id = data.get("id") if isinstance(data, dict) else None
            if name.startswith("stream_") and id and id.startswith(f"{run}:"):
                place = (int(id.rpartition(":")[2]), stream_event(name, data))
                # After events out of order, the client resumes before the last one it has.
                if not self._reconnection or place not in found:
                    found.append(place)
        return sorted(found, key=lambda one: one[0])

    def events(self, run: str, after: int = 0, least: int | None = None) -> list[StreamEvent]:
        """Return a run's events after a seq, up to its end or at least `least` of them.

        Each event must have been received exactly once.
        """

        def whole() -> bool:
            found = self._places(run)
            if least is not None:
                return len(found) >= least
            # The last event may be handled before earlier ones.
            ended = bool(found) and found[-1][1]["type"] in ("end", "error")
            return ended and len(found) >= found[-1][0] - after

        self.wait(whole)
        found = self._places(run)
        assert [place for place, _ in found] == list(range(after + 1, after + 1 + len(found)))
        return [event for _, event in found]

    def leave(self) -> None:
        self.official.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.official.shutdown()
        self._close()

    def _close(self) -> None:
        # A client that was disconnected still sends a close packet.
        if self.official.eio.read_loop_task is not None:
            self.official.eio.read_loop_task.join(20)
        for socket in self._lost:  # the client drops them when it reconnects
            if socket is not None:
                socket.shutdown()
        self._http.close()
