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
    """Return the service of the app that handles this request."""
    found: Service = current_app.extensions["flask_stream"]
    return found


def current_runs() -> Runs:
    """Return the runs of the app that handles this request."""
    return current_service().runs


def json_object() -> dict[str, Any]:
    """Return the request's body, a JSON object. Raises RequestError for anything else."""
    settings = current_service().settings
    return json_body(settings.max_body, settings.body_timeout)


def current_caller(run: str | None = None) -> Caller:
    """Return the caller. Raises NotFound if `run` is given and their ticket is for another run."""
    caller = current_service().access.caller(request)
    if run is not None:
        caller.check_run(run)
    return caller


def conversation_owner() -> str:
    """Return the caller's principal. Raises NotFound for a caller with a ticket only."""
    caller = current_caller()
    if caller.ticket is not None:
        raise NotFound("There is no such conversation.", field="conversation")
    return caller.principal


def question_input(chain: str, value: str | dict[str, Any], field: str = "input") -> dict[str, Any]:
    """Return a run's input from what a client sent. Raises BadRequest, and NotFound."""
    most = current_service().settings.max_question
    return asked(value, most, current_runs().starts.chain(chain).source.longest or most, field)


def resume_input(value: Any) -> dict[str, Any]:
    """Return the input of a run that answers an interrupt. Raises BadRequest."""
    return answered(value, current_service().settings.max_question)


def start_for(caller: Caller, asked: StartRequest, *, counted: bool = False) -> tuple[Run, bool]:
    """Start a run for a caller, or return the existing run of that id, and whether it is new.

    Call `check_start` before: this function checks only tickets and limits. `counted` is whether
    the limits have counted this start already.
    """
    access, opened = current_service().access, caller.ticket
    if opened is not None:
        # The ticket decides: fields that a page sends beside it are ignored.
        ticket = opened.ticket
        caller.check_run(asked.run or ticket.run)
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
            access.quotas.start(caller.principal, caller.address)

    who = caller.principal
    most = access.quotas.live_run_limit(who)
    return current_runs().starts.start(replace(asked, who=who, most=most, admit=admit))


def check_identified(caller: Caller) -> None:
    """Raise Unauthorized for a caller who may not start a run of any chain."""
    current_service().access.check_identified(caller, public=current_runs().starts.public)


def check_start(caller: Caller, chain: str) -> None:
    """Raise Forbidden or Unauthorized if this request may not start a run of the chain."""
    public = current_runs().starts.chain(chain).public
    current_service().access.check_start(request, caller, public=public)
