"""What `transports/socketio_engine.py` uses of Engine.IO and Socket.IO and they do not document.

When an upgrade breaks one of these, it says what has moved.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from engineio import packet as engine_packet
from engineio.payload import Payload
from engineio.socket import Socket
from flask import Flask
from socketio import packet as socket_packet

from flask_stream.events import new_id
from flask_stream.transports.base import ConnectionLimits
from flask_stream.transports.socketio_engine import SocketIOEngine, make_server
from flask_stream.transports.socketio_payload import MAX_PACKETS, decode_packet
from flask_stream.transports.socketio_socket import EngineSocket

LIMITS = ConnectionLimits(heartbeat=5, patience=3, size=1000)


@pytest.fixture
def engine() -> SocketIOEngine:
    return SocketIOEngine(make_server(Flask(__name__), LIMITS, None))


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", ["_async", "handlers", "sockets", "generate_id", "send", "on"])
def test_what_is_used_of_the_engine(engine: SocketIOEngine, name: str) -> None:
    assert hasattr(engine.server.eio, name), f"python-engineio moved Server.{name}"


def test_the_engine_takes_its_websocket_from_a_table(engine: SocketIOEngine) -> None:
    table = engine.server.eio._async
    assert "websocket" in table, "python-engineio moved Server._async['websocket']"
    engine.harden(LIMITS)
    session = Socket(engine.server.eio, "s" * 20)
    made = engine.server.eio._async["websocket"](session._websocket_handler, engine.server.eio)
    assert isinstance(made, EngineSocket)
    source = inspect.getsource(Socket._upgrade_websocket)
    assert "_async['websocket']" in source, "python-engineio makes its WebSockets elsewhere"
    used = inspect.getsource(Socket._websocket_handler)
    for call in ("ws.wait()", "ws.send(", "ws.close()"):
        assert call in used, f"python-engineio no longer calls {call} of a WebSocket"


def test_ids_of_sessions_are_ours(engine: SocketIOEngine) -> None:
    engine.harden(LIMITS)
    source = inspect.getsource(type(engine.server.eio)._handle_connect)
    assert "self.generate_id()" in source, "python-engineio moved Server.generate_id"
    assert engine.server.eio.generate_id is new_id


@pytest.mark.parametrize("name", ["connect", "message", "disconnect"])
def test_the_engines_handlers(engine: SocketIOEngine, name: str) -> None:
    assert callable(engine.server.eio.handlers.get(name)), (
        f"python-socketio no longer registers Engine.IO's {name!r}"
    )


@pytest.mark.parametrize(
    "name", ["closed", "upgraded", "upgrading", "queue", "last_ping", "close", "connected"]
)
def test_what_is_used_of_an_engines_socket(engine: SocketIOEngine, name: str) -> None:
    socket = Socket(engine.server.eio, "s" * 20)
    assert hasattr(socket, name), f"python-engineio moved Socket.{name}"
    assert hasattr(socket.queue, "qsize"), "python-engineio's Socket.queue has no qsize()"
    assert {"wait", "abort"} <= set(parameters(socket.close)), (
        "python-engineio changed the parameters of Socket.close"
    )


def test_how_many_packets_a_payload_may_have(engine: SocketIOEngine) -> None:
    assert Payload.max_decode_packets == MAX_PACKETS
    text = "\x1e".join(["4x"] * 20)  # the default is 16
    assert len(Payload(encoded_payload=text).packets) == 20, (
        "python-engineio moved Payload.max_decode_packets"
    )


def test_packets_are_read_as_the_engine_reads_them() -> None:
    packet = decode_packet("4hello")
    assert packet is not None
    assert (packet.packet_type, packet.data) == (engine_packet.MESSAGE, "hello")
    assert decode_packet("") is None
    assert decode_packet("x") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_handle_event", ["eio_sid", "namespace", "id", "data"]),
        ("_trigger_event", ["event", "namespace", "args"]),
    ],
)
def test_what_is_replaced_of_the_server(
    engine: SocketIOEngine, name: str, expected: list[str]
) -> None:
    method = getattr(engine.server, name, None)
    assert method is not None, f"python-socketio moved Server.{name}"
    assert parameters(method) == expected, f"python-socketio changed Server.{name}"


@pytest.mark.parametrize("name", ["_binary_packet", "environ", "get_environ", "handle_request"])
def test_what_is_used_of_the_server(engine: SocketIOEngine, name: str) -> None:
    assert hasattr(engine.server, name), f"python-socketio moved Server.{name}"


@pytest.mark.parametrize("name", ["attachment_count", "attachments"])
def test_what_is_used_of_an_unfinished_event(name: str) -> None:
    packet = socket_packet.Packet(encoded_packet='51-["x",{"_placeholder":true,"num":0}]')
    assert hasattr(packet, name), f"python-socketio moved Packet.{name}"


@pytest.mark.parametrize(
    "name", ["eio_sid_from_sid", "sid_from_eio_sid", "get_namespaces", "disconnect", "rooms"]
)
def test_what_is_used_of_the_manager(engine: SocketIOEngine, name: str) -> None:
    assert hasattr(engine.server.manager, name), f"python-socketio moved Manager.{name}"
