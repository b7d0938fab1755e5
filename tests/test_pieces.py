"""A document in pieces, over WebSocket and Socket.IO: each is acknowledged and summed up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from . import sio
from .people import NOBODY, Sent, sealed
from .provider import JSON, Provider, Script
from .server import Server, environment, gunicorn
from .ws import Socket

PIECES = [f"Piece {number} tells of the number {number}." for number in range(1, 5)]
SOMEBODY = {"Cookie": f"stream_session={sealed('p' * 32, 'session')}"}


def model(request: JSON) -> Script:
    """Sums up a piece by its number, and all of them by what has been said of each."""
    said = str(request["messages"][-1]["content"])
    if "Summary of" in said:
        numbers = [part.split(".")[0] for part in said.split("Summary of ")[1:]]
        return Script(["All of ", ", ".join(numbers), "."])
    number = next(n for n, piece in enumerate(PIECES, 1) if piece in said)
    return Script(["Summary of ", str(number), "."])


@pytest.fixture
def summaries(provider: Provider, tmp_path: Path) -> Iterator[Server]:
    """The service's own summary, on the provider."""
    env = environment(
        model="openai:scripted",
        store=f"sqlite:///{tmp_path}/runs.db",
        OPENAI_BASE_URL=provider.url,
        OPENAI_API_KEY="test",
    )
    provider.script = model
    with Server(gunicorn(), env) as server:
        yield server


class Refused(Exception):
    """What was asked for is not done, and why."""


class Wire:
    """One connection: what it is sent, and what it tells of each run."""

    def __init__(self, send: Callable[[JSON], None], receive: Callable[[], JSON]) -> None:
        self.send = send
        self._receive = receive

    def next(self) -> JSON:
        """The next event of any run."""
        event = self._receive()
        if event["type"] == "error":
            raise Refused(event["data"])
        return event

    def run(self) -> list[JSON]:
        """All that the next run has to say, from its start to its end."""
        run, told = "", list[JSON]()
        while not told or told[-1]["type"] != "end":
            event = self.next()
            run = run or event["data"]["run"]
            assert event["id"] == f"{run}:{len(told) + 1}"
            told.append(event)
        return told


@contextmanager
def by_websocket(server: Server, who: Sent) -> Iterator[Wire]:
    with Socket(f"{server.url}/ws/summary", headers=who) as socket:
        yield Wire(lambda message: socket.ask(**message), socket.event)


@contextmanager
def by_socketio(server: Server, who: Sent) -> Iterator[Wire]:
    with sio.Wire(server.url, headers=who) as wire:
        wire.connect()
        sent: list[int] = []

        def send(message: JSON) -> None:
            sent.append(wire.emit("stream_question", {"chain": "summary"} | message))

        yield Wire(send, wire.event)
        for number in sent:
            told = wire.acknowledged(number)
            assert told.keys() in ({"run", "conversation"}, {"error", "status", "field"})


Opened = Callable[[Server, Sent], AbstractContextManager[Wire]]
wires = pytest.mark.parametrize("opened", [by_websocket, by_socketio])


def text(told: list[JSON]) -> str:
    return "".join(event["data"]["content"] for event in told if event["type"] == "chunk")


def progress(told: list[JSON]) -> list[str]:
    return [event["data"]["label"] for event in told if event["type"] == "progress"]


@wires
@pytest.mark.parametrize("who", [NOBODY, SOMEBODY], ids=["anyone", "somebody"])
def test_each_piece_is_summed_up_and_at_the_end_all_of_them(
    summaries: Server, provider: Provider, opened: Opened, who: Sent
) -> None:
    with opened(summaries, who) as wire:
        for number, piece in enumerate(PIECES, 1):
            wire.send({"input": {"piece": piece}})
            told = wire.run()
            assert told[0]["type"] == "start"
            assert progress(told)[0] == "Received"
            assert text(told) == f"Summary of {number}."
            assert len(provider.calls) == number
        wire.send({"input": {"finish": True}})
        assert text(wire.run()) == "All of 1, 2, 3, 4."
        assert len(provider.calls) == len(PIECES) + 1


@wires
def test_pieces_that_do_not_wait_are_taken_in_their_order(
    summaries: Server, provider: Provider, opened: Opened
) -> None:
    with opened(summaries, SOMEBODY) as wire:
        for piece in PIECES:
            wire.send({"input": {"piece": piece}, "conversation": "a" * 32})
        wire.send({"input": {"finish": True}, "conversation": "a" * 32})
        runs: dict[str, list[JSON]] = {}
        while len([told for told in runs.values() if told[-1]["type"] == "end"]) <= len(PIECES):
            event = wire.next()
            run, _, seq = str(event["id"]).partition(":")
            told = runs.setdefault(run, [])
            told.append(event)
            assert len(told) == int(seq)
        said = [text(told) for told in runs.values()]
        assert said == [f"Summary of {n}." for n in range(1, 5)] + ["All of 1, 2, 3, 4."]
        assert len(provider.calls) == len(PIECES) + 1


@wires
def test_a_document_goes_on_over_another_connection(
    summaries: Server, provider: Provider, opened: Opened
) -> None:
    for piece in PIECES:
        with opened(summaries, SOMEBODY) as wire:
            wire.send({"input": {"piece": piece}, "session_id": "my document"})
            wire.run()
    with opened(summaries, SOMEBODY) as wire:
        wire.send({"input": {"finish": True}, "session_id": "my document"})
        assert text(wire.run()) == "All of 1, 2, 3, 4."
    assert len(provider.calls) == len(PIECES) + 1


@wires
def test_an_end_of_no_pieces_is_refused_before_anything_is_started(
    summaries: Server, provider: Provider, opened: Opened
) -> None:
    with opened(summaries, SOMEBODY) as wire:
        wire.send({"input": {"finish": True}})
        with pytest.raises(Refused) as refused:
            wire.next()
        told = refused.value.args[0]
        assert told["status"] == 400
        assert told["field"] == "input.finish"
        wire.send({"input": {"piece": PIECES[0]}})
        assert text(wire.run()) == "Summary of 1."
    assert len(provider.calls) == 1


def test_a_text_may_have_more_pieces_than_a_talk_has_turns(
    summaries: Server, provider: Provider
) -> None:
    provider.script = many
    with by_websocket(summaries, SOMEBODY) as wire:
        for number in range(60):
            wire.send({"input": {"piece": f"<{number}>"}})
            assert text(wire.run()) == f"[{number}]"
        wire.send({"input": {"finish": True}})
        wire.run()
    asked = "".join(str(call.json["messages"][-1]["content"]) for call in provider.calls[60:])
    assert re.findall(r"\[(\d+)\]", asked) == [str(number) for number in range(60)]


def many(request: JSON) -> Script:
    number = re.search(r"<(\d+)>", str(request["messages"][-1]["content"]))
    return Script([f"[{number[1]}]" if number else "All of them."])
