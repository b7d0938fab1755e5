"""A scripted OpenAI-compatible provider that never waits: `python -m benchmarks.provider PORT N`.

Its answer is rendered once, before the first request. `/v1/chat/completions` sends it in one write.
`/each` sends one write per token, to measure the client's worst case.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from .words import words

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"
)


def _event(data: str) -> bytes:
    body = f"data: {data}\n\n".encode()
    # One HTTP chunk per token, as providers send them.
    return b"%x\r\n%b\r\n" % (len(body), body)


def _piece(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _event(
        json.dumps(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "scripted",
                "choices": [choice],
            }
        )
    )


def pieces(tokens: int) -> list[bytes]:
    """Return the whole answer, token by token."""
    said = [_piece({"content": word}) for word in words(tokens)]
    end = _piece({}, "stop") + _event("[DONE]") + b"0\r\n\r\n"
    return [HEAD + _piece({"role": "assistant", "content": ""}), *said, end]


class Provider(asyncio.Protocol):
    """Serve one connection, one request after another."""

    def __init__(self, answer: list[bytes]) -> None:
        self._answer = answer
        self._whole = b"".join(answer)
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        while (end := self._got.find(b"\r\n\r\n")) >= 0:
            head = self._got[:end].lower()
            _, _, rest = head.partition(b"content-length:")
            length = int(rest.split(b"\r\n", 1)[0]) if rest else 0
            if len(self._got) < end + 4 + length:
                return
            self._got = self._got[end + 4 + length :]
            if b" /each " in head.split(b"\r\n", 1)[0]:
                for piece in self._answer:
                    self._transport.write(piece)
            else:
                self._transport.write(self._whole)
            if b"\r\nconnection: close" in head:
                self._transport.close()


async def main(port: int, tokens: int) -> None:
    """Serve until the process is killed."""
    answer = pieces(tokens)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Provider(answer), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
