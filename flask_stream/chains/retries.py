"""Whether a model that failed before its first token is asked again, and when.

By the shapes of errors, as `faults` tells their codes: no SDK is imported here.
"""

from __future__ import annotations

import json
import random
from traceback import walk_tb

from langchain_core.exceptions import ModelConnectionError, ModelError, ModelTimeoutError
from langchain_core.language_models import BaseChatModel

from ..errors import RunFailed

#: Seconds before a model is asked once more; twice as long each time, at most the second.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
#: What an error amid an answer calls itself where the same request would fail again.
_LASTING = {
    *("invalid_request_error", "authentication_error", "permission_error", "not_found_error"),
    *("request_too_large", "billing_error", "insufficient_quota", "content_filter"),
    *("context_length_exceeded", "exceed_context_size_error", "BadRequestError"),
}
#: HTTP's statuses for what may pass.
_PASSING = {408, 409, 429}
#: How often a client asks once more, where its model leaves that to it: OpenAI's and Anthropic's.
_USUAL_RETRIES = 2


def backoff(asked: int) -> float:
    """Seconds until the next try: not the same for all whose connections broke at once."""
    pause: float = min(FIRST_PAUSE * 2 ** (asked - 1), LONGEST_PAUSE)
    return pause * random.uniform(0.75, 1)  # noqa: S311


def _unreached(error: Exception) -> bool:
    """Whether the network has failed, or nobody has answered in time."""
    named = (ConnectionError, TimeoutError, ModelConnectionError, ModelTimeoutError)
    # The errors of httpx, which several SDKs let out, and which may be one of two packages.
    return isinstance(error, named) or any(
        kind.__name__ == "TransportError" and kind.__module__.startswith("httpx")
        for kind in type(error).__mro__
    )


def passes(error: Exception) -> bool:
    """Whether the same request may be answered now, and is not its client's to repeat."""
    if isinstance(error, RunFailed):
        return error.code.retryable
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and status >= 400:
        return False
    if isinstance(error, ModelError):
        return error.is_retryable
    if _unreached(error) or isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return True
    # An SDK's own, for an error that came in place of the rest of an answer.
    body = getattr(error, "body", None)
    if not isinstance(body, dict):
        return False
    told = body.get("error")
    if isinstance(told, dict):
        body = told
    code = body.get("code")
    refused = isinstance(code, int) and 400 <= code < 500 and code not in _PASSING
    return not refused and not {str(code), str(body.get("type"))} & _LASTING


def own_retries(model: BaseChatModel, error: Exception) -> int:
    """How often the model's client has asked again by itself, before it gave up with this error.

    That is only where it got no answer at all. It does not know of one that breaks off.
    """
    if not _unreached(error) or _broke_off(error) or not hasattr(model, "max_retries"):
        return 0
    own = model.max_retries
    return own if isinstance(own, int) else _USUAL_RETRIES


def _broke_off(error: BaseException | None) -> bool:
    """Whether the body of an answer was being read, as httpx does it after a request is sent."""
    names: set[str] = set()
    while error is not None:
        names |= {frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)}
        error = error.__cause__ or error.__context__
    return "iter_raw" in names and "send" not in names
