"""Splits long texts into pieces for a model, and joins short texts."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: The approximate number of UTF-8 bytes per token, in any script.
BYTES_PER_TOKEN = 4
#: Where a text may be cut, best first: after a paragraph, a sentence, a word.
BOUNDARIES = (
    re.compile(r"\n[^\S\n]*\n\s*"),
    re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？]"),  # noqa: RUF001
    re.compile(r"\s+"),
)


def split(text: str, tokens: int) -> list[str]:
    """Split the text into pieces of about `tokens` tokens at most. Their concatenation is the text.

    A piece ends after a paragraph, else a sentence, else a word, in the second half of its maximum
    length. A word is only cut if it is longer than that.
    """
    pieces: list[str] = []
    start = 0
    while start < len(text):
        longest = text[start : start + tokens * BYTES_PER_TOKEN].encode("utf-8", "surrogatepass")
        end = start + max(1, len(longest[: tokens * BYTES_PER_TOKEN].decode("utf-8", "ignore")))
        if end < len(text):
            end = _boundary(text, start + (end - start + 1) // 2, end)
        pieces.append(text[start:end])
        start = end
    return pieces


def _boundary(text: str, start: int, end: int) -> int:
    """Return the last boundary of the best kind in this range; `end` if there is none."""
    for boundary in BOUNDARIES:
        ends = [match.end() for match in boundary.finditer(text, start, end)]
        if ends:
            return ends[-1]
    return end


def join(texts: Sequence[str], tokens: int) -> list[str]:
    """Join consecutive texts into groups of about `tokens` tokens.

    A group has at least two texts, so summarising the groups always leaves fewer texts.
    """
    groups: list[list[str]] = []
    room = 0
    for text in texts:
        size = len(text.encode("utf-8", "surrogatepass"))
        if groups and (size <= room or len(groups[-1]) < 2):
            groups[-1].append(text)
            room -= size
        else:
            groups.append([text])
            room = tokens * BYTES_PER_TOKEN - size
    if len(groups) > 1 and len(groups[-1]) < 2:
        groups[-2:] = [groups[-2] + groups[-1]]
    return ["\n\n".join(group) for group in groups]
