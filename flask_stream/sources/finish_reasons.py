"""How the answer of a model says that it is over, and that it was cut.

Read from a message's `response_metadata`, which each integration fills with its provider's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: How an answer of OpenAI's says that it is over: in chat completions, and in responses.
_ENDINGS = {"finish_reason", "status"}
#: Where providers say why an answer is over, and what they call a limit of tokens.
_REASONS = ("finish_reason", "stop_reason", "done_reason")
_LIMITS = {"length", "max_tokens", "max_output_tokens", "model_length"}


def ended(about: Mapping[str, Any]) -> bool:
    """Whether an answer is whole: one whose connection just ended raises nothing.

    Only of OpenAI's protocol is it known that a whole answer tells why it ended.
    """
    return about.get("model_provider") != "openai" or not _ENDINGS.isdisjoint(about)


def cut(about: Mapping[str, Any]) -> bool:
    """Whether the model ended its answer at its limit of tokens."""
    reasons = [about.get(name) for name in _REASONS]
    details = about.get("incomplete_details")
    if isinstance(details, dict):
        reasons.append(details.get("reason"))
    return any(isinstance(reason, str) and reason.lower() in _LIMITS for reason in reasons)
