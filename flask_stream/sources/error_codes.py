"""Which code stands for an exception that a chain raised.

LangChain has names for what providers report, and newer integrations raise them. Older ones
raise their SDK's own, which share no base class but a shape: an HTTP answer that was not 200
has a `status_code`. So no SDK is imported here, and one that comes later is understood, too.
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
#: What OpenAI and llama.cpp call a conversation that is longer than the model's context.
_TOO_LONG = {"context_length_exceeded", "exceed_context_size_error"}


def error_code(error: BaseException) -> ErrorCode:
    """The code for an exception that came out of a chain."""
    if isinstance(error, RunFailed):
        return error.code
    if isinstance(error, StoreError):
        return ErrorCode.STORE_ERROR
    body = getattr(error, "body", None)
    if isinstance(body, dict) and _TOO_LONG & {body.get("code"), body.get("type")}:
        return ErrorCode.INPUT_TOO_LONG
    # Before LangChain's name for it, which is the same for every status from 500 on.
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return _STATUSES.get(status, ErrorCode.MODEL_ERROR)
    for kind, code in _NAMED:
        if isinstance(error, kind):
            return code
    return (
        ErrorCode.MODEL_ERROR if isinstance(error, langchain.ModelError) else ErrorCode.CHAIN_ERROR
    )
