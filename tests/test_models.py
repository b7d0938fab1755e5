"""Providers: each streams with usage and reasoning; another try only before the first token.

And no provider's server is told what belongs to another.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest
from langchain_core import exceptions as langchain
from langchain_core.exceptions import ModelConnectionError
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import InMemoryRateLimiter
from pydantic import Field

from flask_stream.chains.agent import agent
from flask_stream.chains.fallback_model import FallbackModel
from flask_stream.chains.local_model import ModelUnavailable
from flask_stream.chains.models import _DEFAULT_URLS, configured_model, model_factory, tools_refusal
from flask_stream.chains.tools import calculator
from flask_stream.config import Settings
from flask_stream.errors import ConfigError, ErrorCode
from flask_stream.sources.base import Input
from flask_stream.sources.error_codes import error_code
from flask_stream.sources.langchain import LangChainSource

from .claude import Claude
from .provider import Fault, Provider, Script


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def said(settings: Settings) -> list[tuple[str, Any]]:
    """What the settings' model says to a question, as events."""
    source = LangChainSource(FallbackModel(settings=settings))
    return [(type, json.loads(data)) for type, data in source.stream(Input({"question": "Why?"}))]


def text(events: list[tuple[str, Any]], kind: str = "text") -> str:
    return "".join(d["content"] for t, d in events if t == "chunk" and d["kind"] == kind)


def usage(events: list[tuple[str, Any]]) -> dict[str, Any]:
    (cost,) = [data for type, data in events if type == "usage"]
    assert isinstance(cost, dict)
    return cost


@pytest.mark.parametrize("name", ["openai:scripted", "ollama:scripted", "vllm:scripted"])
def test_servers_that_speak_openai_stream_text_reasoning_and_usage(
    provider: Provider, name: str
) -> None:
    provider.script = Script(["Be", "cause"], reasoning=["Hm", "."])
    events = said(Settings(model=name, base_url=provider.url, model_retries=0))
    assert text(events) == "Because"
    assert text(events, "reasoning") == "Hm."
    assert usage(events)["model"] == "scripted"
    assert usage(events)["total_tokens"] > 0


def test_anthropic_streams_text_reasoning_and_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    with Claude(["Hm", "."], ["Be", "cause"]) as claude:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "test")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", claude.url)
        events = said(Settings(model="anthropic:claude-test", model_retries=0))
        assert len(claude.calls) == 1
    assert text(events) == "Because"
    assert text(events, "reasoning") == "Hm."
    cost = usage(events)
    assert cost["model"] == "claude-test"
    assert (cost["input_tokens"], cost["output_tokens"]) == (11, 7)


def test_anthropic_is_asked_again_before_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with Claude([], ["yes"], refusals=(529, 500)) as claude:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "test")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", claude.url)
        assert text(said(Settings(model="anthropic:claude-test", model_retries=2))) == "yes"
        assert len(claude.calls) == 3


def refusing(provider: Provider, status: int, times: int) -> None:
    """The provider refuses so often, then answers."""
    left = [status] * times

    def script(_: dict[str, Any]) -> Script:
        return Script(status=left.pop(), retry_after="0") if left else Script(["yes"])

    provider.script = script


@pytest.mark.parametrize("status", [429, 500, 503])
def test_openai_is_asked_again_before_the_first_token(provider: Provider, status: int) -> None:
    refusing(provider, status, 2)
    settings = Settings(model="openai:scripted", base_url=provider.url, model_retries=2)
    assert text(said(settings)) == "yes"
    assert len(provider.calls) == 3


def test_nothing_is_asked_again_after_a_token(provider: Provider) -> None:
    provider.script = Script(["one", "two", "three"], fault="rst", after=2)
    settings = Settings(
        model="openai:scripted",
        fallback_model="ollama:other",
        base_url=provider.url,
        model_retries=3,
    )
    source = LangChainSource(FallbackModel(settings=settings))
    heard = []
    with pytest.raises(Exception, match=r".+"):
        heard += [data for type, data in source.stream(Input({"question": "?"})) if type == "chunk"]
    assert len(provider.calls) == 1


def test_the_fallback_is_asked_when_the_first_fails_before_a_token(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.script = Script(status=500)
    with Claude([], ["from the other"]) as claude:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "test")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", claude.url)
        settings = Settings(
            model="openai:scripted",
            fallback_model="anthropic:claude-test",
            base_url=provider.url,
            model_retries=0,
        )
        events = said(settings)
    assert text(events) == "from the other"
    assert usage(events)["model"] == "claude-test"
    assert len(provider.calls) == 1


@pytest.mark.parametrize("fault", ["rst", "fin", "short", "json", "utf8", "error", "html"])
def test_the_fallback_is_asked_when_nothing_came_but_a_role(
    provider: Provider, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.script = Script(["never said"], fault=fault, after=0)
    with Provider(Script(["from", " the other"])) as other:
        monkeypatch.setitem(_DEFAULT_URLS, "ollama", other.url)
        events = said(
            Settings(
                model="openai:scripted",
                fallback_model="ollama:second",
                base_url=provider.url,
                model_retries=0,
            )
        )
        assert len(other.calls) == 1
    assert text(events) == "from the other"
    assert [type for type, _ in events] == ["message_start", "chunk", "chunk", "usage"]
    assert usage(events)["model"] == "second"
    assert len(provider.calls) == 1


@pytest.mark.parametrize(
    "script",
    [
        Script([], reasoning=["Hm", "."], fault="rst", after=1),
        Script([], tools=[("look", {"where": "here"})], fault="rst", after=1),
        Script(["a", "b"], fault="rst", after=1),
    ],
    ids=["reasoning", "tool", "text"],
)
def test_the_fallback_is_not_asked_after_anything_that_was_said(
    provider: Provider, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.script = script
    with Provider() as other:
        monkeypatch.setitem(_DEFAULT_URLS, "ollama", other.url)
        settings = Settings(
            model="openai:scripted",
            fallback_model="ollama:second",
            base_url=provider.url,
            model_retries=0,
        )
        pieces: list[AIMessage] = []
        with pytest.raises(ModelConnectionError):
            pieces.extend(FallbackModel(settings=settings).stream("Why?"))
        assert other.calls == []
    assert len(pieces) == 2  # the role, and what was said


@pytest.mark.parametrize("script", [Script(reasoning=["Hm"]), Script([])], ids=["all", "nothing"])
def test_pieces_without_content_are_passed_on_in_their_order(
    provider: Provider, script: Script
) -> None:
    provider.script = script
    alone = Settings(model="openai:scripted", base_url=provider.url, model_retries=0)
    accompanied = replace(alone, fallback_model="openai:never-asked")
    one, other = (
        [
            (piece.content, piece.usage_metadata, piece.response_metadata, piece.id)
            for piece in FallbackModel(settings=settings).stream("Why?", {"run_id": UUID(int=1)})
        ]
        for settings in (alone, accompanied)
    )
    assert one == other
    assert len(one) >= 4
    assert len(provider.calls) == 2


def test_claude_says_nothing_before_its_first_thought(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.script = Script(["from the other"])
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test")
    monkeypatch.setitem(_DEFAULT_URLS, "ollama", provider.url)
    settings = Settings(
        model="anthropic:claude-test", fallback_model="ollama:second", model_retries=0
    )
    for begun, fails in ((False, 1), (False, 2), (True, 3)):
        # A message starts, a block of it, and then a thought comes.
        with Claude(["Hm"], ["yes"], fails=fails) as claude:
            monkeypatch.setenv("ANTHROPIC_BASE_URL", claude.url)
            if begun:
                with pytest.raises(Exception, match="Overloaded"):
                    said(settings)
            else:
                assert text(said(settings)) == "from the other"
    assert len(provider.calls) == 2


# Keys, and where they go


def told(provider: Provider) -> set[str]:
    """Which of the environment's secrets a server has been told."""
    everything = json.dumps([[call.headers, call.json] for call in provider.calls])
    return {name for name, secret in SECRETS.items() if secret in everything}


SECRETS = {
    name: f"canary-{name.lower().replace('_', '-')}"
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_ORG_ID",
        "OPENAI_PROJECT_ID",
        "OPENAI_CUSTOM_HEADERS",
        "VLLM_API_KEY",
        "ANTHROPIC_API_KEY",
    )
}
OPENAIS = {name for name in SECRETS if name.startswith("OPENAI_")}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secret in SECRETS.items():
        header = "X-Gateway: " if name == "OPENAI_CUSTOM_HEADERS" else ""
        monkeypatch.setenv(name, header + secret)


@pytest.mark.parametrize("first", ["openai", "ollama", "vllm"])
@pytest.mark.parametrize("second", ["openai", "ollama", "vllm"])
@pytest.mark.parametrize("set", ["STREAM_BASE_URL", "nothing"])
@pytest.mark.usefixtures("secrets")
def test_no_key_reaches_the_server_of_another_provider(
    provider: Provider, first: str, second: str, set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    belongs = {"openai": OPENAIS, "vllm": {"VLLM_API_KEY"}, "ollama": frozenset[str]()}
    with ExitStack() as stack:
        usual = {name: stack.enter_context(Provider()) for name in belongs}
        monkeypatch.setenv("OPENAI_BASE_URL", usual["openai"].url)
        monkeypatch.setitem(_DEFAULT_URLS, "ollama", usual["ollama"].url)
        monkeypatch.setitem(_DEFAULT_URLS, "vllm", usual["vllm"].url)
        refuses = provider if set == "STREAM_BASE_URL" else usual[first]
        refuses.script = lambda asked: (
            Script(status=500) if asked["model"] == "one" else Script(["two"])
        )
        settings = Settings(
            model=f"{first}:one",
            fallback_model=f"{second}:two",
            base_url=provider.url if set == "STREAM_BASE_URL" else None,
            model_retries=0,
        )
        assert text(said(settings)) == ("two" if second == first else "Hello world")
        # The same provider's other model is at the same address.
        asked = refuses if second == first else usual[second]
        assert [call.json["model"] for call in asked.calls][-1] == "two"
        assert told(refuses) == belongs[first]
        assert told(asked) == belongs[second]
        for server in (provider, *usual.values()):
            assert server in (refuses, asked) or server.calls == []


@pytest.mark.usefixtures("secrets")
def test_no_key_goes_to_or_from_anthropic(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", provider.url)
    with Claude([], ["yes"], refusals=(500,)) as claude:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", claude.url)
        settings = Settings(model="anthropic:one", fallback_model="openai:two", model_retries=0)
        assert text(said(settings)) == "Hello world"
        assert told(provider) == OPENAIS
        provider.script = Script(status=500)
        settings = Settings(
            model="openai:two",
            fallback_model="anthropic:one",
            base_url=provider.url,
            model_retries=0,
        )
        assert text(said(settings)) == "yes"
        everything = json.dumps([claude.headers, claude.calls])
        assert {n for n, secret in SECRETS.items() if secret in everything} == {"ANTHROPIC_API_KEY"}
        assert told(provider) == OPENAIS


# A model of one's own


class Whole(BaseChatModel):
    """A model that answers as a whole: it has `_generate` alone, with the fewest parameters."""

    answers: list[AIMessage]
    asked: list[Any] = Field(default_factory=list)
    binds: bool = True

    @property
    def _llm_type(self) -> str:
        return "whole"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        self.asked.append((messages, stop, options))
        if not self.answers:
            raise ConnectionError("it is gone")
        answer = self.answers.pop(0)
        about = {"model_name": "whole-1"}
        return ChatResult(generations=[ChatGeneration(message=answer)], llm_output=about)

    def bind_tools(self, tools: Sequence[Any], **options: Any) -> Any:
        names = [tool.name for tool in tools]
        return self.bind(names=names).bind(**options) if self.binds else self


def ones_own(monkeypatch: pytest.MonkeyPatch, model: BaseChatModel) -> str:
    """The setting that names a function which makes this model."""
    module = ModuleType("a_module_of_ones_own")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.__dict__["make"] = lambda: model
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return f"{module.__name__}:make"


COST: Any = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


def test_a_model_of_ones_own_need_not_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Whole(answers=[AIMessage("All at once", usage_metadata=COST)])
    events = said(Settings(model=ones_own(monkeypatch, model)))
    assert [type for type, _ in events] == ["message_start", "chunk", "usage"]
    assert text(events) == "All at once"
    assert usage(events) == {"model": "whole-1"} | COST
    model.answers.append(AIMessage("Once more", id="its-own"))
    chosen = FallbackModel(settings=Settings(model=ones_own(monkeypatch, model)))
    answer = chosen.invoke("Why?", stop=["."], user="me")
    assert (answer.text, answer.id) == ("Once more", "its-own")
    assert [one[1:] for one in model.asked[1:]] == [(["."], {"user": "me"})]


@pytest.mark.parametrize("binds", [True, False])
def test_a_model_of_ones_own_may_call_tools(monkeypatch: pytest.MonkeyPatch, binds: bool) -> None:
    calls = [
        {"name": "calculator", "args": {"expression": expression}, "id": None}
        for expression in ("6 * 7", "2 + 3")
    ]
    model = Whole(
        answers=[AIMessage("", tool_calls=[one | {"id": str(n)} for n, one in enumerate(calls)])],
        binds=binds,
    )
    settings = Settings(model=ones_own(monkeypatch, model))
    bound = FallbackModel(settings=settings).bind_tools([calculator], tool_choice="any")
    (piece,) = bound.stream("What is it?")
    assert [one["args"]["expression"] for one in piece.tool_calls] == ["6 * 7", "2 + 3"]
    assert model.asked[0][2] == ({"names": ["calculator"], "tool_choice": "any"} if binds else {})
    # The same as events; here even without ids, and with arguments that are no JSON.
    wrong: Any = {"name": "calculator", "args": "{6 *", "id": None, "error": None}
    model.answers.append(AIMessage("Look:", tool_calls=calls, invalid_tool_calls=[wrong]))
    source = LangChainSource(bound)
    events = [(t, json.loads(data)) for t, data in source.stream(Input({"question": "?"}))]
    assert [(t, data.get("args")) for t, data in events if t != "usage"] == [
        ("message_start", None),
        ("chunk", None),
        ("tool_call", {"expression": "6 * 7"}),
        ("tool_call", {"expression": "2 + 3"}),
        ("tool_call", "{6 *"),
    ]


def test_the_agent_uses_a_model_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    call: Any = {"name": "calculator", "args": {"expression": "6 * 7"}, "id": "1"}
    model = Whole(answers=[AIMessage("", tool_calls=[call]), AIMessage("It is 42.")])
    settings = Settings(model=ones_own(monkeypatch, model))
    make = Mock(return_value=model)
    monkeypatch.setattr(sys.modules["a_module_of_ones_own"], "make", make)
    made = agent(FallbackModel(settings=settings), settings)
    messages = made.invoke({"messages": [("human", "What is 6 * 7?")]})["messages"]
    assert [message.text for message in messages[2:]] == ["42", "It is 42."]
    make.assert_called_once()  # and not for every question to it


def test_a_model_of_ones_own_has_and_is_a_fallback(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Whole(answers=[AIMessage("mine")])
    settings = Settings(
        model=ones_own(monkeypatch, model), fallback_model="ollama:x", model_retries=0
    )
    monkeypatch.setitem(_DEFAULT_URLS, "ollama", provider.url)
    assert text(said(settings)) == "mine"
    assert provider.calls == []
    assert text(said(settings)) == "Hello world"
    model.answers.append(AIMessage("mine again"))
    provider.script = Script(status=500)
    settings = Settings(
        model="ollama:x", fallback_model=settings.model, base_url=provider.url, model_retries=0
    )
    assert text(said(settings)) == "mine again"
    with pytest.raises(ConnectionError):
        said(settings)


class Limited(GenericFakeChatModel):
    """It streams, unless it is told not to."""

    def _stream(self, *args: Any, **options: Any) -> Iterator[ChatGenerationChunk]:
        assert not self.disable_streaming
        return super()._stream(*args, **options)


@pytest.mark.parametrize("disabled", [True, False])
def test_what_a_model_of_ones_own_is_set_to_is_kept_to(
    monkeypatch: pytest.MonkeyPatch, disabled: bool
) -> None:
    acquired = []

    class Limiter(InMemoryRateLimiter):
        def acquire(self, *, blocking: bool = True) -> bool:
            acquired.append(blocking)
            return True

    model = Limited(
        messages=iter([AIMessage("it is mine")]),
        rate_limiter=Limiter(),
        disable_streaming=disabled,
    )
    events = said(Settings(model=ones_own(monkeypatch, model)))
    assert text(events) == "it is mine"
    assert len([1 for type, _ in events if type == "chunk"]) == (1 if disabled else 5)
    assert acquired == [True]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConnectionError("gone"), ErrorCode.MODEL_UNAVAILABLE),
        (TimeoutError("late"), ErrorCode.TIMEOUT),
        (KeyError("choices"), ErrorCode.MODEL_ERROR),
        (ModelUnavailable("no such file"), ErrorCode.MODEL_UNAVAILABLE),
        (langchain.ModelRateLimitError("slower"), ErrorCode.MODEL_RATE_LIMITED),
    ],
)
def test_what_a_model_raises_is_the_models_fault(
    error: Exception, code: ErrorCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Whole):
        def _generate(self, *_: Any, **__: Any) -> ChatResult:
            raise error

    chosen = FallbackModel(settings=Settings(model=ones_own(monkeypatch, Failing(answers=[]))))
    with pytest.raises(Exception, match=r".+") as raised:
        chosen.invoke("Why?")
    assert error_code(raised.value) is code
    assert error in (raised.value, raised.value.__cause__)


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of one's own."""
    path = tmp_path / "own_models.py"
    path.write_text(
        "from tests.test_models import made\n"
        "no = lambda: 'nothing'\n"
        "number = 7\n"
        "def broken():\n    return None.absent\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("own_models", None)


def own(setting: str, function: str, module: str = "own_models") -> Settings:
    if setting == "STREAM_MODEL":
        return Settings(model=f"{module}:{function}")
    return Settings(model="local:smollm2", fallback_model=f"{module}:{function}")


SETTINGS = pytest.mark.parametrize("setting", ["STREAM_MODEL", "STREAM_FALLBACK_MODEL"])


@pytest.mark.usefixtures("own_models")
def test_a_model_of_ones_own() -> None:
    assert text(said(Settings(model="own_models:made"))) == "mine"


@SETTINGS
@pytest.mark.parametrize("function", ["absent", "number"])
@pytest.mark.usefixtures("own_models")
def test_a_function_that_is_not_there_is_told_at_start(setting: str, function: str) -> None:
    with pytest.raises(ConfigError, match=f"own_models has no function {function}") as caught:
        FallbackModel(settings=own(setting, function))
    assert caught.value.setting == setting


@SETTINGS
def test_a_module_that_cannot_be_imported_is_told_at_start(setting: str, own_models: Path) -> None:
    own_models.write_text("made = 1 / 0\n")
    with pytest.raises(ConfigError, match="imported: ZeroDivisionError: division by") as caught:
        FallbackModel(settings=own(setting, "made"))
    assert caught.value.setting == setting


@SETTINGS
@pytest.mark.usefixtures("own_models")
def test_a_package_that_cannot_be_imported_is_told_at_start(setting: str, tmp_path: Path) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=r"own_package\.x cannot be imported: Zero") as caught:
        FallbackModel(settings=own(setting, "made", "own_package.x"))
    assert caught.value.setting == setting


@SETTINGS
@pytest.mark.usefixtures("own_models")
def test_what_makes_no_model_is_told_with_its_setting(setting: str) -> None:
    settings = own(setting, "no")
    make = model_factory(setting, ("module", "own_models:no"), settings)
    with pytest.raises(ConfigError, match="does not return a chat model") as caught:
        make()
    assert caught.value.setting == setting


@pytest.mark.usefixtures("own_models")
def test_what_a_function_of_ones_own_trips_over_is_no_wrong_setting() -> None:
    make = model_factory("STREAM_MODEL", ("module", "own_models:broken"), Settings())
    with pytest.raises(AttributeError, match="'absent'"):
        make()


def test_a_function_of_ones_own_is_not_called_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    name = ones_own(monkeypatch, Whole(answers=[]))
    make = Mock()
    monkeypatch.setattr(sys.modules["a_module_of_ones_own"], "make", make)
    for settings in (Settings(model=name), Settings(model="local:smollm2", fallback_model=name)):
        FallbackModel(settings=settings)
    make.assert_not_called()


def made() -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage("mine")]))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (Settings(model="anthropic:claude"), "ANTHROPIC_API_KEY"),
        (Settings(model="nothing.like_it:make"), "provider:name"),
        (
            Settings(model="local:smollm2", fallback_model="local:smollm2"),
            "only one of them can be local",
        ),
        (Settings(model="local:smollm2", fallback_model="what"), "STREAM_FALLBACK_MODEL"),
        (Settings(base_url="http://127.0.0.1:9/v1"), "STREAM_BASE_URL .* is not set"),
        (Settings(model="local:x.gguf", base_url="http://127.0.0.1:9/v1"), "STREAM_BASE_URL"),
        # That address is Ollama's: it is no reason to think that OpenAI's model wants no key.
        (
            Settings(model="ollama:x", fallback_model="openai:x", base_url="http://127.0.0.1:9/v1"),
            "STREAM_FALLBACK_MODEL .* OPENAI_API_KEY",
        ),
    ],
)
def test_what_cannot_work_is_told_at_start(settings: Settings, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        FallbackModel(settings=settings)


def test_an_address_is_enough_for_a_model_that_wants_no_key() -> None:
    for given in ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, {}):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in given.items():
                patch.setenv(name, value)
            url = None if given else "http://127.0.0.1:9/v1"
            assert configured_model(Settings(model="openai:x", base_url=url)) == ("openai", "x")


def test_the_embedded_model_says_that_it_cannot_use_tools() -> None:
    assert "too small to use tools" in str(tools_refusal(Settings(model="local:smollm2")))
    assert tools_refusal(Settings(model="ollama:llama3.2")) is None
    assert configured_model(Settings()) == ("local", "smollm2")
