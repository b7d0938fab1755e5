"""A real PostgreSQL of Debian's package on a free port, to be stopped and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

#: Whom it may run as: it refuses to be root.
USER = "postgres"
PASSWORD = "se:cret/@ß"
_IN_URL = "se%3Acret%2F%40%C3%9F"


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`: the newest version's; None if none is installed."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


class Postgres:
    """A server process, ready; it is stopped by its own id and leaves nothing behind."""

    def __init__(self) -> None:
        there = binaries()
        assert there, "no PostgreSQL: apt-get install postgresql"
        self._bin = there
        self._folder = tempfile.TemporaryDirectory(prefix="postgres-")
        self._data = f"{self._folder.name}/data"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self._as: dict[str, Any] = {"cwd": self._folder.name}
        if os.geteuid() == 0:
            shutil.chown(self._folder.name, USER)
            self._as |= {"user": USER, "group": USER, "extra_groups": []}
        try:
            self._make()
            self.start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return f"postgres://stream:{_IN_URL}@127.0.0.1:{self.port}/postgres"

    def _make(self) -> None:
        password = Path(self._folder.name, "password")
        password.write_text(PASSWORD)
        password.chmod(0o644)
        words = ["-D", self._data, "-U", "stream", "-A", "scram-sha-256", "-E", "UTF8"]
        words += ["--locale", "C", "--no-sync", "--pwfile", str(password)]
        subprocess.run(
            [self._bin / "initdb", *words], check=True, capture_output=True, timeout=60, **self._as
        )

    def start(self) -> None:
        """Start it, on the port that it had before if it was started before."""
        self.port = self.port or _free_port()
        log = Path(self._folder.name, "log")
        settings = ["listen_addresses=127.0.0.1", "fsync=off", "max_connections=100"]
        with log.open("ab") as written:
            self._process = subprocess.Popen(
                [
                    *(str(self._bin / "postgres"), "-D", self._data, "-p", str(self.port)),
                    *("-k", self._folder.name),
                    *(word for setting in settings for word in ("-c", setting)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                **self._as,
            )
        until = time.monotonic() + 30
        ready = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            assert self._process.poll() is None, f"postgres ended:\n{log.read_text()}"
            assert time.monotonic() < until, f"postgres does not answer:\n{log.read_text()}"
            time.sleep(0.05)

    def halt(self) -> None:
        """End the process, with whoever is connected. Its files stay, for `start`."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def restart(self) -> None:
        self.halt()
        self.start()

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
