"""LangChain runnables: strings and message chunks become chunks, model calls become usage."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableConfig
from pydantic_core import to_jsonable_python

from ..errors import Code, Fault
from ..events import Said, chunk, encode
from ..faults import code_of
from .base import Input


class Streams(Protocol):
    """Anything with LangChain's `stream`."""

    def stream(self, input: Any, config: RunnableConfig | None = None) -> Iterator[Any]: ...


class LangChainSource:
    """Asks a runnable. `prepare` turns a run's input into the runnable's own."""

    def __init__(self, chain: Streams, prepare: Callable[[Input], Any] | None = None) -> None:
        self._chain = chain
        self._prepare = prepare or fitting(chain)

    def stream(self, input: Input) -> Generator[Said, None, None]:
        calls = _Calls()
        chunks = self._chain.stream(self._prepare(input), {"callbacks": [calls]})
        number = 0
        message = current = ""
        content: str | list[Any]
        try:
            for piece in chunks:
                if isinstance(piece, str):
                    origin, content = "", piece
                elif isinstance(piece, BaseMessage):
                    origin, content = piece.id or "", piece.content
                else:
                    yield "custom", encode({"name": "output", "value": _plain(piece)})
                    continue
                if not number or (origin and origin != current):
                    number += 1
                    message, current = f"m{number}", origin
                    opened = {"id": message, "role": "assistant", "node": None}
                    yield "message", encode(opened)
                if isinstance(content, str):
                    if content:
                        yield "chunk", chunk(content, message)
                else:
                    for kind, text in _blocks(content):
                        yield "chunk", chunk(text, message, kind)
        except Exception as error:
            if error is calls.failure and code_of(error) is Code.CHAIN_ERROR:
                raise Fault(Code.MODEL_ERROR) from error
            raise
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        for report in calls.usage:
            yield "usage", encode(report)
        if calls.cut:
            raise Fault(Code.MODEL_ERROR)


def _plain(value: Any) -> Any:
    """The value as JSON can say it; of what JSON cannot say, its type's name."""
    return to_jsonable_python(value, inf_nan_mode="null", fallback=lambda odd: type(odd).__name__)


def _blocks(content: list[Any]) -> Iterator[tuple[str, str]]:
    """Kind and text of the content blocks that hold any."""
    for block in content:
        if isinstance(block, str):
            yield "text", block
        elif block.get("type") == "text" and block.get("text"):
            yield "text", block["text"]
        elif block.get("type") in ("reasoning", "thinking"):
            text = block.get("reasoning") or block.get("thinking")
            if text:
                yield "reasoning", text


#: How an answer says that it is over: in chat completions, and in OpenAI's responses.
_ENDINGS = {"finish_reason", "status"}


class _Calls(BaseCallbackHandler):
    """What became of the model calls of one run, also where a parser hides the messages.

    `usage` is what each cost. `failure` is what the last failed with: an exception that says
    nothing of a model, such as a JSON error, came from one all the same. `cut` tells that an
    answer stopped without saying that it was over, which raises nothing at all.
    """

    def __init__(self) -> None:
        self.usage: list[dict[str, Any]] = []
        self.failure: BaseException | None = None
        self.cut = False

    def on_llm_error(self, error: BaseException, **_: Any) -> None:
        self.failure = error

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        for generation in (one for some in response.generations for one in some):
            if not isinstance(generation, ChatGeneration):
                continue
            message = generation.message
            told = message.response_metadata
            # Only of OpenAI's protocol is it known that a whole answer tells why it ended.
            if told.get("model_provider") == "openai" and not told.keys() & _ENDINGS:
                self.cut = True
            usage = getattr(message, "usage_metadata", None)
            if usage:
                self.usage.append(
                    {
                        "model": told.get("model_name"),
                        "input_tokens": usage["input_tokens"],
                        "output_tokens": usage["output_tokens"],
                        "total_tokens": usage["total_tokens"],
                    }
                )


def fitting(chain: Any) -> Callable[[Input], Any]:
    """How this chain wants to be asked, by its own input schema.

    An object with `question` or `messages` gets that, and `history` where it has one; an object
    with a single other property gets the question under that name; anything else the bare text.
    Raises ValueError for an object of which none of this is true.
    """
    describe = getattr(chain, "get_input_jsonschema", None)
    schema = describe() if describe is not None else {}
    names = list(schema.get("properties", {})) if schema.get("type") == "object" else []
    wants_history = "history" in names
    names = [name for name in names if name != "history"]

    if "messages" in names:
        return lambda input: {"messages": [*history(input), HumanMessage(input.question)]}
    if "question" in names or len(names) == 1:
        name = "question" if "question" in names else names[0]

        def keyed(input: Input) -> dict[str, Any]:
            asked: dict[str, Any] = {name: input.question}
            if wants_history:
                asked["history"] = history(input)
            return asked

        return keyed
    if names:
        wanted = ", ".join(names)
        raise ValueError(f"it takes {wanted}: say with input= how a question becomes that")
    return lambda input: input.question


def history(input: Input) -> list[BaseMessage]:
    """The earlier turns as messages, oldest first."""
    messages: list[BaseMessage] = []
    for turn in input.history:
        messages += [HumanMessage(turn.question), AIMessage(turn.answer)]
    return messages
