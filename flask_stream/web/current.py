"""Functions about the current request: its service, its caller and the runs it starts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flask import current_app, request

from ..engine.runs import Runs
from ..engine.start_request import NEWEST, StartRequest
from ..errors import Forbidden, NotFound, Unauthorized
from ..security.access import Caller
from ..stores.base import Run
from .bodies import json_body
from .requests import checked_answer, checked_input

if TYPE_CHECKING:
    from ..service import Service


def current_service() -> Service:
    """Return the service of the app that handles this request."""
    service: Service = current_app.extensions["flask_stream"]
    return service


def current_runs() -> Runs:
    """Return the runs of the app that handles this request."""
    return current_service().runs


def json_object() -> dict[str, Any]:
    """Return the request's body as a JSON object. Raises RequestError for any other body."""
    settings = current_service().settings
    return json_body(settings.max_body, settings.body_timeout)


def current_caller(run: str | None = None) -> Caller:
    """Return the caller. Raises NotFound if the caller's ticket is for a run other than `run`."""
    caller = current_service().access.caller(request)
    if run is not None:
        caller.check_run(run)
    return caller


def conversation_owner() -> str:
    """Return the caller's principal. Raises NotFound for a caller that has a ticket."""
    caller = current_caller()
    if caller.ticket is not None:
        raise NotFound("This conversation does not exist.", field="conversation")
    return caller.principal


def question_input(chain: str, value: str | dict[str, Any], field: str = "input") -> dict[str, Any]:
    """Return the input of a run of `chain`, made from what a client sent.

    Raises BadRequest, which names `field`, and NotFound for an unknown chain.
    """
    max_question = current_service().settings.max_question
    max_total = current_runs().admission.chain(chain).source.longest or max_question
    return checked_input(value, max_question, max_total, field)


def resume_input(value: Any) -> dict[str, Any]:
    """Return the input of a run that answers an interrupt. Raises BadRequest."""
    return checked_answer(value, current_service().settings.max_question)


def start_run(caller: Caller, wanted: StartRequest, *, counted: bool = False) -> tuple[Run, bool]:
    """Start a run for the caller. Return it, and whether it is new.

    If a run with the requested id exists, that run is returned. Call `check_start` first: this
    function checks only tickets and limits. Pass `counted=True` if the limits have already counted
    this start.
    """
    access, opened = current_service().access, caller.ticket
    if opened is not None:
        # The ticket's values replace those that a page sends with it.
        ticket = opened.ticket
        caller.check_run(wanted.run or ticket.run)
        if wanted.chain != ticket.chain:
            raise Forbidden("The ticket is for another chain.", field="ticket")
        wanted = replace(
            wanted,
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

    principal = caller.principal
    limit = access.quotas.live_run_limit(principal)
    return current_runs().admission.start(
        replace(wanted, principal=principal, live_run_limit=limit, admit=admit)
    )


def check_identified(caller: Caller) -> None:
    """Raise Unauthorized if the caller may not start a run of any chain."""
    current_service().access.check_identified(
        caller, public=current_runs().admission.has_public_chain
    )


def check_start(caller: Caller, chain: str) -> None:
    """Raise Forbidden or Unauthorized if this request may not start a run of the chain."""
    public = current_runs().admission.chain(chain).public
    current_service().access.check_start(request, caller, public=public)
