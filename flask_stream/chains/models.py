"""Which model: the one place where that is decided.

A model is named `provider:name`, or `module:function` for one of your own. To add a provider, add
a function to `_PROVIDERS`.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from langchain_core.language_models import BaseChatModel

from ..config import Settings
from ..errors import ConfigError
from .local_model import SOURCES, LocalServer, fetch
from .openai_compatible import Compatible, Elsewhere

logger = logging.getLogger(__name__)

EMBEDDED = "local:smollm2"
OPENAI = "openai:gpt-4o-mini"
#: Where servers that speak OpenAI's protocol are by default.
_USUAL = {"ollama": "http://localhost:11434/v1", "vllm": "http://localhost:8000/v1"}


def chosen(settings: Settings) -> tuple[str, str]:
    """The provider and the name of the model that the settings ask for. Raises ConfigError."""
    model = settings.model
    if model is None:
        known = os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")
        model = OPENAI if known else EMBEDDED
    found = _checked("STREAM_MODEL", model, settings)
    if settings.base_url and (settings.model is None or found[0] not in ("openai", *_USUAL)):
        raise ConfigError(
            "STREAM_BASE_URL",
            f"is set, so STREAM_MODEL must be openai:, ollama: or vllm:, but is {settings.model}",
        )
    return found


def fallback(settings: Settings) -> tuple[str, str] | None:
    """The same of the model that is asked when the first one fails. Raises ConfigError."""
    if settings.fallback_model is None:
        return None
    found = _checked("STREAM_FALLBACK_MODEL", settings.fallback_model, settings)
    if found[0] == "local" == chosen(settings)[0]:
        raise ConfigError("STREAM_FALLBACK_MODEL", "is local, and so is the first: one is enough")
    return found


def _address(provider: str, settings: Settings) -> str | None:
    """Where a provider is. STREAM_BASE_URL is for the provider of STREAM_MODEL alone.

    What belongs to one provider, a key above all, must not reach the server of another.
    """
    if settings.base_url and (settings.model or "").partition(":")[0] == provider:
        return settings.base_url
    return os.environ.get("OPENAI_BASE_URL") if provider == "openai" else _USUAL[provider]


def _checked(setting: str, model: str, settings: Settings) -> tuple[str, str]:
    provider, _, name = model.partition(":")
    own = provider not in _PROVIDERS and _importable(provider)
    if not name or (provider not in _PROVIDERS and not own):
        known = ", ".join(_PROVIDERS)
        raise ConfigError(
            setting,
            f"is {model!r}, but must be provider:name, the provider one of {known}, or "
            "module:function",
        )
    if own:
        return "module", model
    # A server that speaks OpenAI's words at another address often wants no key at all.
    enough = os.environ.get("OPENAI_API_KEY") or _address("openai", settings)
    if provider == "openai" and not enough:
        raise ConfigError(setting, f"is {model!r}, and that needs OPENAI_API_KEY")
    if provider == "anthropic":
        if find_spec("langchain_anthropic") is None:
            raise ConfigError(setting, f"is {model!r}: pip install 'flask-llm-stream[anthropic]'")
        if not os.environ.get("ANTHROPIC_API_KEY"):
            raise ConfigError(setting, f"is {model!r}, and that needs ANTHROPIC_API_KEY")
    if provider == "local" and name not in SOURCES and not name.endswith(".gguf"):
        names = ", ".join(SOURCES)
        raise ConfigError(setting, f"is {model!r}, but must be {names} or a .gguf file")
    return provider, name


def tools_refusal(settings: Settings) -> str | None:
    """Why the chosen model cannot use tools, as a sentence; None if it can, or may."""
    provider, name = chosen(settings)
    if provider == "local" and name in SOURCES:
        return "The embedded model is too small to use tools. STREAM_MODEL names a better one."
    return None


def maker(setting: str, model: tuple[str, str], settings: Settings) -> Callable[[], BaseChatModel]:
    """What makes a setting's model, ready to be asked.

    The embedded one may have to be fetched and started first. Raises ConfigError where a function
    of one's own is not there; the function itself is not called yet.
    """
    provider, name = model
    if provider != "module":
        return partial(_PROVIDERS[provider], name, settings)
    return partial(_own, setting, name, _function(setting, name))


def _importable(module: str) -> bool:
    try:
        return bool(module) and find_spec(module) is not None
    except (ImportError, ValueError):
        return False
    except Exception:  # of a package that it is in: `_function` tells it
        return True


def _function(setting: str, name: str) -> Callable[[], object]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever a module may trip over
        told = f"is {name!r}, and {module} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError(setting, told) from error
    if not callable(found):
        raise ConfigError(setting, f"is {name!r}, and there is no function {function} in {module}")
    return cast(Callable[[], object], found)


def _own(setting: str, name: str, function: Callable[[], object]) -> BaseChatModel:
    model = function()
    if not isinstance(model, BaseChatModel):
        raise ConfigError(setting, f"is {name!r}, which makes no chat model")
    return model


def _openai(name: str, settings: Settings) -> BaseChatModel:
    key = os.environ.get("OPENAI_API_KEY") or "none"
    return _compatible(name, settings, _address("openai", settings), key, kind=Compatible)


def _ollama(name: str, settings: Settings) -> BaseChatModel:
    return _compatible(name, settings, _address("ollama", settings), "none")


def _vllm(name: str, settings: Settings) -> BaseChatModel:
    key = os.environ.get("VLLM_API_KEY") or "none"
    return _compatible(name, settings, _address("vllm", settings), key)


def _local(name: str, settings: Settings) -> BaseChatModel:
    url, key = settings.local_url, settings.local_key
    if not url:
        # No gunicorn master has started it (`flask run`, a notebook): it is this process's own.
        server = start_local(name, settings.model_folder)
        url, key = server.url, server.api_key
    return _compatible(_alias(name), settings, url, key, temperature=0.2)


def _compatible(
    name: str,
    settings: Settings,
    url: str | None,
    key: str | None,
    temperature: float | None = None,
    kind: type[Compatible] = Elsewhere,
) -> BaseChatModel:
    """`temperature` is for where the settings have none: a small model needs a low one."""
    if settings.temperature is not None:
        temperature = settings.temperature
    return kind(
        model=name,
        base_url=url,
        api_key=lambda: key or "",
        temperature=temperature,
        max_completion_tokens=settings.max_tokens,
        max_retries=settings.model_retries,
        timeout=settings.silence_timeout,
        stream_usage=True,
    )


def _anthropic(name: str, settings: Settings) -> BaseChatModel:
    from langchain_anthropic import ChatAnthropic

    options = {} if settings.temperature is None else {"temperature": settings.temperature}
    return ChatAnthropic(
        model_name=name,
        max_tokens_to_sample=settings.max_tokens or 4096,
        max_retries=settings.model_retries,
        timeout=settings.silence_timeout,
        stop=None,
        stream_usage=True,
        **options,  # type: ignore[arg-type]
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
    "anthropic": _anthropic,
    "ollama": _ollama,
    "vllm": _vllm,
    "local": _local,
}
