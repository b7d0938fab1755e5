"""News of runs in other processes, received over one connection to Redis.

Only the thread that waits for news uses the connection. A TLS connection cannot be read by one
thread while another thread writes to it, and a socket cannot be read by two greenlets. Other
threads queue their changes and wake the waiting thread through a socket pair.
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

#: Seconds without data after which the connection is checked with a PING.
SILENCE = 5.0


class NewsFeed:
    """Receives news of watched runs, and of all runs to be cancelled.

    `connect` returns a new connection object that is not connected yet. `pending_cancels` returns
    the runs that are to be cancelled. It is called after each (re)connection, because messages
    that were published before are lost.
    """

    def __init__(
        self, connect: Callable[[], Any], prefix: str, pending_cancels: Callable[[], Iterable[str]]
    ) -> None:
        self._connect = connect
        self._pending_cancels = pending_cancels
        self._channel_prefix = f"{prefix}news:"
        self.cancels = f"{prefix}cancel"
        self._watched: set[str] = set()
        self._changes: deque[str] = deque()
        self._wake_sender: socket.socket | None = None
        self._wait_lock = threading.Lock()
        self._closed = False
        # Only the waiting thread uses the attributes below.
        self._wake_receiver: socket.socket | None = None
        self._connection: Any = None
        self._subscribed: set[str] = set()
        self._last_received = 0.0
        self._ping_sent = False

    def watch(self, run: str) -> None:
        self._watched.add(run)
        self._queue_change(run)

    def unwatch(self, run: str) -> None:
        self._watched.discard(run)
        self._queue_change(run)

    def _queue_change(self, run: str) -> None:
        self._changes.append(run)
        self._wake()

    def _wake(self) -> None:
        # Without a socket pair nobody waits yet, and `wait` begins by looking for changes. If its
        # buffer is full, the waiting thread is already woken.
        if self._wake_sender is not None:
            with suppress(OSError):
                self._wake_sender.send(b"\0")

    def wait(self, timeout: float) -> list[News]:
        """Return news, as soon as there is any. Raise RedisError or OSError without a server."""
        until = time.monotonic() + timeout
        with self._wait_lock:
            if self._wake_sender is None:
                # Created at the first use, because processes would share it after a fork.
                self._wake_sender, self._wake_receiver = socket.socketpair()
                self._wake_sender.setblocking(False)
                self._wake_receiver.setblocking(False)
            retried = False
            while not self._closed:
                was_connected = self._connection is not None
                try:
                    news = self._receive()
                    left = until - time.monotonic()
                    if news or left <= 0:
                        return list(dict.fromkeys(news))
                    self._wait_for_data(min(left, SILENCE / 5))
                except BaseException as error:
                    self._disconnect()
                    if retried or not was_connected or not isinstance(error, RedisError | OSError):
                        raise
                    # The server may just have been restarted, so try to connect once more.
                    retried = True
            return []

    def _receive(self) -> list[News]:
        if self._connection is None:
            self._open()
        news = self._subscribe()
        while self._connection.can_read(0):
            kind, channel, data = (*self._connection.read_response(), None)[:3]
            self._last_received, self._ping_sent = time.monotonic(), False
            channel = channel.decode()
            if kind == b"message" and channel == self.cancels:
                news.append(News(data.decode(), cancel=True))
            elif kind == b"subscribe" and channel == self.cancels:
                news += [News(run, cancel=True) for run in self._pending_cancels()]
            elif kind in (b"message", b"subscribe"):
                # Nothing is missed after the subscription; changes before it need a report.
                news.append(News(channel.removeprefix(self._channel_prefix), cancel=False))
        self._check_silence()
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
        self._last_received, self._ping_sent = time.monotonic(), False
        self._changes.extend(self._watched.copy())

    def _subscribe(self) -> list[News]:
        """Send changed subscriptions; return news of runs that were already subscribed."""
        # Each run once, in its current state. Changes made from now on are handled next time.
        runs = {self._changes.popleft() for _ in range(len(self._changes))}
        wanted = runs & self._watched
        new = wanted - self._subscribed
        unwanted = (runs & self._subscribed) - wanted
        for command, changed in (("SUBSCRIBE", new), ("UNSUBSCRIBE", unwanted)):
            if changed:
                channels = [self._channel_prefix + run for run in changed]
                self._connection.send_command(command, *channels, check_health=False)
        known = wanted & self._subscribed
        self._subscribed = (self._subscribed | new) - unwanted
        return [News(run, cancel=False) for run in known]

    def _check_silence(self) -> None:
        """Send a PING to a silent server; raise ConnectionError if it stays silent."""
        silent = time.monotonic() - self._last_received
        if silent > SILENCE and not self._ping_sent:
            self._connection.send_command("PING", check_health=False)
            self._ping_sent = True
        elif silent > 2 * SILENCE:
            raise ConnectionError("the server does not respond")

    def _wait_for_data(self, timeout: float) -> None:
        assert self._wake_receiver is not None
        # select() is limited to 1,024 file descriptors, and a worker may have more.
        poll = select.poll()
        poll.register(self._wake_receiver, select.POLLIN)
        poll.register(self._connection._sock, select.POLLIN)
        poll.poll(timeout * 1000)
        with suppress(BlockingIOError):
            self._wake_receiver.recv(4096)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._subscribed = set()
        if connection is not None:
            connection.disconnect()

    def close(self) -> None:
        """End a wait that is under way, and close the connection."""
        self._closed = True
        self._wake()
        with self._wait_lock:
            self._disconnect()
            for end in (self._wake_sender, self._wake_receiver):
                if end is not None:
                    end.close()
