"""The service as a user starts it: gunicorn with its own configuration, on a free port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

from . import fork_server
from .sse import request
from .times import FACTOR, PATIENCE

ROOT = Path(__file__).parent.parent
_LISTENING = re.compile(r"Listening at: (http://127\.0\.0\.1:\d+)|Running on (http://[\w.:]+)")
_WORKER = re.compile(r"Booting worker with pid: (\d+)")

USUAL = {
    "FLASK_SECRET_KEY": "a key for tests",
    "FLASK_STREAM_STORE": "memory://",
    "FLASK_STREAM_CHECKPOINTS": "memory://",
    "FLASK_STREAM_START_LIMIT": "",
    "FLASK_STREAM_ADDRESS_LIMIT": "",
    "FLASK_STREAM_MAX_RUNS": "0",
    "FLASK_STREAM_MAX_RUNS_PER_ADDRESS": "0",
    "FLASK_STREAM_MAX_STREAMS": "0",
    "FLASK_STREAM_MAX_STREAMS_PER_ADDRESS": "0",
}


def environment(**settings: object) -> dict[str, str]:
    """This process's environment, with these `FLASK_STREAM_*` settings and no others.

    Logs are in memory and the key is given, where nothing else is said, so that nothing is left
    behind; nobody is limited.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FLASK_", "OPENAI_", "WEB_CONCURRENCY", "GUNICORN_"))
    }
    given = {
        name if name.isupper() else f"FLASK_STREAM_{name.upper()}": str(value)
        for name, value in settings.items()
    }
    return kept | USUAL | given | {"PYTHONUNBUFFERED": "1"}


def gunicorn(*arguments: str, app: str = "wsgi:app") -> list[str]:
    """The command line, on a free port."""
    return [
        *(sys.executable, "-m", "gunicorn", app, "--bind", "127.0.0.1:0"),
        *("--no-control-socket", *arguments),
    ]


class Server:
    """A server process that is ready; it is stopped by its own id. `log` is what it has printed.

    gunicorn is forked from a process that has imported the libraries, if that does what the
    command would do. With `fork=False` it is started by its command line, as a user starts it.
    """

    def __init__(
        self,
        command: list[str],
        env: dict[str, str],
        *,
        cwd: Path = ROOT,
        wait: float = 60 * FACTOR,
        fork: bool = True,
    ) -> None:
        self._lines: list[str] = []
        self._news = threading.Condition()
        self.process: subprocess.Popen[str] | fork_server.Forked
        if fork and fork_server.forkable(command, env, cwd):
            self.process = fork_server.start(command, env, cwd)
        else:
            self.process = subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        try:
            listening = self.wait_log(_LISTENING, wait)
            self.url = listening[1] or listening[2]
            self._wait_ready(wait)
        except BaseException:
            self.kill()
            raise

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()

    def _wait_ready(self, wait: float) -> None:
        until = time.monotonic() + wait
        while True:
            try:
                # The master listens before a worker is there: the answer says that one is.
                request("GET", f"{self.url}/runs/{'0' * 32}")
                return
            except OSError:
                if time.monotonic() > until or self.process.poll() is not None:
                    raise
                time.sleep(0.05)

    @property
    def log(self) -> str:
        return "".join(self._lines)

    @property
    def workers(self) -> list[int]:
        """The ids of all worker processes that were ever started."""
        return [int(pid) for pid in _WORKER.findall(self.log)]

    def wait_log(self, pattern: re.Pattern[str], timeout: float = PATIENCE) -> re.Match[str]:
        """The first match in what the server has printed."""
        with self._news:
            self._news.wait_for(
                lambda: pattern.search(self.log) or self.process.poll() is not None, timeout
            )
        match = pattern.search(self.log)
        assert match, f"no {pattern.pattern!r} in:\n{self.log}"
        return match

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Ask it to go, as a deploy does; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(timeout)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it, whatever it is doing."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # As Ctrl-C does: a worker that is asked to go by SIGTERM notices within a second.
        self.stop(signal.SIGINT)
