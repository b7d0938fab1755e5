"""The current request: its service, its caller, and what it may start."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flask import current_app, request

from ..engine.admission import NEWEST, StartRequest
from ..engine.runs import Runs
from ..errors import Forbidden, NotFound, Unauthorized
from ..security.access import Caller
from ..stores.base import Run
from .bodies import json_body
from .requests import answered, asked

if TYPE_CHECKING:
    from ..service import Service


def current_service() -> Service:
    """The service of the app that handles this request."""
    found: Service = current_app.extensions["flask_stream"]
    return found


def current_runs() -> Runs:
    """Its runs."""
    return current_service().runs


def json_object() -> dict[str, Any]:
    """The request's body, a JSON object."""
    settings = current_service().settings
    return json_body(settings.max_body, settings.body_timeout)


def current_caller(run: str | None = None) -> Caller:
    """Who asks. Raises NotFound where it is about a run that is not their ticket's."""
    visitor = current_service().access.visitor(request)
    if run is not None:
        visitor.check_run(run)
    return visitor


def conversation_owner() -> str:
    """Whose conversations this is about. Raises NotFound for who has only a ticket."""
    visitor = current_caller()
    if visitor.ticket is not None:
        raise NotFound("There is no such conversation.", field="conversation")
    return visitor.principal


def question_input(chain: str, value: str | dict[str, Any], field: str = "input") -> dict[str, Any]:
    """A run's input, of what a client sent for that chain. Raises BadRequest, and NotFound."""
    most = current_service().settings.max_question
    return asked(value, most, current_runs().starts.chain(chain).source.longest or most, field)


def resume_input(value: Any) -> dict[str, Any]:
    """A run's input that is an answer to what another has asked. Raises BadRequest."""
    return answered(value, current_service().settings.max_question)


def start_for(visitor: Caller, asked: StartRequest, *, counted: bool = False) -> tuple[Run, bool]:
    """Start what a visitor asks for, or find the run that is there.

    Whether this request may start anything is not looked at here. A start that is `counted`
    already does not count again.
    """
    access, opened = current_service().access, visitor.ticket
    if opened is not None:
        # What a ticket says stands, and what a page says beside it does not count.
        ticket = opened.ticket
        visitor.check_run(asked.run or ticket.run)
        if asked.chain != ticket.chain:
            raise Forbidden("The ticket is for another chain.", field="ticket")
        asked = replace(
            asked,
            run=ticket.run,
            conversation=ticket.conversation,
            parent=ticket.parent or NEWEST,
            multitask=None,
        )

    def admit() -> None:
        if opened is not None and not opened.fresh:
            raise Unauthorized("The ticket has expired.", field="ticket")
        if not counted:
            access.quotas.start(visitor.principal, visitor.address)

    who = visitor.principal
    most = access.quotas.most(who)
    return current_runs().starts.start(replace(asked, who=who, most=most, admit=admit))


def check_known(visitor: Caller) -> None:
    """Raise Unauthorized for who may start nothing here, whatever they would send."""
    current_service().access.check_known(visitor, public=current_runs().starts.public)


def check_start(visitor: Caller, chain: str) -> None:
    """Raise what forbids that this request starts a run of the chain."""
    public = current_runs().starts.chain(chain).public
    current_service().access.check_start(request, visitor, public=public)
