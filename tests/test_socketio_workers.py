"""Socket.IO with several workers: one is killed, one leaves, and an app's own events reach all."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from .provider import Provider, Script
from .proxy import Proxy
from .server import Server
from .sio import Client, Poll, Wire
from .sio_sites import TRANSPORTS, Opened, as_stream_events, two_of
from .sse import request
from .test_websocket import log_of, wait_for
from .valkey import Valkey
from .ws import places, text_of


class Switch(Proxy):
    """A way to one server, and then to another."""

    def __init__(self, server: Server) -> None:
        super().__init__(port_of(server))

    def to(self, server: Server) -> None:
        """Whoever comes from now on is sent there."""
        self._target = ("127.0.0.1", port_of(server))


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


@pytest.mark.parametrize(("opened", "whose"), [(Wire, "one"), (Poll, "two")])
def test_the_worker_is_killed_and_another_goes_on_byte_for_byte(
    provider: Provider, tmp_path: Path, opened: Opened, whose: str
) -> None:
    """The run's own worker (`one`), or that of the connection alone (`two`)."""
    provider.script = Script([f"word{n} " for n in range(40)], gated=True)
    with two_of(provider, tmp_path) as (one, two):
        asked = {"chain": "chat", "input": "kill"}
        url = (one if whose == "one" else two).url
        run = request("POST", f"{url}/runs", json=asked).json()["run"]
        with opened(one.url) as client:
            client.connect()
            client.emit("stream_resume", {"run": run, "after": 0})
            provider.allow(10)
            seen = [client.event() for _ in range(10)]
            os.kill(one.workers[-1], signal.SIGKILL)
            assert client.end() == 1006
        got = client.packets
        assert places(seen) == list(range(1, 11))
        with opened(two.url) as client:
            client.connect()
            client.emit("stream_resume", {"after": f"{run}:{len(got)}"})
            provider.allow(30)
            client.events("error" if whose == "one" else "end")
            got += client.packets
        with opened(two.url) as client:
            client.connect()
            client.emit("stream_resume", {"after": f"{run}:0"})
            whole = client.events("error" if whose == "one" else "end")
            assert client.packets == got
        if whose == "one":
            assert whole[-1]["data"]["code"] == "worker_lost"
        else:
            full = "".join(f"word{n} " for n in range(40))
            assert whole[-1]["data"] == {
                "full_response": full, "status": "done", "finish_reason": "stop", "run": run,
            }  # fmt: skip
    assert len(provider.calls) == 1


def test_a_worker_that_leaves_sends_its_clients_away_and_they_go_on_elsewhere(
    provider: Provider, tmp_path: Path
) -> None:
    words = [f"word{n} " for n in range(20)]
    provider.script = Script(words, gated=True)
    with ExitStack() as stack:
        stays, leaves = stack.enter_context(two_of(provider, tmp_path))
        ways = [stack.enter_context(Switch(leaves)) for _ in TRANSPORTS]
        clients = [
            stack.enter_context(Client(way.url, *names, reconnection=True))
            for way, names in zip(ways, TRANSPORTS, strict=True)
        ]
        idle = [stack.enter_context(opened(leaves.url)) for opened in (Wire, Poll) * 3]
        for one in idle:
            one.connect()
        run = clients[0].ask("deploy")
        for client in clients[1:]:
            assert client.call("stream_resume", {"run": run, "after": 0}) == {"run": run}
        provider.allow(5)
        for client in clients:
            client.events(run, least=7)
        for way in ways:
            way.to(stays)
        began = time.monotonic()
        leaves.process.send_signal(signal.SIGTERM)
        with ThreadPoolExecutor(len(idle)) as pool:
            ends = [end.result() for end in [pool.submit(one.end) for one in idle]]
        assert ends == [1000, 1006] * 3  # a WebSocket is closed; who polls is told 400
        for client in clients:
            client.wait(lambda client=client: client.connects == 2)  # type: ignore[misc]
        assert time.monotonic() - began < 6
        provider.allow(15)
        whole = log_of(stays, run)
        for client in clients:
            assert client.events(run) == as_stream_events(whole)
        assert text_of(whole) == "".join(words)
        assert leaves.stop() == 0
    assert len(provider.calls) == 1


# Many machines


def test_with_valkey_an_apps_own_events_reach_the_clients_of_all_workers(
    provider: Provider, tmp_path: Path
) -> None:
    provider.script = Script(["a", "b", "c"], gated=True)
    with ExitStack() as stack:
        valkey = stack.enter_context(Valkey())
        one, two = stack.enter_context(two_of(provider, tmp_path, store=valkey.url))
        here = stack.enter_context(Client(one.url, "websocket"))
        there = stack.enter_context(Client(two.url, "polling"))

        def reaches() -> bool:
            number = str(len(here.data_of("news")))
            assert request("POST", f"{one.url}/emit/news?text={number}").status == 200
            here.wait(lambda: {"text": number} in here.data_of("news"))
            return bool(there.data_of("news"))

        wait_for(reaches)
        for text in ("one", "two"):
            assert request("POST", f"{two.url}/emit/other?text={text}").status == 200
            for client in (here, there):
                client.wait(lambda c=client, t=text: {"text": t} in c.data_of("other"))  # type: ignore[misc]
        # Each comes once.
        assert sorted(said["text"] for said in here.data_of("other")) == ["one", "two"]
        assert sorted(said["text"] for said in there.data_of("other")) == ["one", "two"]
        # A run of one is read on at the other.
        run = here.ask("What?")
        provider.allow()
        here.events(run, least=3)
        assert there.call("stream_resume", {"run": run, "after": 2}) == {"run": run}
        provider.allow(2)
        assert there.events(run, after=2) == here.events(run)[2:]
        assert there.events(run, after=2)[-1]["data"]["full_response"] == "abc"
    assert len(provider.calls) == 1
