"""What every view does: tells who asks, starts a run for them, streams one, describes one."""

from __future__ import annotations

from typing import Any

from flask import Response, request, stream_with_context, url_for

from ..dialects.base import Dialect
from ..errors import BadRequest
from ..events import Cursor
from ..security.access import Caller
from ..security.stream_permit import StreamPermit
from ..stores.base import Conversation, Run
from .current import current_runs, current_service
from .server_socket import server_socket

_EVENT_STREAM = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


def with_session(visitor: Caller, response: Response) -> Response:
    """The response, with a session in it for who has none yet."""
    # Of our own pages only: nobody else's would send the cookie back. It counts from the next
    # request on, so that who takes no cookies has what it has started all the same.
    if not visitor.known and request.headers.get("Sec-Fetch-Site") == "same-origin":
        current_service().access.welcome(request, response)
    return response


def dialect_of(name: str | None) -> Dialect:
    """What `?format=` names. Raises BadRequest."""
    dialects = current_service().dialects
    dialect = dialects.get(name or "native")
    if dialect is None:
        raise BadRequest(f"The format is one of {', '.join(dialects)}.", field="format")
    return dialect


def permit_for(visitor: Caller) -> StreamPermit:
    """A place for one more stream. Raises TooMany, or Unavailable. It has to be left."""
    return StreamPermit(
        current_service().access, request, visitor, current_service().settings.recheck
    )


def stream(visitor: Caller, place: Cursor, format: str | None, permit: StreamPermit) -> Response:
    """A run's log from a place on, and what is still to come; 204 where nothing is.

    Leaves the permit, whatever happens.
    """
    try:
        dialect = dialect_of(format)
        reader = current_runs().read(place, visitor.principal)
        if reader is not None:
            opened = current_service().sse.open_stream(
                reader, dialect, permit, server_socket(request.environ)
            )
            response = Response(
                stream_with_context(opened.frames()),
                mimetype="text/event-stream",
                headers=_EVENT_STREAM,
            )
            # Not in the generator's `finally`: a generator that never started does not run it.
            response.call_on_close(opened.close)
            return response
    except BaseException:
        permit.leave()
        raise
    permit.leave()
    # The one answer that tells a browser not to come back.
    done = Response(status=204)
    del done.headers["Content-Type"]
    return done


def run_json(run: Run) -> dict[str, Any]:
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


def conversation_json(conversation: Conversation) -> dict[str, Any]:
    """A conversation as JSON shows it in a list."""
    return {
        "id": conversation.id,
        "title": conversation.title,
        "created": conversation.created,
        "updated": conversation.updated,
        "url": url_for(".conversation", id=conversation.id),
    }
