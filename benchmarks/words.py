"""The models' words. This module does not import LangChain, so that the client starts fast."""

from __future__ import annotations

_SAID = " the quick brown fox jumps over a lazy dog while nobody who knows it would have thought so"


def words(tokens: int) -> list[str]:
    """Return that many tokens, each a word and the space before it, as models send them."""
    vocabulary = [" " + word for word in _SAID.split()]
    return [vocabulary[index % len(vocabulary)] for index in range(tokens)]
