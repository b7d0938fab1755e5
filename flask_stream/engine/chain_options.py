"""The options of `FlaskStream.add` that a chain needs for itself, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import LONGEST
from ..errors import ConfigError
from .admission import MULTITASK

#: Seconds for which answers are cached, unless something else is said: a day.
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Cache:
    """How a chain's answers are cached, and for whom.

    The same question after the same history is answered from the cache for `seconds`: to the
    principal who asked it, or to everybody if `shared`, which is for answers that depend on nobody.
    Change `version` when the chain has changed: answers of other versions are not used.
    """

    seconds: float = DAY
    shared: bool = False
    version: str = ""


def check_options(
    chain: str, restarts: Any, multitask: Any, history_tokens: Any, cache: Any
) -> Cache | None:
    """Return how the chain's answers are cached, or None. Raises ConfigError for a wrong option."""
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
    found = cache if isinstance(cache, Cache) else Cache(cache)
    if (
        isinstance(found.seconds, bool)
        or not isinstance(found.seconds, int | float)
        or not 0 <= found.seconds <= LONGEST
        or not isinstance(found.shared, bool)
        or not isinstance(found.version, str)
    ):
        wanted = f"seconds, up to {LONGEST}, or a Cache(seconds, shared=True or False, version='…')"
        raise _wrong(chain, "cache", cache, wanted)
    return found if found.seconds else None


def _wrong(chain: str, option: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"chain {chain!r}", f"has {option}={value!r}, and should have {wanted}")
