"""What the models say. Without LangChain, so that client and provider need not import it."""

from __future__ import annotations

_SAID = " the quick brown fox jumps over a lazy dog while nobody who knows it would have thought so"


def words(tokens: int) -> list[str]:
    """So many tokens, each a word and the space before it, as models say them."""
    vocabulary = [" " + word for word in _SAID.split()]
    return [vocabulary[index % len(vocabulary)] for index in range(tokens)]
