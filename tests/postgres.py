"""A real PostgreSQL server of Debian's package on a free port, which tests stop and restart."""

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

#: The user that runs the server, because PostgreSQL refuses to run as root.
USER = "postgres"
PASSWORD = "se:cret/@ß"
_IN_URL = "se%3Acret%2F%40%C3%9F"


def binaries() -> Path | None:
    """Return the folder of the newest `initdb` and `postgres`, or None if none is installed."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


class Postgres:
    """A running server. `stop` ends its process and removes its files."""

    def __init__(self) -> None:
        folder = binaries()
        assert folder, "no PostgreSQL: apt-get install postgresql"
        self._bin = folder
        self._folder = tempfile.TemporaryDirectory(prefix="postgres-")
        self._data = f"{self._folder.name}/data"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self._process_options: dict[str, Any] = {"cwd": self._folder.name}
        if os.geteuid() == 0:
            shutil.chown(self._folder.name, USER)
            self._process_options |= {"user": USER, "group": USER, "extra_groups": []}
        try:
            self._init_database()
            self.start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return f"postgres://stream:{_IN_URL}@127.0.0.1:{self.port}/postgres"

    def _init_database(self) -> None:
        password = Path(self._folder.name, "password")
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["-D", self._data, "-U", "stream", "-A", "scram-sha-256", "-E", "UTF8"]
        options += ["--locale", "C", "--no-sync", "--pwfile", str(password)]
        subprocess.run(
            [self._bin / "initdb", *options],
            check=True,
            capture_output=True,
            timeout=60,
            **self._process_options,
        )

    def start(self) -> None:
        """Start the server, on its former port if it was started before."""
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
                **self._process_options,
            )
        until = time.monotonic() + 30
        ready = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            assert self._process.poll() is None, f"postgres ended:\n{log.read_text()}"
            assert time.monotonic() < until, f"postgres does not answer:\n{log.read_text()}"
            time.sleep(0.05)

    def halt(self) -> None:
        """End the process and its connections, but keep its files for `start`."""
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
