"""How a process hears of runs that live elsewhere: all of it over one connection to Redis.

Only the thread that waits for news touches the connection: a TLS connection cannot be read by
one thread while another writes it, nor one socket be read by two greenlets. The others say what
they want by way of a set, and ring a bell that the waiting thread listens to as well.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from .base import News

#: Seconds of silence after which the server is asked whether it is still there.
SILENCE = 5.0


class NewsFeed:
    """Hears of watched runs, and of all runs to be cancelled.

    `connect` makes a new connection, not yet connected. `pending` tells which runs are to be
    cancelled: asked for after each (re)connection, because what was published before is lost.
    """

    def __init__(
        self, connect: Callable[[], Any], prefix: str, pending: Callable[[], Iterable[str]]
    ) -> None:
        self._connect = connect
        self._pending = pending
        self._news_of = f"{prefix}news:"
        self.cancels = f"{prefix}cancel"
        self._watched: set[str] = set()
        self._changes: deque[str] = deque()
        self._bell: socket.socket | None = None
        self._turn = threading.Lock()
        self._closed = False
        # From here on: the waiting thread's own.
        self._hears: socket.socket | None = None
        self._connection: Any = None
        self._subscribed: set[str] = set()
        self._heard = 0.0
        self._asked = False

    def watch(self, run: str) -> None:
        self._watched.add(run)
        self._change(run)

    def unwatch(self, run: str) -> None:
        self._watched.discard(run)
        self._change(run)

    def _change(self, run: str) -> None:
        self._changes.append(run)
        self._ring()

    def _ring(self) -> None:
        # Not there yet: whoever comes to wait looks for changes first. Full: it is ringing.
        if self._bell is not None:
            with suppress(OSError):
                self._bell.send(b"\0")

    def wait(self, timeout: float) -> list[News]:
        """News, as soon as there are some. Raises RedisError or OSError without a server."""
        until = time.monotonic() + timeout
        with self._turn:
            if self._bell is None:
                # Not before the first use: a fork would share it.
                self._bell, self._hears = socket.socketpair()
                self._bell.setblocking(False)
                self._hears.setblocking(False)
            lost = False
            while not self._closed:
                was_connected = self._connection is not None
                try:
                    news = self._collect()
                    left = until - time.monotonic()
                    if news or left <= 0:
                        return list(dict.fromkeys(news))
                    self._sleep(min(left, SILENCE / 5))
                except BaseException as error:
                    self._drop()
                    if lost or not was_connected or not isinstance(error, RedisError | OSError):
                        raise
                    # A server that was restarted is there again: one try before saying so.
                    lost = True
            return []

    def _collect(self) -> list[News]:
        if self._connection is None:
            self._open()
        news = self._subscribe()
        while self._connection.can_read(0):
            kind, channel, data = (*self._connection.read_response(), None)[:3]
            self._heard, self._asked = time.monotonic(), False
            channel = channel.decode()
            if kind == b"message" and channel == self.cancels:
                news.append(News(data.decode(), cancel=True))
            elif kind == b"subscribe" and channel == self.cancels:
                news += [News(run, cancel=True) for run in self._pending()]
            elif kind in (b"message", b"subscribe"):
                # Subscribed means that from now on nothing is missed: time to look once.
                news.append(News(channel.removeprefix(self._news_of), cancel=False))
        self._check()
        return news

    def _open(self) -> None:
        connection = self._connect()
        try:
            connection.connect()
            connection.send_command("SUBSCRIBE", self.cancels, check_health=False)
        except BaseException:
            connection.disconnect()
            raise
        self._connection = connection
        self._heard, self._asked = time.monotonic(), False
        self._changes.extend(self._watched.copy())

    def _subscribe(self) -> list[News]:
        """Tell the server of runs that are watched, or no longer; news of those it knows."""
        # Each run once, as it is now: a change that comes meanwhile is another change.
        runs = {self._changes.popleft() for _ in range(len(self._changes))}
        wanted = runs & self._watched
        new = wanted - self._subscribed
        gone = (runs & self._subscribed) - wanted
        for command, changed in (("SUBSCRIBE", new), ("UNSUBSCRIBE", gone)):
            if changed:
                channels = [self._news_of + run for run in changed]
                self._connection.send_command(command, *channels, check_health=False)
        known = wanted & self._subscribed
        self._subscribed = (self._subscribed | new) - gone
        return [News(run, cancel=False) for run in known]

    def _check(self) -> None:
        """Find out whether a server that says nothing is still there."""
        silent = time.monotonic() - self._heard
        if silent > SILENCE and not self._asked:
            self._connection.send_command("PING", check_health=False)
            self._asked = True
        elif silent > 2 * SILENCE:
            raise ConnectionError("the server has fallen silent")

    def _sleep(self, timeout: float) -> None:
        assert self._hears is not None
        # Not select(), which cannot take the descriptors of a worker with 1,024 streams.
        poll = select.poll()
        poll.register(self._hears, select.POLLIN)
        poll.register(self._connection._sock, select.POLLIN)
        poll.poll(timeout * 1000)
        with suppress(BlockingIOError):
            self._hears.recv(4096)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._subscribed = set()
        if connection is not None:
            connection.disconnect()

    def close(self) -> None:
        """End the wait, if somebody waits, and give back the connection."""
        self._closed = True
        self._ring()
        with self._turn:
            self._drop()
            for end in (self._bell, self._hears):
                if end is not None:
                    end.close()
