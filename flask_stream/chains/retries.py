"""Decides whether and when to repeat a request whose model failed before its first token.

It reads the attributes of errors, like `sources.error_codes`. It imports no provider's package.
"""

from __future__ import annotations

import json
import random
from traceback import walk_tb

from langchain_core.exceptions import ModelConnectionError, ModelError, ModelTimeoutError
from langchain_core.language_models import BaseChatModel

from ..errors import RunFailed

#: Seconds before the first retry, doubled for each further one, and the maximum.
FIRST_PAUSE, MAX_PAUSE = 0.5, 8.0
#: The `type` or `code` of errors in an answer's stream that a retry would not fix.
_PERMANENT = {
    *("invalid_request_error", "authentication_error", "permission_error", "not_found_error"),
    *("request_too_large", "billing_error", "insufficient_quota", "content_filter"),
    *("context_length_exceeded", "exceed_context_size_error", "BadRequestError"),
}
#: The 4xx statuses of temporary errors.
_TEMPORARY = {408, 409, 429}
#: The default number of retries of OpenAI's and Anthropic's clients.
_CLIENT_RETRIES = 2


def backoff(attempts: int) -> float:
    """Return the seconds until the next attempt, randomized so that runs do not retry together."""
    pause: float = min(FIRST_PAUSE * 2 ** (attempts - 1), MAX_PAUSE)
    return pause * random.uniform(0.75, 1)  # noqa: S311


def _is_network_error(error: Exception) -> bool:
    """Return whether the connection failed, or the server did not answer in time."""
    known = (ConnectionError, TimeoutError, ModelConnectionError, ModelTimeoutError)
    # Several SDKs raise errors of httpx, which may be one of two packages.
    return isinstance(error, known) or any(
        kind.__name__ == "TransportError" and kind.__module__.startswith("httpx")
        for kind in type(error).__mro__
    )


def is_temporary(error: Exception) -> bool:
    """Return whether to repeat the request. False if the model's own client repeats such errors."""
    if isinstance(error, RunFailed):
        return error.code.retryable
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and status >= 400:
        return False
    if isinstance(error, ModelError):
        return error.is_retryable
    if _is_network_error(error) or isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return True
    # An SDK's error for an error event in the stream of an answer.
    body = getattr(error, "body", None)
    if not isinstance(body, dict):
        return False
    inner = body.get("error")
    if isinstance(inner, dict):
        body = inner
    code = body.get("code")
    refused = isinstance(code, int) and 400 <= code < 500 and code not in _TEMPORARY
    return not refused and not {str(code), str(body.get("type"))} & _PERMANENT


def own_retries(model: BaseChatModel, error: Exception) -> int:
    """Return how often the model's client has repeated the request before it raised this error.

    Clients only repeat a request that got no answer, not one whose answer broke off.
    """
    if not _is_network_error(error) or _broke_off(error) or not hasattr(model, "max_retries"):
        return 0
    retries = model.max_retries
    return retries if isinstance(retries, int) else _CLIENT_RETRIES


def _broke_off(error: BaseException | None) -> bool:
    """Return whether the error was raised while httpx read the body of an answer."""
    names: set[str] = set()
    while error is not None:
        names |= {frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)}
        error = error.__cause__ or error.__context__
    return "iter_raw" in names and "send" not in names
