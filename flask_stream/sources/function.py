"""Generator functions: what they yield is text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from ..events import Said, chunk, encode
from .base import Input

_MESSAGE = encode({"id": "m1", "role": "assistant", "node": None})


class FunctionSource:
    """Asks a function of one question that yields pieces of text, or returns a whole text."""

    def __init__(self, function: Callable[[str], Iterable[str]]) -> None:
        self._function = function

    def stream(self, input: Input) -> Generator[Said, None, None]:
        opened = False
        said = self._function(input.question)
        pieces = [said] if isinstance(said, str) else said
        try:
            for piece in pieces:
                if not isinstance(piece, str):
                    raise TypeError(f"a chain function yields text, not {type(piece).__name__}")
                if piece:
                    if not opened:
                        opened = True
                        yield "message", _MESSAGE
                    yield "chunk", chunk(piece, "m1")
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
