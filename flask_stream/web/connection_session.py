"""The sessions of connections, through which a client starts, reads and cancels runs."""

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
    """A session for all chains. A message names a chain, or the default one is used."""

    def __init__(self, caller: Caller, request: Request) -> None:
        self._caller = caller
        self._request = request
        self._sessions: dict[str, ChainSession] = {}
        self._reading = ChainSession("", caller)  # reading needs no chain

    def check(self) -> None:
        self._check_handshake(current_runs().admission.has_public_chain)

    def _check_handshake(self, public: bool) -> None:
        current_service().access.check_handshake(self._request, self._caller, public=public)

    def start(self, message: Mapping[str, Any]) -> Run:
        rest = dict(message)
        ticket = self._caller.ticket
        default = (
            next(iter(current_runs().admission.chain_names()), "")
            if ticket is None
            else ticket.ticket.chain
        )
        chain = rest.pop("chain", default)
        if not isinstance(chain, str):
            raise BadRequest("chain is not text.", field="chain")
        self._check_handshake(current_runs().admission.chain(chain).public)
        return self._sessions.setdefault(chain, ChainSession(chain, self._caller)).start(rest)

    def read(self, cursor: Cursor) -> LogReader | None:
        return self._reading.read(cursor)

    def cancel(self, run: str) -> Run:
        return self._reading.cancel(run)


class ChainSession:
    """A session for one chain.

    A question that names no conversation continues the conversation of the question before. If it
    names a `run`, it starts a conversation of its own instead.
    """

    def __init__(self, chain: str, caller: Caller) -> None:
        self._chain = chain
        self._caller = caller
        self._runs = current_runs()  # `cancel` runs in a thread without an app context
        self._id = new_id()
        self._conversation = self._id
        # The newest run of each conversation. An anonymous client owns no conversations, so the
        # store cannot look it up.
        self._newest: dict[str, str] = {}

    def check(self) -> None:
        """Do nothing: the handshake has already checked access to the chain."""

    def start(self, message: Mapping[str, Any]) -> Run:
        fields = validated(Message, message)
        value = self._input(fields)
        conversation = self._conversation_of(fields)
        separate = fields.run is not None and conversation is None
        if conversation is None and not separate and fields.parent is None:
            conversation = self._conversation
        parent = fields.parent
        if parent is None and "parent" not in fields.model_fields_set:
            parent = NEWEST
            if conversation is not None and is_anonymous(self._caller.principal):
                parent = self._newest.get(conversation, NEWEST)
        run, _ = start_run(
            self._caller,
            StartRequest(
                self._chain,
                value,
                run=fields.run,
                conversation=conversation,
                parent=parent,
                multitask=fields.multitask,
            ),
        )
        if not separate:
            self._conversation = run.conversation
            if is_anonymous(self._caller.principal):
                self._newest[run.conversation] = run.id
        return run

    def _input(self, fields: Message) -> dict[str, Any]:
        texts = [name for name in _TEXTS if name in fields.model_fields_set]
        has_resume = "resume" in fields.model_fields_set
        if len(texts) + has_resume != 1:
            raise BadRequest(f"Send one of {', '.join(_TEXTS)}, or resume.", field="question")
        if has_resume:
            return resume_input(fields.resume)
        return question_input(self._chain, getattr(fields, texts[0]), texts[0])

    def _conversation_of(self, fields: Message) -> str | None:
        if fields.conversation is not None or fields.session_id is None:
            return fields.conversation
        session = f"session {fields.session_id}"
        if is_anonymous(self._caller.principal):
            if fields.parent is not None:
                return None  # the conversation of the parent
            # Other anonymous clients may send the same session_id and must not share it.
            session = f"{self._id} {session}"
        return sha256(session.encode()).hexdigest()[:32]

    def read(self, cursor: Cursor) -> LogReader | None:
        self._caller.check_run(cursor.run)
        return self._runs.read(cursor, self._caller.principal)

    def cancel(self, run: str) -> Run:
        self._caller.check_run(run)
        return self._runs.cancel(run, STOP_WAIT, self._caller.principal)
