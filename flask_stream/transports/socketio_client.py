"""One Socket.IO client: what it asks for, what it is told, and when it is let go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engineio.exceptions import EngineIOError

from ..errors import BadRequest, RequestError
from ..events import Cursor, Event
from ..tail import Reader, Shared
from ..talk import Talk
from .base import Desk, Permit, place
from .socketio_packets import answer, packet, packets, told, understood

logger = logging.getLogger(__name__)

#: What may wait for a client: parts of an answer, and, where it polls for them, packets; so many
#: are as many as all clients read at once.
_WAITING, _POLLED = 64, 12
#: Seconds between two looks whether some have gone.
_LOOK = 0.02


class Client:
    """Whoever is at the other end of an Engine.IO session, over whichever of its two wires."""

    def __init__(
        self,
        server: Any,
        session: str,
        desk: Desk,
        permit: Permit,
        join: Callable[[Sequence[str]], Sequence[str]],
    ) -> None:
        self._server = server
        self._join = join
        self._engine = server.eio
        self._session = session
        #: What Socket.IO calls it, once it is connected.
        self.sid: str | None = None
        self.greet(desk, permit)

    def greet(self, desk: Desk, permit: Permit) -> None:
        """This is who it is, and what it may."""
        self._permit = permit
        self.check = permit.due()
        self.talk = Talk(desk, self._deliver, self.go)

    # In

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
        self, what: Callable[[Client, Sequence[Any]], dict[str, Any]], args: Sequence[Any]
    ) -> dict[str, Any] | None:
        """Do what a message asks for; what to acknowledge it with."""
        try:
            return what(self, args) if self.allowed() else None
        except RequestError as error:
            return self.refuse(error, args)
        except Exception:  # a fault in one message must not be the end of all
            logger.exception("socketio: a message was not understood")
            return self.refuse(_Failed("Something went wrong."), args)

    def allowed(self) -> bool:
        """Whether it may still read; else it is told, and sent away for good."""
        self.check = self._permit.due()
        refusal = self._permit.refusal()
        if refusal is not None:
            self.tell("unauthorized", {"code": "unauthorized", "message": refusal})
            self.talk.leave()
            if self.sid is None:
                self.go()
            else:
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

    def _deliver(self, reader: Reader, shared: Shared) -> None:
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

    def _room(self) -> int:
        """How many packets more it may be given by now."""
        socket = self._engine.sockets.get(self._session)
        if socket is None:
            return 1
        waiting = int(socket.queue.qsize())
        return (_WAITING if waiting < _WAITING else 0) if socket.upgraded else _POLLED - waiting

    def _send(self, sent: Sequence[str]) -> None:
        socket = self._engine.sockets.get(self._session)
        if socket is not None and socket.upgraded:
            sent = self._join(sent)
        try:
            for one in sent:
                self._engine.send(self._session, one)
        except EngineIOError:  # it has just gone
            self.leave()

    def go(self) -> None:
        """Have it come back, to this worker or another."""
        socket = self._engine.sockets.get(self._session)
        if socket is not None:
            socket.close(wait=False)
        self.leave()

    def leave(self) -> None:
        """It has gone: its readers end, its runs go on."""
        self.talk.leave()
        self._permit.leave()


class _Failed(RequestError):
    status = 500
    title = "Internal server error"
