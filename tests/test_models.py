"""Providers: each streams with usage and reasoning; another try only before the first token."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

from flask_stream.chains.chosen import ChosenModel
from flask_stream.chains.models import chosen, make_model, tools_refusal
from flask_stream.config import Settings
from flask_stream.errors import ConfigError
from flask_stream.sources.base import Input
from flask_stream.sources.langchain import LangChainSource

from .claude import Claude
from .provider import Provider, Script


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def said(settings: Settings) -> list[tuple[str, Any]]:
    """What the settings' model says to a question, as events."""
    source = LangChainSource(ChosenModel(settings=settings))
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
    source = LangChainSource(ChosenModel(settings=settings))
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


def test_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(
        "from tests.test_models import made\nno = lambda: 'nothing'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert text(said(Settings(model="own_models:made"))) == "mine"
    for name, told in {"no": "no chat model", "absent": "own_models:absent"}.items():
        with pytest.raises(ConfigError, match=told):
            make_model(("module", f"own_models:{name}"), Settings())
    sys.modules.pop("own_models")


def made() -> GenericFakeChatModel:
    return GenericFakeChatModel(messages=iter([AIMessage("mine")]))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (Settings(model="anthropic:claude"), "ANTHROPIC_API_KEY"),
        (Settings(model="nothing.like_it:make"), "provider:name"),
        (Settings(model="local:smollm2", fallback_model="local:smollm2"), "one is enough"),
        (Settings(model="local:smollm2", fallback_model="what"), "STREAM_FALLBACK_MODEL"),
    ],
)
def test_what_cannot_work_is_told_at_start(settings: Settings, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ChosenModel(settings=settings)


def test_the_embedded_model_says_that_it_cannot_use_tools() -> None:
    assert "too small to use tools" in str(tools_refusal(Settings(model="local:smollm2")))
    assert tools_refusal(Settings(model="ollama:llama3.2")) is None
    assert chosen(Settings()) == ("local", "smollm2")
