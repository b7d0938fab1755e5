"""Put a LangChain chain or a LangGraph graph in front of people."""

from .app import create_app
from .errors import Code, ConfigError, Fault, RequestError, StoreError, StreamError
from .extension import FlaskStream
from .sources.base import Input, Turn

__all__ = [
    # The service, and the extension for an app of your own
    "create_app",
    "FlaskStream",
    # What a chain is asked with
    "Input",
    "Turn",
    # What can go wrong
    "Code",
    "ConfigError",
    "Fault",
    "RequestError",
    "StoreError",
    "StreamError",
]
