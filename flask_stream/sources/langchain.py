"""The source for LangChain runnables.

Strings and messages become messages and chunks. Tool calls and results become their own events.
Anything else becomes `custom`, `{"name": "output", "value": …}`. `RunCallbacks` adds model calls.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig

from ..errors import ErrorCode, RunFailed
from ..events import NewEvent
from .base import Input, Source
from .callbacks import RunCallbacks, custom
from .finish_reasons import FinishReason
from .inputs import InputSchema, input_mapper
from .messages import Messages


class Streams(Protocol):
    """Anything with LangChain's `stream`."""

    def stream(self, input: Any, config: RunnableConfig | None = None) -> Iterator[Any]: ...


class LangChainSource(Source):
    """Streams a runnable. `prepare` turns a run's input into the runnable's own."""

    def __init__(self, chain: Streams, prepare: Callable[[Input], Any] | None = None) -> None:
        self._chain = chain
        self._schema = InputSchema(chain)
        self._prepare = prepare or input_mapper(chain)
        self._prepared = prepare is not None
        specs = getattr(chain, "config_specs", ())
        #: LangChain's `RunnableWithMessageHistory` asks for the conversation as `session_id`.
        self._session = any(spec.id == "session_id" for spec in specs)

    def check(self, value: dict[str, Any]) -> None:
        self._schema.check(value, self._prepared)

    def stream(self, input: Input) -> Generator[NewEvent, None, FinishReason | None]:
        calls = RunCallbacks()
        messages = Messages()
        config: RunnableConfig = {"callbacks": [calls]}
        if self._session:
            config["configurable"] = {"session_id": input.thread}
        chunks = self._chain.stream(self._prepare(input), config)
        try:
            for piece in chunks:
                if isinstance(piece, str):
                    yield from messages.add_text(piece)
                elif isinstance(piece, BaseMessage):
                    yield from messages.add(piece)
                else:
                    yield custom("output", piece)
                if calls.pending:
                    yield from calls.take_pending()
        except Exception as error:
            yield from calls.drain()
            if calls.failed_with(error):
                raise RunFailed(ErrorCode.MODEL_ERROR) from error
            raise
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        yield from messages.end()
        yield from calls.end()
        return calls.finish_reason
