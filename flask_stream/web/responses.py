"""Responses: sessions, event streams, and runs and conversations as JSON."""

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


def with_session(caller: Caller, response: Response) -> Response:
    """Set a session cookie if the caller has no credentials. Return the response."""
    # Only pages of the same site send the cookie back. It takes effect with the next request, so a
    # client that refuses cookies can still read the run that it started.
    if not caller.identified and request.headers.get("Sec-Fetch-Site") == "same-origin":
        current_service().access.set_session(request, response)
    return response


def dialect_of(name: str | None) -> Dialect:
    """Return the dialect that `?format=` names. Raises BadRequest."""
    dialects = current_service().dialects
    dialect = dialects.get(name or "native")
    if dialect is None:
        raise BadRequest(f"The format must be one of {', '.join(dialects)}.", field="format")
    return dialect


def permit_for(caller: Caller) -> StreamPermit:
    """Return a permit for one more stream. The caller must leave it.

    Raises TooManyRequests or Unavailable.
    """
    return StreamPermit(
        current_service().access, request, caller, current_service().settings.recheck
    )


def stream(caller: Caller, cursor: Cursor, format: str | None, permit: StreamPermit) -> Response:
    """Return a stream of the run's events after the cursor, or 204 if all have been read.

    Leaves the permit when the stream ends, or at once if there is no stream.
    """
    try:
        dialect = dialect_of(format)
        reader = current_runs().read(cursor, caller.principal)
        if reader is not None:
            opened = current_service().sse.open_stream(
                reader, dialect, permit, server_socket(request.environ)
            )
            response = Response(
                stream_with_context(opened.frames()),
                mimetype="text/event-stream",
                headers=_EVENT_STREAM,
            )
            # A generator's `finally` does not run if the generator never started.
            response.call_on_close(opened.close)
            return response
    except BaseException:
        permit.leave()
        raise
    permit.leave()
    # Status 204 tells an EventSource not to reconnect.
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


def run_json(run: Run) -> dict[str, Any]:
    """Return a run as a JSON object, as `schemas.Run` describes it."""
    return {
        "run": run.id,
        "chain": run.chain,
        "conversation": run.conversation,
        "parent": run.parent,
        "status": run.status,
        "seq": run.seq,
        "created": run.created,
        "started": run.started,
        "first_chunk": run.first_chunk,
        "ended": run.ended,
        "answer": current_runs().answer(run),
        "urls": {
            "self": url_for(".status", run=run.id),
            "events": url_for(".events", run=run.id),
            "cancel": url_for(".cancel", run=run.id),
        },
    }


def conversation_json(conversation: Conversation) -> dict[str, Any]:
    """Return a conversation without its runs, as `schemas.Conversation` describes it."""
    return {
        "id": conversation.id,
        "title": conversation.title,
        "created": conversation.created,
        "updated": conversation.updated,
        "url": url_for(".conversation", id=conversation.id),
    }
