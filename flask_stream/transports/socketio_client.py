"""One Socket.IO client: what it asks for, what it is told, and when it is let go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from engineio.exceptions import EngineIOError
from flask import Request

from ..engine.log_reader import LogReader, ReadBatch
from ..errors import BadRequest, InternalError, RequestError
from ..events import Cursor, Event
from .base import ConnectionSession, Permit, place
from .socketio_packets import answer, packet, packets, told, understood
from .subscriptions import Subscriptions

logger = logging.getLogger(__name__)

#: What may wait for a client: parts of an answer, and, where it polls for them, packets; so many
#: are as many as all clients read at once.
_WAITING, _POLLED = 64, 12
#: Packets that may wait for one that is just changing from one to the other.
_CHANGING = 256
#: Attachments that one message may have.
_ATTACHED = 64
#: Seconds between two looks whether some have gone.
_LOOK = 0.02
#: Seconds that one has for going by itself when it may no longer read.
_LEAVE = 2.0


class SessionOpener(Protocol):
    """Who has opened a session."""

    def sends(self, request: Request) -> bool:
        """Whether a later request of the session is theirs. Raises RequestError."""


#: Who was let in: what they may do, a place that has to be left, and who it is.
Admitted = tuple[ConnectionSession, Permit, SessionOpener]


class SocketIOClient:
    """Whoever is at the other end of an Engine.IO session, over whichever of its two wires."""

    def __init__(
        self,
        server: Any,
        session: str,
        let_in: Admitted,
        join: Callable[[Sequence[str]], Sequence[str]],
    ) -> None:
        self._server = server
        self._join = join
        self._engine = server.eio
        self._session = session
        #: What Socket.IO calls it, while it is connected; and since when it is so, or is not.
        self.sid: str | None = None
        self.since = time.monotonic()
        self._poll: str | None = None
        self._post: str | None = None
        self._polls = False
        #: Whose requests are the session's, whatever it says of itself later.
        self.opener = let_in[2]
        self.greet(let_in)

    def greet(self, let_in: Admitted) -> None:
        """This is who it is, and what it may."""
        desk, permit, _ = let_in
        self._permit = permit
        self._refused = False
        self.check = permit.due()
        self._desk = desk
        self.begin()

    def is_called(self, sid: str | None) -> None:
        """It has connected by that name, or with None is connected no longer."""
        self.sid, self.since = sid, time.monotonic()

    def begin(self) -> None:
        """It is connected: nothing is under way yet."""
        self.talk = Subscriptions(self._desk, self._deliver, self.go)

    # In

    @contextmanager
    def polls(self, stamp: str | None) -> Iterator[None]:
        """While it is asked for what there is, with that stamp. Raises BadRequest.

        Browsers, and proxies, send a GET again when its connection was cut. What the first was
        told is lost then, and they do not say so: the client comes back, and resumes.
        """
        if self._polls or (stamp is not None and stamp == self._poll):
            self.go()
            raise BadRequest("This came twice. Connect again, and resume.", field="t")
        self._poll, self._polls = stamp, True
        try:
            yield
        finally:
            self._polls = False

    def posts(self, stamp: str | None) -> bool:
        """Whether this is not what it has said just before, sent again by somebody between."""
        new = stamp is None or stamp != self._post
        self._post = stamp
        return new

    def wait(self) -> None:
        """Hear no more of it than it hears of us: until there is room for an answer.

        Raises Unread where there is none for who is just changing its wire.
        """
        while (socket := self._socket()) is not None and self._room() <= 0:
            if socket.upgrading:  # it reads again when that is done, and waits for us until then
                if socket.queue.qsize() > _CHANGING:
                    raise Unread
                return
            time.sleep(_LOOK)

    def check_attached(self, data: Any, most: int) -> None:
        """Raise ValueError for more than may be kept of what it says in pieces."""
        begun = self._server._binary_packet.get(self._session)
        if begun is not None:
            size = len(data) + sum(map(len, begun.attachments))
            if begun.attachment_count > _ATTACHED or size > most:
                raise ValueError("too much is attached")

    def ask(self, args: Sequence[Any]) -> dict[str, Any]:
        """`stream_question`: start a run."""
        run = self.talk.start(understood(args, "question"))
        return {"run": run.id, "conversation": run.conversation}

    def resume(self, args: Sequence[Any]) -> dict[str, Any]:
        """`stream_resume`: read a run on from where the client is."""
        where = place(understood(args, "after"))
        if self.talk.follow(where):
            return {"run": where.run}
        self.tell("complete", {"run": where.run, "seq": where.seq})
        return {"run": where.run, "complete": True}

    def cancel(self, args: Sequence[Any]) -> dict[str, Any]:
        """`stream_cancel`: stop a run; it answers when the model has stopped."""
        run = understood(args, "run").get("run", self.talk.last)
        if not isinstance(run, str):
            raise BadRequest("run is a run's id.", field="run")
        return {"run": run, "status": self.talk.desk.cancel(run).status}

    def hear(
        self, what: Callable[[SocketIOClient, Sequence[Any]], dict[str, Any]], args: Sequence[Any]
    ) -> dict[str, Any] | None:
        """Do what a message asks for; what to acknowledge it with."""
        try:
            return what(self, args) if self.allowed() else None
        except RequestError as error:
            return self.refuse(error, args)
        except Exception:  # a fault in one message must not be the end of all
            logger.exception("socketio: a message was not understood")
            return self.refuse(InternalError(), args)

    def allowed(self) -> bool:
        """Whether it may still read; else it is told, and sent away for good."""
        refusal = self._permit.refusal()
        if refusal is None:
            self.check = self._permit.due()
        elif self._refused or self.sid is None:
            self.go()
        else:
            # It is told, which an end would not leave time for, and has to go by itself.
            self._refused = True
            self.check = time.monotonic() + _LEAVE
            self.tell("unauthorized", {"code": "unauthorized", "message": refusal})
            self.talk.leave()
            self._server.disconnect(self.sid, ignore_queue=True)
        return refusal is None

    # Out

    def refuse(self, error: RequestError, args: Sequence[Any]) -> dict[str, Any]:
        """Say why not; what to acknowledge the message with."""
        data = {"error": error.detail, "status": error.status, "field": error.field}
        if error.retry_after is not None:
            data["retry_after"] = error.retry_after
        run = args[0].get("run") if args and isinstance(args[0], dict) else None
        if isinstance(run, str):
            data["run"] = run
        self.tell("error", data)
        return data

    def tell(self, name: str, data: dict[str, Any]) -> None:
        """Something that is no event of a run."""
        self._send([packet(name, told(data))])

    def _deliver(self, reader: LogReader, shared: ReadBatch) -> None:
        sent = shared.frames.get("socketio")
        if sent is None:
            sent = packets(reader.run, shared.events, lambda: answer(self._whole(reader.run)))
            shared.frames["socketio"] = sent
        done = 0
        while done < len(sent) and self.talk.reads(reader):
            room = self._room()
            if room <= 0:
                time.sleep(_LOOK)  # who is gone, or never reads, is noticed by Engine.IO
                continue
            with self.talk.lock:
                if self.talk.reads(reader):
                    self._send(sent[done : done + room])
            done += room

    def _whole(self, run: str) -> Iterator[Event]:
        reader = self.talk.desk.read(Cursor(run, 0))
        if reader is None:
            return
        try:
            while (shared := reader.take()) is not None:
                yield from shared.events
                if shared.ended:
                    break
        finally:
            reader.close()

    def _socket(self) -> Any:
        """Engine.IO's; None when it has gone."""
        socket = self._engine.sockets.get(self._session)
        return None if socket is None or socket.closed else socket

    def _room(self) -> int:
        """How many packets more it may be given by now."""
        socket = self._socket()
        if socket is None:
            return 1
        waiting = int(socket.queue.qsize())
        return (_WAITING if waiting < _WAITING else 0) if socket.upgraded else _POLLED - waiting

    def _send(self, sent: Sequence[str]) -> None:
        socket = self._socket()
        if socket is not None and socket.upgraded:
            sent = self._join(sent)
        try:
            for one in sent:
                self._engine.send(self._session, one)
        except EngineIOError:  # it has just gone
            self.leave()

    def go(self) -> None:
        """Have it come back, to this worker or another."""
        socket = self._socket()
        if socket is not None:
            # Without a word: who is told that it is over does not come back.
            socket.close(wait=False, abort=True)
        self.leave()

    def leave(self) -> None:
        """It has gone: its readers end, its runs go on."""
        self.talk.leave()
        self._permit.leave()

    def forget(self) -> None:
        """Take out what is left of one that went while it was let in, which nobody else does."""
        manager = self._server.manager
        for namespace in list(manager.get_namespaces()):
            sid = manager.sid_from_eio_sid(self._session, namespace)
            if sid is not None:
                manager.disconnect(sid, namespace, ignore_queue=True)
        self._server._binary_packet.pop(self._session, None)


class Unread(Exception):
    """It says much, and reads nothing."""
