"""Long texts cut into pieces that a model can be given, and short ones put together."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: A token is about so many bytes of UTF-8, in any script.
BYTES = 4
#: Where a text may be cut, the best first: after paragraphs, sentences, words.
BORDERS = (
    re.compile(r"\n[^\S\n]*\n\s*"),
    re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？]"),  # noqa: RUF001
    re.compile(r"\s+"),
)


def split(text: str, tokens: int) -> list[str]:
    """The text in pieces of at most `tokens` tokens, about; joined, they are the text again.

    Cut after a paragraph, else a sentence, else a word, in the later half of a piece; in the
    middle of a word only if it is longer than that.
    """
    pieces: list[str] = []
    start = 0
    while start < len(text):
        most = text[start : start + tokens * BYTES].encode("utf-8", "surrogatepass")
        end = start + max(1, len(most[: tokens * BYTES].decode("utf-8", "ignore")))
        if end < len(text):
            end = _border(text, start + (end - start + 1) // 2, end)
        pieces.append(text[start:end])
        start = end
    return pieces


def _border(text: str, least: int, most: int) -> int:
    """The last good place to cut, or `most`."""
    for border in BORDERS:
        ends = [found.end() for found in border.finditer(text, least, most)]
        if ends:
            return ends[-1]
    return most


def grouped(texts: Sequence[str], tokens: int) -> list[str]:
    """Consecutive texts joined, as many as `tokens` tokens hold; two at least, so that a round
    of summaries always leaves fewer than it had."""
    groups: list[list[str]] = []
    room = 0
    for text in texts:
        size = len(text.encode("utf-8", "surrogatepass"))
        if groups and (size <= room or len(groups[-1]) < 2):
            groups[-1].append(text)
            room -= size
        else:
            groups.append([text])
            room = tokens * BYTES - size
    if len(groups) > 1 and len(groups[-1]) < 2:
        groups[-2:] = [groups[-2] + groups[-1]]
    return ["\n\n".join(group) for group in groups]
