"""What can go wrong, as a small tree and a closed list.

    StreamError
    ├── ConfigError            a setting is wrong: raised at start, names the setting
    ├── StoreError             the store cannot be reached or did not do what was asked
    ├── RequestError           the client cannot have what it asked for: a 4xx, 500 or 503
    │   ├── BadRequest         400, names the field
    │   ├── Unauthorized       401
    │   ├── Forbidden          403
    │   ├── NotFound           404
    │   ├── TooSlow            408
    │   ├── Conflict           409
    │   ├── Gone               410
    │   ├── TooLarge           413
    │   ├── UnsupportedType    415
    │   ├── TooMany            429, with Retry-After
    │   ├── Failed             500: over a WebSocket or Socket.IO, where no server says so
    │   └── Unavailable        503, with Retry-After
    ├── ModelUnavailable       the embedded model cannot be had (in `chains.local`)
    └── Fault                  a run ended badly: one of the codes below

A `RequestError` is shown to the client as it is, so its text must be fit to be seen. A `RunFailed`
shows only its code and that code's own sentence: what really happened goes to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

logger = logging.getLogger(__name__)


class StreamError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(StreamError):
    """A setting has a value that cannot work. `setting` is its name in Flask's config."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting} {problem}")
        self.setting = setting


class StoreError(StreamError):
    """The store cannot be reached, or refused. The text is for the log, never for a client."""


class RequestError(StreamError):
    """The client asked for something it cannot have.

    `status` is the HTTP status, `title` its short name, `field` the part of the request that
    is at fault (None when no single field is), `retry_after` a wait in seconds.
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
    """A field is missing, or has a value that cannot be used."""


class Unauthorized(RequestError):
    """Nobody is signed in, or what says who it is has expired or is not genuine."""

    status = 401
    title = "Unauthorized"


class Forbidden(RequestError):
    """The request comes from where no run may be started."""

    status = 403
    title = "Forbidden"


class NotFound(RequestError):
    """There is no such chain, run or page, or it is somebody else's."""

    status = 404
    title = "Not found"


class RequestTimeout(RequestError):
    """The request's body did not come in time."""

    status = 408
    title = "Request timeout"


class Conflict(RequestError):
    """The request contradicts what is already there."""

    status = 409
    title = "Conflict"


class Gone(RequestError):
    """The run was here, and its log is no longer kept."""

    status = 410
    title = "Gone"


class TooLarge(RequestError):
    """The request's body is longer than it may be."""

    status = 413
    title = "Content too large"


class UnsupportedType(RequestError):
    """The request's body is not JSON."""

    status = 415
    title = "Unsupported media type"


class TooManyRequests(RequestError):
    """More than this principal, or this address, may have: again after `retry_after` seconds."""

    status = 429
    title = "Too many requests"


class Unavailable(RequestError):
    """Not now: the client may come back after `retry_after` seconds."""

    status = 503
    title = "Service unavailable"


class InternalError(RequestError):
    """What was asked was right, and something here was not."""

    status = 500
    title = "Internal server error"

    def __init__(self) -> None:
        super().__init__("Something went wrong.")


@contextmanager
def unavailable_on_store_error(
    what: str, told: str = "Answers cannot be read right now."
) -> Iterator[None]:
    """Raise Unavailable, which says `told`, for a StoreError within; `what` goes to the log."""
    try:
        yield
    except StoreError as error:
        logger.error("store: %s: %s", error, what)
        raise Unavailable(told, retry_after=2) from error


class ErrorCode(StrEnum):
    """Why a run failed. The list is closed: clients may switch over it."""

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
        """What a person is told. It never holds an exception's own text."""
        return _TOLD[self][0]

    @property
    def retryable(self) -> bool:
        """Whether asking the same again later may well succeed."""
        return _TOLD[self][1]


_TOLD = {
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
    """A run ended badly. `code` is all that a client learns of it."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code.sentence)
        self.code = code
