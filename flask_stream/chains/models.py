"""Which model: the one place where that is decided.

A model is named `provider:name`. To add a provider, add a function to `_PROVIDERS`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI

from ..config import Settings
from ..errors import ConfigError
from .local import SOURCES, LocalServer, fetch

logger = logging.getLogger(__name__)

EMBEDDED = "local:smollm2"
OPENAI = "openai:gpt-4o-mini"


def chosen(settings: Settings) -> tuple[str, str]:
    """The provider and the name of the model that the settings ask for. Raises ConfigError."""
    model = settings.model
    if model is None:
        known = os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")
        model = OPENAI if known else EMBEDDED
    provider, _, name = model.partition(":")
    if provider not in _PROVIDERS or not name:
        known = ", ".join(_PROVIDERS)
        raise ConfigError(
            "STREAM_MODEL",
            f"is {model!r}, and should be provider:name, the provider one of {known}",
        )
    # A server that speaks OpenAI's words at another address often wants no key at all.
    keys = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
    if provider == "openai" and not any(os.environ.get(key) for key in keys):
        raise ConfigError("STREAM_MODEL", f"is {model!r}, and that needs OPENAI_API_KEY")
    if provider == "local" and name not in SOURCES and not name.endswith(".gguf"):
        names = ", ".join(SOURCES)
        raise ConfigError("STREAM_MODEL", f"is {model!r}, and should be {names} or a .gguf file")
    return provider, name


def chat_model(settings: Settings) -> BaseChatModel:
    """The model that the settings ask for, ready to be asked. Raises ConfigError.

    The embedded model may have to be fetched and started first.
    """
    provider, name = chosen(settings)
    return _PROVIDERS[provider](name, settings)


def _openai(name: str, settings: Settings) -> BaseChatModel:
    return _chat_openai(
        name,
        settings,
        url=os.environ.get("OPENAI_BASE_URL"),
        key=os.environ.get("OPENAI_API_KEY") or "none",
    )


def _local(name: str, settings: Settings) -> BaseChatModel:
    url, key = settings.local_url, settings.local_key
    if not url:
        # No gunicorn master has started it (`flask run`, a notebook): it is this process's own.
        server = start_local(name, settings.cache)
        url, key = server.url, server.api_key
    return _chat_openai(_alias(name), settings, url, key, temperature=0.2)


def _chat_openai(
    name: str,
    settings: Settings,
    url: str | None,
    key: str | None,
    temperature: float | None = None,
) -> ChatOpenAI:
    """`temperature` is for where the settings have none: a small model needs a low one."""
    if settings.temperature is not None:
        temperature = settings.temperature
    return ChatOpenAI(
        model=name,
        base_url=url,
        api_key=lambda: key or "",
        temperature=temperature,
        max_completion_tokens=settings.max_tokens,
        max_retries=settings.model_retries,
        timeout=settings.silence_timeout,
        stream_usage=True,
    )


@cache
def start_local(name: str, folder: str | None) -> LocalServer:
    """The embedded model's server, fetched and started; the same for every call of a process.

    Raises `ModelUnavailable`.
    """
    server = LocalServer(fetch(name, Path(folder) if folder else None), _alias(name))
    server.start()
    logger.info("model %s: answers at %s", name, server.url)
    return server


def _alias(name: str) -> str:
    """What the embedded model calls itself: a file by its name, without its folder."""
    return Path(name).stem if name.endswith(".gguf") else name


_PROVIDERS: dict[str, Callable[[str, Settings], BaseChatModel]] = {
    "openai": _openai,
    "local": _local,
}
