"""Checking the options of one chain, as given to `FlaskStream.add`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import LONGEST
from ..errors import ConfigError
from .start_request import MULTITASK

#: The default for how many seconds answers are cached: one day.
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Cache:
    """How a chain's answers are cached, and for whom.

    The same question after the same history is answered from the cache for `seconds`: for the same
    principal, or for everybody if `shared`. Use `shared` only if answers do not depend on the user.
    Change `version` when the chain changes, as answers of other versions are not used.
    """

    seconds: float = DAY
    shared: bool = False
    version: str = ""


def check_options(
    chain: str, restarts: Any, multitask: Any, history_tokens: Any, cache: Any
) -> Cache | None:
    """Return the chain's cache options, or None for no cache. Raises ConfigError."""
    if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 0:
        raise _wrong(chain, "restarts", restarts, "a whole number, 0 or more")
    if multitask not in MULTITASK:
        raise _wrong(chain, "multitask", multitask, f"one of {', '.join(MULTITASK)}")
    if history_tokens is not None and not (
        isinstance(history_tokens, int)
        and not isinstance(history_tokens, bool)
        and history_tokens >= 0
    ):
        raise _wrong(chain, "history_tokens", history_tokens, "a whole number, 0 or more, or None")
    if cache is None:
        return None
    options = cache if isinstance(cache, Cache) else Cache(cache)
    if (
        isinstance(options.seconds, bool)
        or not isinstance(options.seconds, int | float)
        or not 0 <= options.seconds <= LONGEST
        or not isinstance(options.shared, bool)
        or not isinstance(options.version, str)
    ):
        wanted = f"seconds, up to {LONGEST}, or a Cache(seconds, shared=True or False, version='…')"
        raise _wrong(chain, "cache", cache, wanted)
    return options if options.seconds else None


def _wrong(chain: str, option: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"chain {chain!r}", f"has {option}={value!r}, and should have {wanted}")
