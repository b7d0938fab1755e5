"""Which code stands for an exception that a chain raised.

LangChain has names for what providers report, and newer integrations raise them. Older ones
raise their SDK's own, which share no base class but a shape: an HTTP answer that was not 200
has a `status_code`. So no SDK is imported here, and one that comes later is understood, too.
"""

from __future__ import annotations

from langchain_core import exceptions as langchain

from .errors import Code, Fault, StoreError

_NAMED: list[tuple[type[Exception], Code]] = [
    (langchain.ContextOverflowError, Code.INPUT_TOO_LONG),
    (langchain.ModelAuthenticationError, Code.MODEL_AUTH),
    (langchain.ModelPermissionDeniedError, Code.MODEL_AUTH),
    (langchain.ModelRateLimitError, Code.MODEL_RATE_LIMITED),
    (langchain.ModelTimeoutError, Code.TIMEOUT),
    (langchain.ModelConnectionError, Code.MODEL_UNAVAILABLE),
    (TimeoutError, Code.TIMEOUT),
    (ConnectionError, Code.MODEL_UNAVAILABLE),
]
_STATUSES = {
    401: Code.MODEL_AUTH,
    403: Code.MODEL_AUTH,
    408: Code.TIMEOUT,
    413: Code.INPUT_TOO_LONG,
    429: Code.MODEL_RATE_LIMITED,
    502: Code.MODEL_UNAVAILABLE,
    503: Code.MODEL_UNAVAILABLE,
    504: Code.TIMEOUT,
    529: Code.MODEL_UNAVAILABLE,
}
#: What OpenAI and llama.cpp call a conversation that is longer than the model's context.
_TOO_LONG = {"context_length_exceeded", "exceed_context_size_error"}


def code_of(error: BaseException) -> Code:
    """The code for an exception that came out of a chain."""
    if isinstance(error, Fault):
        return error.code
    if isinstance(error, StoreError):
        return Code.STORE_ERROR
    body = getattr(error, "body", None)
    if isinstance(body, dict) and _TOO_LONG & {body.get("code"), body.get("type")}:
        return Code.INPUT_TOO_LONG
    # Before LangChain's name for it, which is the same for every status from 500 on.
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return _STATUSES.get(status, Code.MODEL_ERROR)
    for kind, code in _NAMED:
        if isinstance(error, kind):
            return code
    return Code.MODEL_ERROR if isinstance(error, langchain.ModelError) else Code.CHAIN_ERROR
