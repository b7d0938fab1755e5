"""What the real `ChatOpenAI` makes of each script: the tokens, and the name of every failure."""

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.exceptions import ModelError
from langchain_core.messages import AIMessageChunk, BaseMessageChunk
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.provider import CANARY, JSON, Fault, Provider, Script
from tests.sse import Stream, request


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


def chat(provider: Provider, **options: Any) -> ChatOpenAI:
    options.setdefault("max_retries", 0)
    options.setdefault("stream_usage", True)
    return ChatOpenAI(base_url=provider.url, model="scripted", api_key=SecretStr("test"), **options)


def ask(provider: Provider, question: str = "hi", **options: Any) -> AIMessageChunk:
    """Everything that was streamed, added up."""
    whole: BaseMessageChunk | None = None
    for chunk in chat(provider, **options).stream(question):
        whole = chunk if whole is None else whole + chunk
    assert isinstance(whole, AIMessageChunk)
    return whole


def post(provider: Provider, **body: Any) -> Stream:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]} | body
    headers = {"Content-Type": "application/json"}
    url = provider.url + "/chat/completions"
    return Stream(url, method="POST", headers=headers, body=json.dumps(body).encode())


class TestSaying:
    def test_tokens_one_by_one_then_the_finish_and_the_usage(self, provider: Provider) -> None:
        provider.script = Script(["a", "b", "c"])
        chunks = list(chat(provider).stream("one two"))
        assert [chunk.content for chunk in chunks if chunk.content] == ["a", "b", "c"]
        whole = ask(provider)
        assert whole.response_metadata["finish_reason"] == "stop"
        assert whole.usage_metadata is not None
        assert whole.usage_metadata["output_tokens"] == 3

    def test_the_same_without_streaming(self, provider: Provider) -> None:
        provider.script = Script(["a", "b"], tools=[("add", {"x": 1})])
        message = chat(provider).invoke("hi")
        assert message.content == "ab"
        assert message.tool_calls[0]["args"] == {"x": 1}
        assert not provider.calls[0].json.get("stream")

    def test_tool_calls_add_up(self, provider: Provider) -> None:
        arguments = {"text": 'quoted "é"\n', "list": [1, 2, 3]}
        provider.script = Script([], tools=[("add", arguments), ("now", {})])
        whole = ask(provider)
        assert [(call["name"], call["args"], call["id"]) for call in whole.tool_calls] == [
            ("add", arguments, "call_add_0"),
            ("now", {}, "call_now_1"),
        ]
        assert whole.response_metadata["finish_reason"] == "tool_calls"

    def test_the_wire_is_openais(self, provider: Provider) -> None:
        provider.script = Script(["a"], reasoning=["hm"], tools=[("add", {})])
        with post(provider, stream_options={"include_usage": True}) as stream:
            *chunks, done = [event.data for event in stream.events()]
        assert (done, stream.ended) == ("[DONE]", "clean")
        *parts, finish, usage = [json.loads(chunk) for chunk in chunks]
        function = {"name": "add", "arguments": ""}
        opening = {"index": 0, "id": "call_add_0", "type": "function", "function": function}
        assert [part["choices"][0]["delta"] for part in parts] == [
            {"role": "assistant", "content": "", "refusal": None},
            {"reasoning_content": "hm"},
            {"content": "a"},
            {"tool_calls": [opening]},
            {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        ]
        assert finish["choices"][0]["finish_reason"] == "tool_calls"
        assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 4)

    def test_a_question_chooses_its_script_before_a_function_does(self, provider: Provider) -> None:
        def echo(request: JSON) -> Script:
            return Script([request["messages"][-1]["content"]])

        provider.script = echo
        provider.scripts["known"] = Script(["by heart"])
        assert ask(provider, "known").content == "by heart"
        assert ask(provider, "unknown").content == "unknown"
        assert [call.question for call in provider.calls] == ["known", "unknown"]
        assert provider.calls[0].headers["authorization"] == "Bearer test"


class TestHoldingBack:
    def test_a_gate_lets_exactly_so_many_through(self, provider: Provider) -> None:
        provider.script = Script(["a", "b", "c"], gated=True)
        stream = chat(provider).stream("hi")
        assert next(stream).content == ""
        for count, token in enumerate("abc", start=1):
            provider.allow()
            assert next(stream).content == token
            assert provider.calls[0].sent == count
        list(stream)
        assert provider.calls[0].finished

    def test_a_stall_lasts_until_its_release(self, provider: Provider) -> None:
        provider.script = Script(["a", "b"], stall=1)
        stream = chat(provider).stream("hi")
        assert [next(stream).content, next(stream).content] == ["", "a"]
        provider.release()
        assert "".join(str(chunk.content) for chunk in stream) == "b"

    @pytest.mark.parametrize(
        "script",
        [Script(stall=1), Script(gated=True), Script(itertools.repeat("x"), delay=0.001)],
        ids=["stalled", "gated", "talking"],
    )
    def test_a_client_that_leaves_is_noticed(self, provider: Provider, script: Script) -> None:
        provider.script = script
        provider.allow()
        stream = chat(provider).stream("hi")
        assert next(stream).content == ""
        left = time.monotonic()
        stream.close()  # type: ignore[attr-defined]
        [call] = provider.calls
        assert call.wait_closed()
        assert call.closed_at is not None
        assert call.closed_at >= left
        assert not call.finished

    @pytest.mark.parametrize("leave", [Stream.close, Stream.reset])
    def test_fin_and_rst_are_noticed(self, provider: Provider, leave: Any) -> None:
        provider.script = Script(stall=0)
        leave(post(provider))
        assert provider.calls[0].wait_closed()

    def test_a_mute_provider_says_not_even_a_status(self, provider: Provider) -> None:
        provider.script = Script(mute=True)
        with pytest.raises(openai.APITimeoutError):
            ask(provider, timeout=0.05)
        assert provider.wait_calls(1)
        assert provider.calls[0].wait_closed()

    def test_hundreds_at_once(self, provider: Provider) -> None:
        provider.script = Script(["x"] * 20, stall=10)
        streams = [post(provider) for _ in range(200)]
        assert provider.wait_calls(200)
        assert all(call.wait_sent(10) for call in provider.calls)
        assert provider.connections == 200
        provider.release()
        for stream in streams:
            with stream:
                assert [event.data for event in stream.events()][-1] == "[DONE]"

    def test_stopping_ends_a_stall_and_leaves_no_thread(self) -> None:
        before = threading.active_count()
        with Provider(Script(stall=0)) as provider, post(provider) as stream:
            assert stream.next_event() is not None
            provider.stop()
            assert stream.next_event() is None
            assert stream.ended == "cut"
        assert threading.active_count() == before


class TestFailing:
    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, openai.BadRequestError),
            (401, openai.AuthenticationError),
            (429, openai.RateLimitError),
            (500, openai.InternalServerError),
            (503, openai.InternalServerError),
        ],
    )
    def test_a_refusal(
        self, provider: Provider, status: int, error: type[openai.APIStatusError]
    ) -> None:
        provider.script = Script(status=status, retry_after="7")
        with pytest.raises(error, match=CANARY) as caught:
            ask(provider)
        assert isinstance(caught.value, ModelError)
        assert caught.value.response.headers["retry-after"] == "7"
        assert len(provider.calls) == 1

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            ("rst", openai.APIConnectionError),
            ("fin", openai.APIConnectionError),
            ("error", openai.APIError),
            ("json", json.JSONDecodeError),
            ("utf8", UnicodeDecodeError),
        ],
    )
    def test_a_fault_in_mid_stream_comes_after_the_tokens(
        self, provider: Provider, fault: Fault, error: type[Exception]
    ) -> None:
        provider.script = Script(["a", "b", "c"], fault=fault, after=2)
        said: list[Any] = []
        with pytest.raises(error) as caught:
            said.extend(chunk.content for chunk in chat(provider, max_retries=2).stream("hi"))
        assert isinstance(caught.value, ModelError) == (fault in ("rst", "fin"))
        assert provider.calls[0].sent == 2
        assert len(provider.calls) == 1

    def test_a_body_that_ends_too_soon_is_no_error_but_has_no_reason(
        self, provider: Provider
    ) -> None:
        provider.script = Script(["a", "b"], fault="short", after=1)
        whole = ask(provider)
        assert whole.content == "a"
        assert "finish_reason" not in whole.response_metadata

    def test_a_page_instead_of_a_stream(self, provider: Provider) -> None:
        provider.script = Script(fault="html")
        with pytest.raises(ValueError, match="No generation chunks were returned"):
            ask(provider)

    def test_a_read_that_takes_too_long(self, provider: Provider) -> None:
        provider.script = Script(stall=1)
        with pytest.raises(openai.APITimeoutError):
            ask(provider, timeout=0.05)

    def test_nobody_listens(self, provider: Provider) -> None:
        with socket.socket() as bound:  # bound but not listening: nobody else can take the port
            bound.bind(("127.0.0.1", 0))
            provider.url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
            with pytest.raises(openai.APIConnectionError):
                ask(provider)

    def test_two_retries_by_default_before_the_first_byte(self, provider: Provider) -> None:
        provider.script = Script(status=429, retry_after="0.01")
        with pytest.raises(openai.RateLimitError):
            ask(provider, max_retries=None)
        assert len(provider.calls) == 3

    def test_its_own_mistakes_are_raised_at_the_end(self) -> None:
        def wrong(request: JSON) -> Script:
            raise LookupError(request)

        with (
            pytest.raises(RuntimeError),
            Provider(wrong) as provider,
            pytest.raises(ConnectionError),
        ):
            request("POST", provider.url + "/chat/completions", json={"messages": []})
