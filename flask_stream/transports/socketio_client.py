"""One Socket.IO client: what it asks for, what it is sent, and when it is sent away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from flask import Request

from ..engine.log_reader import LogReader, ReadBatch
from ..errors import BadRequest, InternalError, RequestError
from ..events import Cursor, Event
from .base import ConnectionSession, Permit, parse_cursor
from .socketio_engine import SocketIOEngine
from .socketio_packets import answer, notice, packet, packets, parse_arguments
from .subscriptions import Subscriptions

logger = logging.getLogger(__name__)

#: How many messages may wait for a client with a WebSocket, and how many packets for one that
#: polls: enough to keep all clients busy that read at once.
_MAX_MESSAGES, _MAX_POLLED = 64, 12
#: Packets that may wait for a client that changes from long-polling to a WebSocket.
_MAX_UPGRADING = 256
#: Attachments that one event may have.
_MAX_ATTACHMENTS = 64
#: Seconds between two looks whether there is room for more.
_WAIT = 0.02
#: Seconds that a client has to leave by itself when it may no longer read.
_LEAVE_TIME = 2.0


class SessionOpener(Protocol):
    """The caller that has opened a session."""

    def sends(self, request: Request) -> bool:
        """Return whether a later request of the session is its own. Raises RequestError."""


#: An admitted client: what it may do, its permit, which has to be given back, and who it is.
Admitted = tuple[ConnectionSession, Permit, SessionOpener]


class SocketIOClient:
    """The client of one Engine.IO session, over long-polling or WebSocket.

    `join` makes one message of several packets, for a WebSocket that splits them again.
    """

    def __init__(
        self,
        engine: SocketIOEngine,
        session_id: str,
        admitted: Admitted,
        join: Callable[[Sequence[str]], Sequence[str]],
    ) -> None:
        self._engine = engine
        self._join = join
        self._session_id = session_id
        #: Socket.IO's id of the client while it is connected, and since when it is or is not.
        self.sid: str | None = None
        self.since = time.monotonic()
        self._last_poll: str | None = None
        self._last_post: str | None = None
        self._polling = False
        #: Who has to send the session's requests, whatever `auth` says later.
        self.opener = admitted[2]
        self.admit(admitted)

    def admit(self, admitted: Admitted) -> None:
        """Set what the client may do."""
        session, permit, _ = admitted
        self._permit = permit
        self._refused = False
        self.check_due = permit.due()
        self._session = session
        self.reset()

    def set_sid(self, sid: str | None) -> None:
        """Note that the client has connected, or with None that it has disconnected."""
        self.sid, self.since = sid, time.monotonic()

    def reset(self) -> None:
        """Begin with no runs under way."""
        self.subscriptions = Subscriptions(self._session, self._deliver, self.disconnect)

    # In

    @contextmanager
    def poll(self, stamp: str | None) -> Iterator[None]:
        """Answer a poll with this `t`. Raises BadRequest for one that was sent twice.

        Browsers and proxies send a GET again when its connection was cut. What the first one was
        answered is lost then, and nothing says so: the client has to connect again and resume.
        """
        if self._polling or (stamp is not None and stamp == self._last_poll):
            self.disconnect()
            raise BadRequest("This request came twice. Connect again, and resume.", field="t")
        self._last_poll, self._polling = stamp, True
        try:
            yield
        finally:
            self._polling = False

    def is_new_post(self, stamp: str | None) -> bool:
        """Return whether a POST is not the last one, sent again by a browser or a proxy."""
        new = stamp is None or stamp != self._last_post
        self._last_post = stamp
        return new

    def wait_for_room(self) -> None:
        """Wait until the client has read enough for one more answer.

        Raises ClientNotReading for a client that sends much while it changes its transport.
        """
        while self._engine.is_open(self._session_id) and self._room() <= 0:
            if self._engine.is_upgrading(self._session_id):
                # It reads again when that is done, and cannot finish it while it waits for us.
                if self._engine.waiting(self._session_id) > _MAX_UPGRADING:
                    raise ClientNotReading
                return
            time.sleep(_WAIT)

    def check_attachments(self, data: Any, max_size: int) -> None:
        """Raise ValueError if an event has more attachments than may be kept."""
        count, size = self._engine.pending_attachments(self._session_id)
        if count and (count > _MAX_ATTACHMENTS or size + len(data) > max_size):
            raise ValueError("too many attachments")

    def ask(self, args: Sequence[Any]) -> dict[str, Any]:
        """`stream_question`: start a run."""
        run = self.subscriptions.start(parse_arguments(args, "question"))
        return {"run": run.id, "conversation": run.conversation}

    def resume(self, args: Sequence[Any]) -> dict[str, Any]:
        """`stream_resume`: read a run after the client's cursor."""
        cursor = parse_cursor(parse_arguments(args, "after"))
        if self.subscriptions.subscribe(cursor):
            return {"run": cursor.run}
        self.send_notice("complete", {"run": cursor.run, "seq": cursor.seq})
        return {"run": cursor.run, "complete": True}

    def cancel(self, args: Sequence[Any]) -> dict[str, Any]:
        """`stream_cancel`: stop a run; acknowledged when the model has stopped."""
        run = parse_arguments(args, "run").get("run", self.subscriptions.last_run)
        if not isinstance(run, str):
            raise BadRequest("run is a run's id.", field="run")
        return {"run": run, "status": self.subscriptions.session.cancel(run).status}

    def handle(
        self, action: Callable[[SocketIOClient, Sequence[Any]], dict[str, Any]], args: Sequence[Any]
    ) -> dict[str, Any] | None:
        """Do what an event asks for, and return its acknowledgement."""
        try:
            return action(self, args) if self.is_allowed() else None
        except RequestError as error:
            return self.refuse(error, args)
        except Exception:  # a fault in one event must not end the connection
            logger.exception("socketio: an event could not be handled")
            return self.refuse(InternalError(), args)

    def is_allowed(self) -> bool:
        """Return whether the client may still read; if not, tell it and send it away for good."""
        refusal = self._permit.refusal()
        if refusal is None:
            self.check_due = self._permit.due()
        elif self._refused or self.sid is None:
            self.disconnect()
        else:
            # A cut connection would lose the notice: the client has a moment to leave by itself.
            self._refused = True
            self.check_due = time.monotonic() + _LEAVE_TIME
            self.send_notice("unauthorized", {"code": "unauthorized", "message": refusal})
            self.subscriptions.close()
            self._engine.server.disconnect(self.sid, ignore_queue=True)
        return refusal is None

    # Out

    def refuse(self, error: RequestError, args: Sequence[Any]) -> dict[str, Any]:
        """Send an error, and return what to acknowledge the event with."""
        data = {"error": error.detail, "status": error.status, "field": error.field}
        if error.retry_after is not None:
            data["retry_after"] = error.retry_after
        run = args[0].get("run") if args and isinstance(args[0], dict) else None
        if isinstance(run, str):
            data["run"] = run
        self.send_notice("error", data)
        return data

    def send_notice(self, name: str, data: dict[str, Any]) -> None:
        """Send what is not an event of a run."""
        self._send([packet(name, notice(data))])

    def _deliver(self, reader: LogReader, batch: ReadBatch) -> None:
        rendered = batch.frames.get("socketio")
        if rendered is None:
            rendered = packets(reader.run, batch.events, lambda: answer(self._events(reader.run)))
            batch.frames["socketio"] = rendered
        done = 0
        while done < len(rendered) and self.subscriptions.is_current(reader):
            room = self._room()
            if room <= 0:
                time.sleep(_WAIT)  # Engine.IO notices a client that has left, or never reads
                continue
            with self.subscriptions.lock:
                if self.subscriptions.is_current(reader):
                    self._send(rendered[done : done + room])
            done += room

    def _events(self, run: str) -> Iterator[Event]:
        """Yield a run's whole log."""
        reader = self.subscriptions.session.read(Cursor(run, 0))
        if reader is None:
            return
        try:
            while (batch := reader.take()) is not None:
                yield from batch.events
                if batch.ended:
                    break
        finally:
            reader.close()

    def _room(self) -> int:
        """Return how many more packets may be queued by now."""
        if not self._engine.is_open(self._session_id):
            return 1
        waiting = self._engine.waiting(self._session_id)
        if self._engine.uses_websocket(self._session_id):
            return _MAX_MESSAGES if waiting < _MAX_MESSAGES else 0
        return _MAX_POLLED - waiting

    def _send(self, packets: Sequence[str]) -> None:
        if self._engine.uses_websocket(self._session_id):
            packets = self._join(packets)
        if not all(self._engine.send(self._session_id, each) for each in packets):
            self.leave()

    def disconnect(self) -> None:
        """Make the client connect again, to this worker or another."""
        self._engine.cut(self._session_id)
        self.leave()

    def leave(self) -> None:
        """End the readers and give the permit back. The runs go on."""
        self.subscriptions.close()
        self._permit.leave()

    def forget(self) -> None:
        """Remove what the server keeps of a client that left while it connected."""
        self._engine.forget(self._session_id)


class ClientNotReading(Exception):
    """The client sends much, and reads nothing."""
