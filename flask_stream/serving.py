"""What every view does: tells who asks, starts a run for them, streams one, describes one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flask import Response, current_app, request, url_for

from .access import Visitor
from .bodies import json_body
from .dialects.base import Dialect
from .errors import BadRequest, Forbidden, NotFound, Unauthorized
from .events import Cursor
from .permits import Permit
from .requests import answered, asked
from .runs import Runs
from .starts import NEWEST, Asked
from .stores.base import Conversation, Run

if TYPE_CHECKING:
    from .extension import Service


def service() -> Service:
    """The service of the app that handles this request."""
    found: Service = current_app.extensions["flask_stream"]
    return found


def runs() -> Runs:
    """Its runs."""
    return service().runs


def sent() -> dict[str, Any]:
    """The request's body, a JSON object."""
    settings = service().settings
    return json_body(settings.max_body, settings.body_timeout)


def visitor_of(run: str | None = None) -> Visitor:
    """Who asks. Raises NotFound where it is about a run that is not their ticket's."""
    visitor = service().access.visitor(request)
    if run is not None:
        visitor.check_run(run)
    return visitor


def owner() -> str:
    """Whose conversations this is about. Raises NotFound for who has only a ticket."""
    visitor = visitor_of()
    if visitor.ticket is not None:
        raise NotFound("There is no such conversation.", field="conversation")
    return visitor.principal


def input_of(chain: str, value: str | dict[str, Any], field: str = "input") -> dict[str, Any]:
    """A run's input, of what a client sent for that chain. Raises BadRequest, and NotFound."""
    most = service().settings.max_question
    return asked(value, most, runs().starts.chain(chain).source.longest or most, field)


def answer_of(value: Any) -> dict[str, Any]:
    """A run's input that is an answer to what another has asked. Raises BadRequest."""
    return answered(value, service().settings.max_question)


def start_for(visitor: Visitor, asked: Asked, *, counted: bool = False) -> tuple[Run, bool]:
    """Start what a visitor asks for, or find the run that is there.

    Whether this request may start anything is not looked at here. A start that is `counted`
    already does not count again.
    """
    access, opened = service().access, visitor.ticket
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
    return runs().starts.start(replace(asked, who=who, most=most, admit=admit))


def check_known(visitor: Visitor) -> None:
    """Raise Unauthorized for who may start nothing here, whatever they would send."""
    service().access.check_known(visitor, public=runs().starts.public)


def check_start(visitor: Visitor, chain: str) -> None:
    """Raise what forbids that this request starts a run of the chain."""
    public = runs().starts.chain(chain).public
    service().access.check_start(request, visitor, public=public)


def welcomed(visitor: Visitor, response: Response) -> Response:
    """The response, with a session in it for who has none yet."""
    # Of our own pages only: nobody else's would send the cookie back. It counts from the next
    # request on, so that who takes no cookies has what it has started all the same.
    if not visitor.known and request.headers.get("Sec-Fetch-Site") == "same-origin":
        service().access.welcome(request, response)
    return response


def dialect_of(name: str | None) -> Dialect:
    """What `?format=` names. Raises BadRequest."""
    dialects = service().dialects
    dialect = dialects.get(name or "native")
    if dialect is None:
        raise BadRequest(f"The format is one of {', '.join(dialects)}.", field="format")
    return dialect


def permit_for(visitor: Visitor) -> Permit:
    """A place for one more stream. Raises TooMany, or Unavailable. It has to be left."""
    return Permit(service().access, request, visitor, service().settings.recheck)


def stream(visitor: Visitor, place: Cursor, format: str | None, permit: Permit) -> Response:
    """A run's log from a place on, and what is still to come; 204 where nothing is.

    Leaves the permit, whatever happens.
    """
    try:
        dialect = dialect_of(format)
        reader = runs().read(place, visitor.principal)
        if reader is not None:
            return service().sse.respond(reader, dialect, permit)
    except BaseException:
        permit.leave()
        raise
    permit.leave()
    # The one answer that tells a browser not to come back.
    done = Response(status=204)
    del done.headers["Content-Type"]
    return done


def described(run: Run) -> dict[str, Any]:
    """A run as JSON shows it."""
    return {
        "run": run.id,
        "chain": run.chain,
        "conversation": run.conversation,
        "parent": run.parent,
        "status": run.status,
        "seq": run.seq,
        "created": run.created,
        "urls": {
            "self": url_for(".status", run=run.id),
            "events": url_for(".events", run=run.id),
            "cancel": url_for(".cancel", run=run.id),
        },
    }


def listed(conversation: Conversation) -> dict[str, Any]:
    """A conversation as JSON shows it in a list."""
    return {
        "id": conversation.id,
        "title": conversation.title,
        "created": conversation.created,
        "updated": conversation.updated,
        "url": url_for(".conversation", id=conversation.id),
    }
