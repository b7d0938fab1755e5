"""Converts the input of a run into the input of its chain, according to the chain's input schema.

Clients send text and data, never messages. An object that looks like a message with a role, or
like a serialized LangChain object, is not converted into one.
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

#: The maximum number of messages in one input.
_MAX_MESSAGES = 100


class InputSchema:
    """The input schema of one chain. Calling it converts the input of a run.

    If the schema has a property `messages` or `question`, a question is passed under that name,
    and the earlier turns as `history` if there is such a property. If it has a single other
    property, the question is passed under that name. If the chain does not take an object, the
    question is passed as text. Any other input is passed as it is, with human messages made of its
    texts where the chain takes messages.
    """

    def __init__(self, chain: Any) -> None:
        self._schema = _json_schema(chain)
        # A graph whose state is a dictionary accepts a part of it.
        self._partial = is_typeddict(_state_type(chain))
        self._types = _property_types(chain)
        properties = self._schema.get("properties", {})
        self._history = "history" in properties
        self.names = [name for name in properties if name != "history"]
        self._message_names = {
            name
            for name in self.names
            if name == "messages" or "#/$defs/HumanMessage" in json.dumps(properties[name])
        }

    @property
    def question_name(self) -> str | None:
        """The property under which a question is passed; None if that is not clear."""
        for name in ("messages", "question"):
            if name in self.names:
                return name
        return self.names[0] if len(self.names) == 1 else None

    @property
    def accepts_question(self) -> bool:
        """Whether the chain can be run with a question alone."""
        return not self.names or self.question_name is not None

    def check(self, value: dict[str, Any], prepared: bool = False) -> None:
        """Raise BadRequest, which names the field, if the chain does not accept this input.

        `prepared` is whether the developer's own function converts a question for the chain.
        """
        required = [name for name in self._schema.get("required", []) if name != "history"]
        if value.keys() == {"question"}:
            question = self.question_name
            enough = self.accepts_question and (self._partial or set(required) <= {question})
            if prepared or enough:
                return
            problem = f"This chain takes {', '.join(self.names)}: send an object as input."
            raise BadRequest(problem, field="input")
        for name in value.keys() - set(self.names):
            raise BadRequest(f"{name} is not a field of input.", field="input")
        for name in [] if self._partial else required or ["question"]:
            if name not in value:
                raise BadRequest(f"{name} is missing in input.", field="input")
        for name, given in value.items():
            if name in self._message_names:
                _human_messages(name, given)
            elif name in self._types:
                try:
                    self._types[name].validate_python(given, strict=True)
                except ValidationError as error:
                    problem = error.errors(include_url=False)[0]["msg"]
                    raise BadRequest(f"{name}: {problem}.", field=f"input.{name}") from None

    def __call__(self, input: Input) -> Any:
        """Return the chain's input.

        Raises BadRequest for messages that are not texts, and for a question if the chain needs an
        object.
        """
        earlier = history(input)
        if not self.names:
            return input.question
        if input.value.keys() != {"question"}:
            converted = dict(input.value)
            for name in self._message_names & converted.keys():
                converted[name] = _human_messages(name, converted[name])
            if "messages" in self._message_names & converted.keys():
                converted["messages"] = [*earlier, *converted["messages"]]
        elif self.question_name is None:
            raise BadRequest(f"This chain takes {', '.join(self.names)}.", field="input")
        elif self.question_name in self._message_names:
            return {self.question_name: [*earlier, HumanMessage(input.question)]}
        else:
            converted = {self.question_name: input.question}
        if self._history:
            converted["history"] = earlier
        return converted


def input_mapper(chain: Any) -> Callable[[Input], Any]:
    """Return the function that converts a run's input for this chain.

    Raises ValueError if the chain cannot be run with a question alone.
    """
    schema = InputSchema(chain)
    if not schema.accepts_question:
        names = ", ".join(schema.names)
        raise ValueError(f"it takes {names}: pass input=, a function that makes these from a run")
    return schema


def history(input: Input) -> list[BaseMessage]:
    """Return the latest earlier turns that fit the token budget, as messages, oldest first."""
    messages: list[BaseMessage] = []
    for turn in input.history:
        messages.append(HumanMessage(turn.question))
        if turn.answer:  # models refuse a message without text
            messages.append(AIMessage(turn.answer))
    kept: list[BaseMessage] = trim_messages(
        messages,
        max_tokens=input.history_tokens,
        token_counter=count_tokens_approximately,
        start_on="human",
    )
    return kept


def _json_schema(chain: Any) -> dict[str, Any]:
    """Return the JSON schema of a chain's input; an empty one if that is not an object."""
    describe = getattr(chain, "get_input_jsonschema", None)
    try:
        found: dict[str, Any] = describe() if describe is not None else {}
    except PydanticUserError:
        # Before Python 3.12, pydantic does not support `typing.TypedDict`.
        state = _state_type(chain)
        found = _typed_dict_schema(state) if is_typeddict(state) else {}
    return found if found.get("type") == "object" else {}


def _state_type(chain: Any) -> Any:
    """Return the type of a graph's input state; None for other chains."""
    return getattr(getattr(chain, "builder", None), "input_schema", None)


def _property_types(chain: Any) -> dict[str, TypeAdapter[Any]]:
    """Return the type of each property of a chain's input that pydantic can validate."""
    found: dict[str, Any] = {}
    state = _state_type(chain)
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


def _typed_dict_schema(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of a `typing.TypedDict`."""
    fields = get_type_hints(kind, include_extras=True)
    copied: Any = TypedDict(kind.__name__, fields, total=kind.__total__)  # type: ignore[misc]
    try:
        return TypeAdapter(copied).json_schema()
    except PydanticUserError:  # one of its fields is a typing.TypedDict, too
        return {"type": "object", "properties": {name: {} for name in fields}}


def _human_messages(name: str, value: Any) -> list[BaseMessage]:
    """Return texts as human messages. Raises BadRequest for anything else."""
    texts: Iterable[Any] = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRequest("Messages must be a text or a list of texts.", field=f"input.{name}")
    if len(texts) > _MAX_MESSAGES:
        raise BadRequest(f"At most {_MAX_MESSAGES} messages are allowed.", field=f"input.{name}")
    return [HumanMessage(text) for text in texts]
