"""Put a LangChain chain or a LangGraph graph in front of people."""

from typing import TYPE_CHECKING, Any

from .errors import ConfigError, ErrorCode, RequestError, RunFailed, StoreError, StreamError
from .extension import FlaskStream
from .sources.base import Input, Turn

if TYPE_CHECKING:
    from .app import create_app

__all__ = [
    # The service, and the extension for an app of your own
    "create_app",
    "FlaskStream",
    # What a chain is asked with
    "Input",
    "Turn",
    # What can go wrong
    "ConfigError",
    "ErrorCode",
    "RequestError",
    "RunFailed",
    "StoreError",
    "StreamError",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # Only the service needs the built-in chains and the models' packages: imported late.
        if name == "create_app":
            from .app import create_app

            return create_app
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
