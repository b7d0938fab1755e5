"""An Anthropic-compatible server for tests, with scripted answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

JSON = dict[str, Any]


class Claude(ThreadingHTTPServer):
    """Streams thinking, then text, then the end.

    The first requests are answered with the statuses in `refusals`. If `fails` is given, an `error`
    event follows after that number of events.
    """

    daemon_threads = True

    def __init__(
        self,
        thinking: list[str],
        text: list[str],
        refusals: tuple[int, ...] = (),
        fails: int | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.thinking = thinking
        self.text = text
        self.refusals = list(refusals)
        self.fails = fails
        self.calls: list[JSON] = []
        self.headers: list[dict[str, str]] = []  # of each call
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def events(self) -> Iterator[JSON]:
        """Return the events of one message in Anthropic's format."""
        usage = {"input_tokens": 11, "output_tokens": 1}
        message: JSON = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-test",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        yield {"type": "message_start", "message": message}
        blocks = [
            ("thinking", "thinking_delta", self.thinking),
            ("text", "text_delta", self.text),
        ]
        for index, (kind, delta, pieces) in enumerate(blocks):
            block = {"type": kind, kind: ""}
            yield {"type": "content_block_start", "index": index, "content_block": block}
            for piece in pieces:
                content = {"type": delta, kind: piece}
                yield {"type": "content_block_delta", "index": index, "delta": content}
            yield {"type": "content_block_stop", "index": index}
        ending = {"stop_reason": "end_turn", "stop_sequence": None}
        yield {"type": "message_delta", "delta": ending, "usage": usage | {"output_tokens": 7}}
        yield {"type": "message_stop"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Claude

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls.append(json.loads(body))
        self.server.headers.append(dict(self.headers))
        if self.server.refusals:
            self.send_response(self.server.refusals.pop(0))
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for count, event in enumerate(self.server.events()):
            if count == self.server.fails:
                problem = {"type": "overloaded_error", "message": "Overloaded"}
                event = {"type": "error", "error": problem}
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            if event["type"] == "error":
                return
