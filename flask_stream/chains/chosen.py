"""The model that the settings name, made when it is first asked; and the one that stands in."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field

from ..config import Settings
from .models import chosen, fallback, make_model

logger = logging.getLogger(__name__)


class ChosenModel(BaseChatModel):
    """Asks the settings' model, and the fallback where that fails before its first token.

    Never after it: what has been shown is not said again in other words. Raises ConfigError for
    settings that cannot work, when it is made.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    settings: Settings
    tools: Sequence[Any] = ()
    options: dict[str, Any] = Field(default_factory=dict)

    def model_post_init(self, context: Any, /) -> None:
        chosen(self.settings)
        fallback(self.settings)

    @property
    def _llm_type(self) -> str:
        return "chosen"

    @cached_property
    def _models(self) -> list[Callable[[], BaseChatModel]]:
        makers = [_once(chosen(self.settings), self.settings)]
        other = fallback(self.settings)
        return [*makers, _once(other, self.settings)] if other else makers

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        **options: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        # Each provider has a form of its own for them: they are bound when one is asked.
        return ChosenModel(settings=self.settings, tools=tools, options=options)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for place, make in enumerate(self._models, 1):
            begun = False
            try:
                model, bound = self._bound(make())
                for chunk in model._stream(messages, stop, None, **bound, **kwargs):
                    begun = True
                    if run_manager is not None:
                        run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
                    yield chunk
                return
            except Exception as error:
                if begun or place == len(self._models):
                    raise
                logger.warning("model: %s: the fallback is asked", error)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))

    def _bound(self, model: BaseChatModel) -> tuple[BaseChatModel, dict[str, Any]]:
        if not self.tools:
            return model, {}
        bound = model.bind_tools(self.tools, **self.options)
        assert isinstance(bound, RunnableBinding)
        return model, dict(bound.kwargs)


def _once(name: tuple[str, str], settings: Settings) -> Callable[[], BaseChatModel]:
    made: list[BaseChatModel] = []
    lock = threading.Lock()

    def make() -> BaseChatModel:
        with lock:  # the first question may come with others beside it
            if not made:
                made.append(make_model(name, settings))
            return made[0]

    return make
