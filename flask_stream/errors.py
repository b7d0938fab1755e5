"""The exceptions of this package, and the closed list of error codes.

    StreamError
    ├── ConfigError            a setting is wrong: raised at start, names the setting
    ├── StoreError             the store cannot be reached, or refused
    ├── RequestError           a request is refused: a 4xx, 500 or 503
    │   ├── BadRequest         400, names the field
    │   ├── Unauthorized       401
    │   ├── Forbidden          403
    │   ├── NotFound           404
    │   ├── RequestTimeout     408
    │   ├── Conflict           409
    │   ├── Gone               410
    │   ├── TooLarge           413
    │   ├── UnsupportedType    415
    │   ├── TooManyRequests    429, with Retry-After
    │   ├── InternalError      500, for WebSocket and Socket.IO
    │   └── Unavailable        503, with Retry-After
    ├── ModelUnavailable       the embedded model cannot be started (in `chains.local_model`)
    └── RunFailed              a run failed, with one of the codes below

Clients see the text of a `RequestError`, so it must not contain anything secret. Of a `RunFailed`
they see only the code and the code's own sentence. The cause goes to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

logger = logging.getLogger(__name__)


class StreamError(Exception):
    """Base class of all exceptions that this package raises."""


class ConfigError(StreamError):
    """A setting has an invalid value. `setting` is its name in Flask's config."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting} {problem}")
        self.setting = setting


class StoreError(StreamError):
    """The store cannot be reached, or refused. The text is for the log, not for clients."""


class RequestError(StreamError):
    """A request is refused.

    `status` is the HTTP status and `title` its short name. `field` is the part of the request that
    is wrong, or None. `retry_after` is a wait in seconds, or None.
    """

    status = 400
    title = "Bad request"

    def __init__(
        self, detail: str, *, field: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.retry_after = retry_after


class BadRequest(RequestError):
    """A field is missing or has an invalid value."""


class Unauthorized(RequestError):
    """The client is not signed in, or its credentials are invalid or have expired."""

    status = 401
    title = "Unauthorized"


class Forbidden(RequestError):
    """The client may not do this, or not from this origin."""

    status = 403
    title = "Forbidden"


class NotFound(RequestError):
    """The chain, run or page does not exist, or belongs to somebody else."""

    status = 404
    title = "Not found"


class RequestTimeout(RequestError):
    """The request's body did not arrive in time."""

    status = 408
    title = "Request timeout"


class Conflict(RequestError):
    """The request conflicts with what is stored."""

    status = 409
    title = "Conflict"


class Gone(RequestError):
    """The run existed, but its log is no longer stored."""

    status = 410
    title = "Gone"


class TooLarge(RequestError):
    """The request's body is too long."""

    status = 413
    title = "Content too large"


class UnsupportedType(RequestError):
    """The request's body is not JSON."""

    status = 415
    title = "Unsupported media type"


class TooManyRequests(RequestError):
    """The principal or address has reached a limit. Retry after `retry_after` seconds."""

    status = 429
    title = "Too many requests"


class Unavailable(RequestError):
    """The service cannot do this right now. Retry after `retry_after` seconds."""

    status = 503
    title = "Service unavailable"


class InternalError(RequestError):
    """The request was valid, but the server failed."""

    status = 500
    title = "Internal server error"

    def __init__(self) -> None:
        super().__init__("Something went wrong.")


@contextmanager
def unavailable_on_store_error(
    problem: str, detail: str = "Answers cannot be read right now."
) -> Iterator[None]:
    """Turn a StoreError inside the block into Unavailable with `detail`, and log `problem`."""
    try:
        yield
    except StoreError as error:
        logger.error("store: %s: %s", error, problem)
        raise Unavailable(detail, retry_after=2) from error


class ErrorCode(StrEnum):
    """Why a run failed. The list is closed, so clients can rely on it."""

    MODEL_ERROR = "model_error"
    MODEL_AUTH = "model_auth"
    MODEL_RATE_LIMITED = "model_rate_limited"
    MODEL_UNAVAILABLE = "model_unavailable"
    INPUT_TOO_LONG = "input_too_long"
    CHAIN_ERROR = "chain_error"
    TIMEOUT = "timeout"
    WORKER_LOST = "worker_lost"
    STORE_ERROR = "store_error"

    @property
    def sentence(self) -> str:
        """The sentence that people see. It never contains an exception's text."""
        return _SENTENCES[self][0]

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return _SENTENCES[self][1]


_SENTENCES = {
    ErrorCode.MODEL_ERROR: ("The model failed to answer.", True),
    ErrorCode.MODEL_AUTH: ("The model's provider refused this service's credentials.", False),
    ErrorCode.MODEL_RATE_LIMITED: ("The model is busy. Please try again in a moment.", True),
    ErrorCode.MODEL_UNAVAILABLE: ("The model cannot be reached.", True),
    ErrorCode.INPUT_TOO_LONG: ("The conversation is too long for this model.", False),
    ErrorCode.CHAIN_ERROR: ("Something went wrong while answering.", True),
    ErrorCode.TIMEOUT: ("The model took too long to answer.", True),
    ErrorCode.WORKER_LOST: ("The answer was cut off by a restart.", True),
    ErrorCode.STORE_ERROR: ("The answer could not be stored.", True),
}


class RunFailed(StreamError):
    """A run failed. Clients see only `code` and its sentence."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code.sentence)
        self.code = code
