"""Creates the models that the settings name.

A model is named `provider:name`, or `module:function` for a function that returns your own. To add
a provider, add a function to `_PROVIDERS`.
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
from .openai_compatible import Compatible, ThirdParty

logger = logging.getLogger(__name__)

EMBEDDED = "local:smollm2"
OPENAI = "openai:gpt-4o-mini"
#: The default URLs of servers with OpenAI's protocol.
_DEFAULT_URLS = {"ollama": "http://localhost:11434/v1", "vllm": "http://localhost:8000/v1"}


def configured_model(settings: Settings) -> tuple[str, str]:
    """Return the provider and the name of the model that the settings name. Raises ConfigError."""
    model = settings.model
    if model is None:
        openai = os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")
        model = OPENAI if openai else EMBEDDED
    found = _checked("STREAM_MODEL", model, settings)
    if settings.base_url and (settings.model is None or found[0] not in ("openai", *_DEFAULT_URLS)):
        raise ConfigError(
            "STREAM_BASE_URL",
            "needs a STREAM_MODEL that begins with openai:, ollama: or vllm:, but STREAM_MODEL is "
            f"{settings.model or 'not set'}",
        )
    return found


def fallback_model(settings: Settings) -> tuple[str, str] | None:
    """Return the provider and the name of the fallback model, or None. Raises ConfigError."""
    if settings.fallback_model is None:
        return None
    found = _checked("STREAM_FALLBACK_MODEL", settings.fallback_model, settings)
    if found[0] == "local" == configured_model(settings)[0]:
        raise ConfigError(
            "STREAM_FALLBACK_MODEL", "is local, like STREAM_MODEL: only one of them can be local"
        )
    return found


def _base_url(provider: str, settings: Settings) -> str | None:
    """Return the base URL of a provider. STREAM_BASE_URL only applies to that of STREAM_MODEL.

    Otherwise the key of one provider would be sent to the server of another.
    """
    if settings.base_url and (settings.model or "").partition(":")[0] == provider:
        return settings.base_url
    return os.environ.get("OPENAI_BASE_URL") if provider == "openai" else _DEFAULT_URLS[provider]


def _checked(setting: str, model: str, settings: Settings) -> tuple[str, str]:
    """Return the provider and the name in a setting. Raises ConfigError if they cannot be used."""
    provider, _, name = model.partition(":")
    own = provider not in _PROVIDERS and _importable(provider)
    if not name or (provider not in _PROVIDERS and not own):
        known = ", ".join(_PROVIDERS)
        raise ConfigError(
            setting,
            f"is {model!r}, but must be provider:name or module:function (providers: {known})",
        )
    if own:
        return "module", model
    # Servers with OpenAI's protocol at other URLs often need no key.
    reachable = os.environ.get("OPENAI_API_KEY") or _base_url("openai", settings)
    if provider == "openai" and not reachable:
        raise ConfigError(setting, f"is {model!r}, which needs OPENAI_API_KEY in the environment")
    if provider == "anthropic":
        if find_spec("langchain_anthropic") is None:
            raise ConfigError(
                setting, f"is {model!r}, which needs: pip install 'flask-llm-stream[anthropic]'"
            )
        if not os.environ.get("ANTHROPIC_API_KEY"):
            raise ConfigError(
                setting, f"is {model!r}, which needs ANTHROPIC_API_KEY in the environment"
            )
    if provider == "local" and name not in SOURCES and not name.endswith(".gguf"):
        names = ", ".join(SOURCES)
        raise ConfigError(setting, f"is {model!r}, but the name must be {names} or a .gguf file")
    return provider, name


def tools_refusal(settings: Settings) -> str | None:
    """Return a sentence that says why the model cannot use tools; None if it can, or might."""
    provider, name = configured_model(settings)
    if provider == "local" and name in SOURCES:
        return "The embedded model is too small to use tools. Set STREAM_MODEL to a larger model."
    return None


def model_factory(
    setting: str, model: tuple[str, str], settings: Settings
) -> Callable[[], BaseChatModel]:
    """Return a function that creates the model of a setting.

    For the embedded model, that function may have to download and start it. Raises ConfigError if
    your own function does not exist, and does not call it yet.
    """
    provider, name = model
    if provider != "module":
        return partial(_PROVIDERS[provider], name, settings)
    return partial(_own_model, setting, name, _function(setting, name))


def _importable(module: str) -> bool:
    try:
        return bool(module) and find_spec(module) is not None
    except (ImportError, ValueError):
        return False
    except Exception:  # raised by its parent package: `_function` reports it
        return True


def _function(setting: str, name: str) -> Callable[[], object]:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # a module may raise anything
        problem = f"is {name!r}, but {module} cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError(setting, problem) from error
    if not callable(found):
        raise ConfigError(setting, f"is {name!r}, but {module} has no function {function}")
    return cast(Callable[[], object], found)


def _own_model(setting: str, name: str, function: Callable[[], object]) -> BaseChatModel:
    model = function()
    if not isinstance(model, BaseChatModel):
        raise ConfigError(setting, f"is {name!r}, which does not return a chat model")
    return model


def _openai(name: str, settings: Settings) -> BaseChatModel:
    key = os.environ.get("OPENAI_API_KEY") or "none"
    return _compatible(name, settings, _base_url("openai", settings), key, kind=Compatible)


def _ollama(name: str, settings: Settings) -> BaseChatModel:
    return _compatible(name, settings, _base_url("ollama", settings), "none")


def _vllm(name: str, settings: Settings) -> BaseChatModel:
    key = os.environ.get("VLLM_API_KEY") or "none"
    return _compatible(name, settings, _base_url("vllm", settings), key)


def _local(name: str, settings: Settings) -> BaseChatModel:
    url, key = settings.local_url, settings.local_key
    if not url:
        # Without gunicorn, such as in `flask run` or a notebook, this process starts the model.
        server = start_local(name, settings.model_folder)
        url, key = server.url, server.api_key
    return _compatible(_alias(name), settings, url, key, temperature=0.2)


def _compatible(
    name: str,
    settings: Settings,
    url: str | None,
    key: str | None,
    temperature: float | None = None,
    kind: type[Compatible] = ThirdParty,
) -> BaseChatModel:
    """Return a model of a server with OpenAI's protocol.

    `temperature` is the default of the setting: a small model needs a low one.
    """
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
    """Download and start the embedded model, and return its server. Later calls return the same.

    Raises ModelUnavailable.
    """
    server = LocalServer(fetch(name, Path(folder) if folder else None), _alias(name))
    server.start()
    logger.info("model %s: listening on %s", name, server.url)
    return server


def _alias(name: str) -> str:
    """Return the embedded model's name in answers: that of a file without folder and suffix."""
    return Path(name).stem if name.endswith(".gguf") else name


_PROVIDERS: dict[str, Callable[[str, Settings], BaseChatModel]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "ollama": _ollama,
    "vllm": _vllm,
    "local": _local,
}
