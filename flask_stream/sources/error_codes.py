"""Maps the exceptions that chains raise to error codes.

Newer integrations raise LangChain's own exceptions. Older ones raise those of their provider's
SDK. The SDKs share no base class, but an error with an HTTP status has it as `status_code`, so
this works without importing any SDK.
"""

from __future__ import annotations

from langchain_core import exceptions as langchain

from ..errors import ErrorCode, RunFailed, StoreError

_NAMED: list[tuple[type[Exception], ErrorCode]] = [
    (langchain.ContextOverflowError, ErrorCode.INPUT_TOO_LONG),
    (langchain.ModelAuthenticationError, ErrorCode.MODEL_AUTH),
    (langchain.ModelPermissionDeniedError, ErrorCode.MODEL_AUTH),
    (langchain.ModelRateLimitError, ErrorCode.MODEL_RATE_LIMITED),
    (langchain.ModelTimeoutError, ErrorCode.TIMEOUT),
    (langchain.ModelConnectionError, ErrorCode.MODEL_UNAVAILABLE),
    (TimeoutError, ErrorCode.TIMEOUT),
    (ConnectionError, ErrorCode.MODEL_UNAVAILABLE),
]
_STATUSES = {
    401: ErrorCode.MODEL_AUTH,
    403: ErrorCode.MODEL_AUTH,
    408: ErrorCode.TIMEOUT,
    413: ErrorCode.INPUT_TOO_LONG,
    429: ErrorCode.MODEL_RATE_LIMITED,
    502: ErrorCode.MODEL_UNAVAILABLE,
    503: ErrorCode.MODEL_UNAVAILABLE,
    504: ErrorCode.TIMEOUT,
    529: ErrorCode.MODEL_UNAVAILABLE,
}
#: The codes of OpenAI and llama.cpp for input that exceeds the model's context.
_TOO_LONG = {"context_length_exceeded", "exceed_context_size_error"}


def error_code(error: BaseException) -> ErrorCode:
    """Return the code for an exception that a chain raised."""
    if isinstance(error, RunFailed):
        return error.code
    if isinstance(error, StoreError):
        return ErrorCode.STORE_ERROR
    body = getattr(error, "body", None)
    if isinstance(body, dict) and _TOO_LONG & {body.get("code"), body.get("type")}:
        return ErrorCode.INPUT_TOO_LONG
    # The status is more precise than LangChain's exception, which is the same from 500 on.
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return _STATUSES.get(status, ErrorCode.MODEL_ERROR)
    for kind, code in _NAMED:
        if isinstance(error, kind):
            return code
    return (
        ErrorCode.MODEL_ERROR if isinstance(error, langchain.ModelError) else ErrorCode.CHAIN_ERROR
    )
