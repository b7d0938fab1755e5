"""One WebSocket's client: what it asks for, what it is told, and when it is let go."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import suppress
from typing import Any

from wsproto.events import CloseConnection
from wsproto.utilities import LocalProtocolError

from ..engine.log_reader import LogReader, ReadBatch
from ..errors import BadRequest, InternalError, RequestError
from .base import ConnectionLimits, ConnectionSession, Permit, place
from .subscriptions import Subscriptions, check_room
from .websocket_frames import END, objects, texts, understood
from .websocket_socket import PING, ROOM, UNHEARD, Line, Slow, frame, parts

logger = logging.getLogger(__name__)

TOO_BIG, RESTART, TOO_SLOW, UNAUTHORIZED = 1009, 1012, 1013, 4401
FORMATS = {"native": objects, "text": texts}


class WebSocketConnection:
    """One client."""

    def __init__(
        self,
        ws: Any,
        desk: ConnectionSession,
        permit: Permit,
        bounds: ConnectionLimits,
        format: str,
    ) -> None:
        self._ws = ws
        self._line: Line = ws.sock
        self._talk = Subscriptions(desk, self._deliver, self._lost)
        self._permit = permit
        self._bounds = bounds
        self._format = format
        self._stopping: set[str] = set()
        self._gone = False
        self._check = permit.due()
        self._pinged = time.monotonic()
        self._due = self._pinged + bounds.heartbeat
        self._line.full = lambda: not self._gone and len(ws.input_buffer) >= UNHEARD

    # In

    def talk(self) -> None:
        """Hear the client until it goes. Raises what simple-websocket does, then."""
        while not self._gone:
            wait = min(self._check, self._due) - time.monotonic()
            message = self._ws.receive(timeout=max(0.0, wait))
            self._line.go_on()
            if message is not None:
                self._hear(message)
            self._keep(time.monotonic())

    def _keep(self, now: float) -> None:
        """What is due by now: a look at whether it may still read, a ping."""
        if now >= self._check and self._allowed():
            self._check = self._permit.due()
        if now >= self._due and not self._gone:
            if self._ws.pong_received:
                self._ws.pong_received = False
                self._pinged = now
                self._send(PING)
            elif now - max(self._pinged, self._line.moved) >= self._bounds.patience:
                self.close(TOO_SLOW, "You did not answer in time. Resume with run and after.")
            self._due = now + min(self._bounds.heartbeat, self._bounds.patience)

    def _allowed(self) -> bool:
        refusal = self._permit.refusal()
        if refusal is not None:
            self._tell("unauthorized", {"code": "unauthorized", "message": refusal})
            self.close(UNAUTHORIZED, refusal)
        return refusal is None

    def _hear(self, message: str | bytes) -> None:
        size = len(message if isinstance(message, bytes) else message.encode())
        if size > self._bounds.size:  # simple-websocket counts characters
            self.close(TOO_BIG, "Message is too big")
            return
        asked: dict[str, Any] = {}
        try:
            asked = understood(message)
            if self._allowed():
                self._obey(asked)
        except RequestError as error:
            self._refuse(error, asked.get("run"))
        except Exception:  # a fault in one message must not be the end of all
            logger.exception("websocket: a message was not understood")
            self._refuse(InternalError(), asked.get("run"))

    def _obey(self, message: dict[str, Any]) -> None:
        if "cancel" in message:
            run = message["cancel"]
            run = message.get("run", self._talk.last) if run is True else run
            if not isinstance(run, str):
                raise BadRequest("cancel is a run's id, or true for the last one.", field="cancel")
            self._stop(run)
        elif "after" in message:
            where = place(message)
            if not self._talk.follow(where):
                self._tell("complete", {"run": where.run, "seq": where.seq})
        else:
            self._talk.start(message)

    def _stop(self, run: str) -> None:
        check_room(len(self._stopping))
        if run not in self._stopping:
            self._stopping.add(run)
            # It answers when the model has stopped: others are heard meanwhile.
            threading.Thread(target=self._cancel, args=(run,), daemon=True).start()

    def _cancel(self, run: str) -> None:
        try:
            self._talk.desk.cancel(run)
        except RequestError as error:
            self._refuse(error, run)
        except Exception:  # nobody else would say so
            logger.exception("websocket: a run was not stopped")
            self._refuse(InternalError(), run)
        finally:
            self._stopping.discard(run)

    # Out

    def _deliver(self, reader: LogReader, shared: ReadBatch) -> None:
        name, render = f"websocket {self._format}", FORMATS[self._format]
        frames = shared.frames.get(name)
        if frames is None:
            frames = shared.frames[name] = render(reader.run, shared.events)
        self._send(frames, reader)

    def _lost(self) -> None:
        self.close(RESTART, "Answers cannot be read right now. Resume with run and after.")

    def _refuse(self, error: RequestError, run: Any = None) -> None:
        told = {"status": error.status, "detail": error.detail, "field": error.field}
        if error.retry_after is not None:
            told["retry_after"] = error.retry_after
        if isinstance(run, str):
            told["run"] = run
        self._tell("error", told)

    def _tell(self, type: str, data: dict[str, Any]) -> None:
        """Something that is no event of a run."""
        if self._format != "text":
            self._send(frame(json.dumps({"id": None, "type": type, "data": data})))
            return
        words = data.get("detail") or data.get("message")
        frames = frame(f"Error: {words}") if words else b""
        # Nothing else will say that there is no more to come.
        self._send(frames if len(self._talk) else frames + frame(END))

    def _send(self, frames: bytes, reader: LogReader | None = None) -> None:
        """Frames, if they are not those of a reader who has been followed by another."""
        if not frames:
            return
        try:
            # In parts: each has its time, and what others have to say comes between.
            for part in parts(frames, ROOM) if len(frames) > ROOM else (frames,):
                with self._talk.lock:
                    if not self._gone and (reader is None or self._talk.reads(reader)):
                        self._line.send(part)
        except Slow:
            self.close(TOO_SLOW, "You read too slowly. Resume with run and after.")
        except OSError:
            self._end()

    def close(self, code: int, reason: str) -> None:
        """Say why, and go."""
        with suppress(LocalProtocolError):  # it is closed already
            self._line.finish(self._ws.ws.send(CloseConnection(code, reason)))
        self._end()

    def _end(self) -> None:
        self._gone = True
        self._ws.connected = False
        self._ws.event.set()
        self.leave()

    def leave(self) -> None:
        """The client has gone: its readers end, its runs go on."""
        self._gone = True
        self._talk.leave()
        self._permit.leave()
