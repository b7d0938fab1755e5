"""Errors as problem documents (RFC 9457)."""

from __future__ import annotations

import json
from typing import Any

from flask import Response
from werkzeug.exceptions import HTTPException

from ..errors import NotFound, RequestError


def problem(error: RequestError) -> Response:
    """Return the problem document for an error."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    if error.field is not None:
        document["field"] = error.field
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 408:
        headers["Connection"] = "close"
    return Response(
        json.dumps(document) + "\n",
        status=error.status,
        mimetype="application/problem+json",
        headers={"Cache-Control": "no-store", **headers},
    )


def http_problem(error: HTTPException) -> Response:
    """Return the problem document for an error that Flask itself raised."""
    if error.code == 404:
        return problem(NotFound("This address does not exist."))
    response = Response(
        json.dumps({"type": "about:blank", "title": error.name, "status": error.code}) + "\n",
        status=error.code,
        mimetype="application/problem+json",
    )
    valid = getattr(error, "valid_methods", None)
    if valid:
        response.headers["Allow"] = ", ".join(sorted(valid))
    return response
