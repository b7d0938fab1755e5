"""What one connection may do: start runs in conversations of its own, read them, stop them."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from flask import Request

from ..engine.log_reader import LogReader
from ..engine.ownership import is_anonymous
from ..engine.runner import STOP_WAIT
from ..engine.start_request import NEWEST, StartRequest
from ..errors import BadRequest
from ..events import Cursor, new_id
from ..security.access import Caller
from ..stores.base import Run
from .current import current_runs, current_service, question_input, resume_input, start_run
from .requests import validated
from .schemas import Message

_TEXTS = ("question", "message", "input")


class AnyChainSession:
    """One connection's, for any chain: a message names it, or it is the first that was added."""

    def __init__(self, visitor: Caller, request: Request) -> None:
        self._visitor = visitor
        self._request = request
        self._desks: dict[str, ChainSession] = {}
        self._any = ChainSession("", visitor)

    def check(self) -> None:
        self._check(current_runs().admission.has_public_chain)

    def _check(self, public: bool) -> None:
        current_service().access.check_handshake(self._request, self._visitor, public=public)

    def start(self, message: Mapping[str, Any]) -> Run:
        rest = dict(message)
        ticket = self._visitor.ticket
        usual = (
            next(iter(current_runs().admission.chain_names()), "")
            if ticket is None
            else ticket.ticket.chain
        )
        chain = rest.pop("chain", usual)
        if not isinstance(chain, str):
            raise BadRequest("chain is not text.", field="chain")
        self._check(current_runs().admission.chain(chain).public)
        return self._desks.setdefault(chain, ChainSession(chain, self._visitor)).start(rest)

    def read(self, cursor: Cursor) -> LogReader | None:
        return self._any.read(cursor)

    def cancel(self, run: str) -> Run:
        return self._any.cancel(run)


class ChainSession:
    """One connection's: a question that names no conversation follows the one before.

    With a `run` of its own it stands beside the others instead.
    """

    def __init__(self, chain: str, visitor: Caller) -> None:
        self._chain = chain
        self._visitor = visitor
        self._runs = current_runs()  # looked up here: a Stop is waited for in a thread of its own
        self._own = new_id()
        self._conversation = self._own
        # Nobody's conversations are nobody's; but what was asked here is known here.
        self._newest: dict[str, str] = {}

    def check(self) -> None:
        """Nothing: who has this desk was let in to its chain."""

    def start(self, message: Mapping[str, Any]) -> Run:
        said = validated(Message, message)
        value = self._value(said)
        conversation = self._named(said)
        beside = said.run is not None and conversation is None
        if conversation is None and not beside and said.parent is None:
            conversation = self._conversation
        parent = said.parent
        if parent is None and "parent" not in said.model_fields_set:
            parent = NEWEST
            if conversation is not None and is_anonymous(self._visitor.principal):
                parent = self._newest.get(conversation, NEWEST)
        run, _ = start_run(
            self._visitor,
            StartRequest(
                self._chain,
                value,
                run=said.run,
                conversation=conversation,
                parent=parent,
                multitask=said.multitask,
            ),
        )
        if not beside:
            self._conversation = run.conversation
            if is_anonymous(self._visitor.principal):
                self._newest[run.conversation] = run.id
        return run

    def _value(self, said: Message) -> dict[str, Any]:
        texts = [name for name in _TEXTS if name in said.model_fields_set]
        resumes = "resume" in said.model_fields_set
        if len(texts) + resumes != 1:
            raise BadRequest(f"Send one of {', '.join(_TEXTS)}, or resume.", field="question")
        if resumes:
            return resume_input(said.resume)
        return question_input(self._chain, getattr(said, texts[0]), texts[0])

    def _named(self, said: Message) -> str | None:
        if said.conversation is not None or said.session_id is None:
            return said.conversation
        session = f"session {said.session_id}"
        if is_anonymous(self._visitor.principal):
            if said.parent is not None:
                return None  # it is that run's
            # Others may have the same one, and no cookie either: it is this connection's alone.
            session = f"{self._own} {session}"
        return sha256(session.encode()).hexdigest()[:32]

    def read(self, cursor: Cursor) -> LogReader | None:
        self._visitor.check_run(cursor.run)
        return self._runs.read(cursor, self._visitor.principal)

    def cancel(self, run: str) -> Run:
        self._visitor.check_run(run)
        return self._runs.cancel(run, STOP_WAIT, self._visitor.principal)
