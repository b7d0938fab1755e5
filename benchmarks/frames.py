"""The parts of WebSocket that the client needs: the handshake, small frames, whole frames."""

from __future__ import annotations

from collections.abc import Iterator

_KEY = "AAAAAAAAAAAAAAAAAAAAAA=="


def handshake(path: str) -> str:
    """Return the request that opens a WebSocket."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {_KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )


def said(text: str) -> str:
    """Return a client's frame of at most 125 characters. A mask of zeros does not change it."""
    assert len(text) < 126
    return bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)).decode("latin-1") + text


def heard(raw: bytes, at: int = 0) -> Iterator[tuple[str, int]]:
    """Yield the server's texts after an offset, each with the offset at which it is complete."""
    while at + 2 <= len(raw):
        first, size, start = raw[at], raw[at + 1], at + 2
        if size == 126:
            size, start = int.from_bytes(raw[start : start + 2], "big"), start + 2
        elif size == 127:
            size, start = int.from_bytes(raw[start : start + 8], "big"), start + 8
        at = start + size
        if at <= len(raw) and first == 0x81:
            yield raw[start:at].decode(), at
