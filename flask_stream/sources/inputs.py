"""From what a run was started with to what its chain takes, by the chain's own input schema.

What comes from outside is text and data, never a message: an object that looks like a message of
some role, or like a serialised LangChain object, is not made into one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, trim_messages
from langchain_core.messages.utils import count_tokens_approximately
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from typing_extensions import TypedDict, is_typeddict

from ..errors import BadRequest

if TYPE_CHECKING:
    from .base import Input

#: Messages that may be sent at once.
_MOST = 100


class InputSchema:
    """How one chain wants to be asked.

    An object with `messages` or `question` gets a question as that, and `history` where it has
    one; an object with a single other property gets the question under that name; anything else
    the bare text. An input that is an object of several values is the chain's own, as it is.
    """

    def __init__(self, chain: Any) -> None:
        self._whole = _described(chain)
        # A graph can be given a part of its state, where that is a dictionary.
        self._partial = is_typeddict(_state(chain))
        self._types = _types(chain)
        properties = self._whole.get("properties", {})
        self._history = "history" in properties
        self.names = [name for name in properties if name != "history"]
        self._talks = {
            name
            for name in self.names
            if name == "messages" or "#/$defs/HumanMessage" in json.dumps(properties[name])
        }

    @property
    def name(self) -> str | None:
        """The property that a question becomes; None if no single one does."""
        for name in ("messages", "question"):
            if name in self.names:
                return name
        return self.names[0] if len(self.names) == 1 else None

    @property
    def asks(self) -> bool:
        """Whether a question is enough."""
        return not self.names or self.name is not None

    def check(self, value: dict[str, Any], prepared: bool = False) -> None:
        """Raise BadRequest, which names the field, for an input that this chain does not take.

        `prepared` is when the developer's own function makes the chain's input of a question.
        """
        needed = [name for name in self._whole.get("required", []) if name != "history"]
        if value.keys() == {"question"}:
            enough = self.asks and (self._partial or set(needed) <= {self.name})
            if prepared or enough:
                return
            told = f"This chain takes {', '.join(self.names)}: send an object as input."
            raise BadRequest(told, field="input")
        for name in value.keys() - set(self.names):
            raise BadRequest(f"{name} is not a field of input.", field="input")
        for name in [] if self._partial else needed or ["question"]:
            if name not in value:
                raise BadRequest(f"input has no {name}.", field="input")
        for name, given in value.items():
            if name in self._talks:
                _people(name, given)
            elif name in self._types:
                try:
                    self._types[name].validate_python(given, strict=True)
                except ValidationError as error:
                    told = error.errors(include_url=False)[0]["msg"]
                    raise BadRequest(f"{name}: {told}.", field=f"input.{name}") from None

    def __call__(self, input: Input) -> Any:
        """The chain's input.

        Raises BadRequest for messages that are no texts, and for a question that does not do.
        """
        earlier = history(input)
        if not self.names:
            return input.question
        if input.value.keys() != {"question"}:
            asked = dict(input.value)
            for name in self._talks & asked.keys():
                asked[name] = _people(name, asked[name])
            if "messages" in self._talks & asked.keys():
                asked["messages"] = [*earlier, *asked["messages"]]
        elif self.name is None:
            raise BadRequest(f"This chain takes {', '.join(self.names)}.", field="input")
        elif self.name in self._talks:
            return {self.name: [*earlier, HumanMessage(input.question)]}
        else:
            asked = {self.name: input.question}
        if self._history:
            asked["history"] = earlier
        return asked


def input_mapper(chain: Any) -> Callable[[Input], Any]:
    """How this chain is asked: see `InputSchema`. Raises ValueError if a question is not enough."""
    found = InputSchema(chain)
    if not found.asks:
        wanted = ", ".join(found.names)
        raise ValueError(f"it takes {wanted}: say with input= how a question becomes that")
    return found


def history(input: Input) -> list[BaseMessage]:
    """The earlier turns as messages, oldest first: the last of them that the budget holds."""
    messages: list[BaseMessage] = []
    for turn in input.history:
        messages.append(HumanMessage(turn.question))
        if turn.answer:  # models refuse a message without any text
            messages.append(AIMessage(turn.answer))
    kept: list[BaseMessage] = trim_messages(
        messages,
        max_tokens=input.history_tokens,
        token_counter=count_tokens_approximately,
        start_on="human",
    )
    return kept


def _described(chain: Any) -> dict[str, Any]:
    """The JSON schema of the object that a chain takes; empty if it takes something else."""
    describe = getattr(chain, "get_input_jsonschema", None)
    try:
        found: dict[str, Any] = describe() if describe is not None else {}
    except PydanticUserError:
        # Before Python 3.12, pydantic does not look into a `typing.TypedDict`.
        state = _state(chain)
        found = _of_typed_dict(state) if is_typeddict(state) else {}
    return found if found.get("type") == "object" else {}


def _state(chain: Any) -> Any:
    """The type of what a graph takes; None for what is no graph."""
    return getattr(getattr(chain, "builder", None), "input_schema", None)


def _types(chain: Any) -> dict[str, TypeAdapter[Any]]:
    """What each property of a chain's input may be, as far as pydantic can tell."""
    found: dict[str, Any] = {}
    state = _state(chain)
    if is_typeddict(state) or is_dataclass(state):
        found = get_type_hints(state, include_extras=True)
    else:
        model = getattr(chain, "get_input_schema", lambda: None)()
        if isinstance(model, type) and issubclass(model, BaseModel):
            found = {name: field.annotation for name, field in model.model_fields.items()}
    types = {}
    for name, kind in found.items():
        with suppress(PydanticUserError):
            types[name] = TypeAdapter[Any](kind)
    return types


def _of_typed_dict(kind: Any) -> dict[str, Any]:
    fields = get_type_hints(kind, include_extras=True)
    twin: Any = TypedDict(kind.__name__, fields, total=kind.__total__)  # type: ignore[misc]
    try:
        return TypeAdapter(twin).json_schema()
    except PydanticUserError:  # one of its fields is such a thing again
        return {"type": "object", "properties": {name: {} for name in fields}}


def _people(name: str, value: Any) -> list[BaseMessage]:
    texts: Iterable[Any] = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRequest("Messages are a text, or a list of texts.", field=f"input.{name}")
    if len(texts) > _MOST:
        raise BadRequest(f"More than {_MOST} messages are too many.", field=f"input.{name}")
    return [HumanMessage(text) for text in texts]
