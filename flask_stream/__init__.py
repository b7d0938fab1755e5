"""Stream LangChain chains and LangGraph graphs from Flask, as durable runs."""

from typing import TYPE_CHECKING, Any

from .engine.chain_options import Cache
from .errors import ConfigError, ErrorCode, RequestError, RunFailed, StoreError, StreamError
from .extension import FlaskStream
from .sources.base import Input, Turn

if TYPE_CHECKING:
    from .app import create_app

__all__ = [
    # The service, and the extension for an app of your own
    "create_app",
    "FlaskStream",
    # How a chain is added
    "Cache",
    # What a chain gets
    "Input",
    "Turn",
    # Errors
    "ConfigError",
    "ErrorCode",
    "RequestError",
    "RunFailed",
    "StoreError",
    "StreamError",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # Imported late: it imports the built-in chains and the packages of their models.
        if name == "create_app":
            from .app import create_app

            return create_app
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
