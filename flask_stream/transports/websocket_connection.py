"""The client of one WebSocket: what it asks for, what it is sent, and when it is sent away."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

from ..engine.log_reader import LogReader, ReadBatch
from ..errors import BadRequest, InternalError, RequestError
from .base import ConnectionLimits, ConnectionSession, Permit, parse_cursor
from .subscriptions import Subscriptions, check_capacity
from .websocket_frames import END, PING, event_frames, parse_message, text_frame, text_frames
from .websocket_socket import SlowClient, WebSocket, WebSocketClosed

logger = logging.getLogger(__name__)

RESTART, TOO_SLOW, UNAUTHORIZED = 1012, 1013, 4401
FORMATS = {"native": event_frames, "text": text_frames}


class WebSocketConnection:
    """One client, and the runs that it reads."""

    def __init__(
        self,
        websocket: WebSocket,
        session: ConnectionSession,
        permit: Permit,
        limits: ConnectionLimits,
        format: str,
    ) -> None:
        self._websocket = websocket
        self._subscriptions = Subscriptions(session, self._deliver, self._on_store_error)
        self._permit = permit
        self._limits = limits
        self._format = format
        self._stopping: set[str] = set()
        self._gone = False
        self._check_due = permit.due()
        self._pinged_at = 0.0
        self._ping_due = time.monotonic() + limits.heartbeat

    # In

    def run(self) -> None:
        """Receive messages until the client leaves or is sent away."""
        try:
            while not self._gone:
                due = min(self._check_due, self._ping_due) - time.monotonic()
                message = self._websocket.receive(max(0.0, due))
                if message is not None:
                    self._on_message(message)
                self._do_what_is_due(time.monotonic(), quiet=message is None)
        except SlowClient:
            self._close_slow()
        except WebSocketClosed:
            pass

    def _do_what_is_due(self, now: float, *, quiet: bool) -> None:
        """Check the permit, and send a ping or miss the answer to the last one, when it is time.

        `quiet` says that everything was received that the client has sent.
        """
        if now >= self._check_due and self._is_allowed():
            self._check_due = self._permit.due()
        if now >= self._ping_due and not self._gone:
            if self._websocket.pong_at >= self._pinged_at:
                self._pinged_at = now
                self._send([PING])
            elif quiet and self._silent_for(now) >= self._limits.patience:
                self.close(TOO_SLOW, "You did not answer in time. Resume with run and after.")
            self._ping_due = now + min(self._limits.heartbeat, self._limits.patience)

    def _silent_for(self, now: float) -> float:
        return now - max(self._pinged_at, self._websocket.written_at)

    def _is_allowed(self) -> bool:
        refusal = self._permit.refusal()
        if refusal is not None:
            self._send_notice("unauthorized", {"code": "unauthorized", "message": refusal})
            self.close(UNAUTHORIZED, refusal)
        return refusal is None

    def _on_message(self, message: str | bytes) -> None:
        fields: dict[str, Any] = {}
        try:
            fields = parse_message(message)
            if self._is_allowed():
                self._handle(fields)
        except RequestError as error:
            self._send_error(error, fields.get("run"))
        except Exception:  # a fault in one message must not end the connection
            logger.exception("websocket: a message could not be handled")
            self._send_error(InternalError(), fields.get("run"))

    def _handle(self, message: dict[str, Any]) -> None:
        if "cancel" in message:
            run = message["cancel"]
            run = message.get("run", self._subscriptions.last_run) if run is True else run
            if not isinstance(run, str):
                raise BadRequest("cancel is a run's id, or true for the last one.", field="cancel")
            self._stop(run)
        elif "after" in message:
            cursor = parse_cursor(message)
            if not self._subscriptions.subscribe(cursor):
                self._send_notice("complete", {"run": cursor.run, "seq": cursor.seq})
        else:
            self._subscriptions.start(message)

    def _stop(self, run: str) -> None:
        check_capacity(len(self._stopping))
        if run not in self._stopping:
            self._stopping.add(run)
            # It returns when the model has stopped: other messages are handled meanwhile.
            threading.Thread(target=self._cancel, args=(run,), daemon=True).start()

    def _cancel(self, run: str) -> None:
        try:
            self._subscriptions.session.cancel(run)
        except RequestError as error:
            self._send_error(error, run)
        except Exception:  # nobody else would report it
            logger.exception("websocket: a run could not be stopped")
            self._send_error(InternalError(), run)
        finally:
            self._stopping.discard(run)

    # Out

    def _deliver(self, reader: LogReader, batch: ReadBatch) -> None:
        name, render = f"websocket {self._format}", FORMATS[self._format]
        frames = batch.frames.get(name)
        if frames is None:
            frames = batch.frames[name] = render(reader.run, batch.events)
        self._send(frames, reader)

    def _on_store_error(self) -> None:
        self.close(RESTART, "Answers cannot be read right now. Resume with run and after.")

    def _send_error(self, error: RequestError, run: Any = None) -> None:
        data = {"status": error.status, "detail": error.detail, "field": error.field}
        if error.retry_after is not None:
            data["retry_after"] = error.retry_after
        if isinstance(run, str):
            data["run"] = run
        self._send_notice("error", data)

    def _send_notice(self, type: str, data: dict[str, Any]) -> None:
        """Send what is not an event of a run."""
        if self._format != "text":
            self._send([text_frame(json.dumps({"id": None, "type": type, "data": data}))])
            return
        text = data.get("detail") or data.get("message")
        frames = text_frame(f"Error: {text}") if text else b""
        # With no run to read, nothing else would end this answer.
        self._send([frames if len(self._subscriptions) else frames + text_frame(END)])

    def _send(self, frames: list[bytes], reader: LogReader | None = None) -> None:
        """Send writes of whole frames, unless they are a reader's that was replaced."""
        try:
            for write in frames:
                with self._subscriptions.lock:
                    if not self._gone and (
                        reader is None or self._subscriptions.is_current(reader)
                    ):
                        self._websocket.send(write)
        except SlowClient:
            self._close_slow()
        except OSError:
            self.leave()

    def _close_slow(self) -> None:
        self.close(TOO_SLOW, "You read too slowly. Resume with run and after.")

    def close(self, code: int, reason: str) -> None:
        """Tell the client why it is sent away, and leave."""
        self._websocket.close(code, reason)
        self.leave()

    def leave(self) -> None:
        """End the readers and give the permit back. The runs go on."""
        self._gone = True
        self._subscriptions.close()
        self._permit.leave()
