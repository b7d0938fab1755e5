"""A process that has imported everything and forks a gunicorn for each test that asks.

Importing the libraries costs a server more than two seconds of CPU. They are imported once here,
in the order of `gunicorn.conf.py`: gunicorn, the patching, then the rest. Each fork then does
what `python -m gunicorn` does: it has the environment, the folder, the arguments and the output
that it was given, reads its configuration, and forks its workers.

`start` is the test's side. `python -m tests.fork_server FD` is the process; it ends when the
socket FD is closed. It reaps its forks and reports their exit statuses, as they are not children
of the test.
"""

from __future__ import annotations

import _socket
import array
import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
#: What a server with any settings may import. The configuration file and the apps are left out:
#: they read the environment as they are imported.
MODULES = (
    *("flask_stream.app", "flask_stream.web.routes", "flask_stream.web.openapi"),
    *("flask_stream.transports.websocket", "flask_stream.transports.socketio"),
    *("flask_stream.stores.memory", "flask_stream.stores.sqlite", "flask_stream.stores.redis"),
    *("flask_stream.chains.local_model", "flask_stream.chains.agent"),
    *("flask_stream.checkpoints.memory", "flask_stream.checkpoints.sqlite"),
    *("flask_stream.checkpoints.redis", "flask_stream.sources.langgraph"),
    *("gunicorn.workers.ggevent", "langchain_openai", "langchain.agents", "langgraph.graph"),
    *("limits", "limits.strategies", "redis", "jwt", "cryptography.hazmat.primitives.asymmetric"),
    *("flask_socketio", "engineio.async_drivers.gevent", "tests.provider"),
)
#: Commands that start otherwise are not forked, nor are those whose environment changes what
#: Python itself does.
COMMAND = [sys.executable, "-m", "gunicorn"]
_OWN = "PYTHONUNBUFFERED"

_MESSAGE = 1 << 20


class Forked:
    """A forked process, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, status: int, stdout: IO[str]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout: IO[str] | None = stdout
        self._status = status
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        return self._reap(0)

    def wait(self, timeout: float | None = None) -> int:
        if (code := self._reap(timeout)) is None:
            raise subprocess.TimeoutExpired(COMMAND, timeout or 0)
        return code

    def _reap(self, timeout: float | None) -> int | None:
        until = None if timeout is None else time.monotonic() + timeout
        # Without the lock while it waits: another thread may send a signal meanwhile.
        while self.returncode is None:
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            rest = None if until is None else max(0, until - time.monotonic())
            step = 0.1 if rest is None else min(rest, 0.1)
            with self._lock:
                if self.returncode is None and poll.poll(0):
                    self.returncode = int(os.read(self._status, 64) or b"-9")
                    os.close(self._status)
                    break
            if rest == 0:
                break
            poll.poll(step * 1000)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def forkable(command: list[str], env: dict[str, str], cwd: Path) -> bool:
    """Return whether a fork does what the command would do."""
    return (
        command[:3] == COMMAND
        and cwd == ROOT
        and not {"-c", "--config", "-k", "--worker-class", "--preload"} & set(command)
        and not _interpreter(env) - _interpreter(os.environ)
    )


def _interpreter(env: os._Environ[str] | dict[str, str]) -> set[tuple[str, str]]:
    return {item for item in env.items() if item[0].startswith(("PYTHON", "LD_"))} - {(_OWN, "1")}


class _ForkServer:
    """The one process of this test process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
                cwd=ROOT,
                env=os.environ | {_OWN: "1"},
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self.stop)

    def fork(self, command: list[str], env: dict[str, str], cwd: Path) -> Forked:
        message = json.dumps([command[3:], env, str(cwd)]).encode()
        output, theirs = os.pipe()
        status, their_status = os.pipe()
        try:
            socket.send_fds(self._socket, [message], [theirs, their_status])
        finally:
            os.close(theirs)
            os.close(their_status)
        pid = int(os.read(status, 64) or b"0")
        assert pid, "the fork server has ended"
        return Forked(pid, status, os.fdopen(output))

    def stop(self) -> None:
        self._socket.close()
        self.process.wait()


_lock = threading.Lock()
_server: _ForkServer | None = None


def start(command: list[str], env: dict[str, str], cwd: Path) -> Forked:
    """Start a gunicorn whose output, errors included, is its `stdout`."""
    global _server
    with _lock:
        _server = _server or _ForkServer()
        return _server.fork(command, env, cwd)


def _serve(fd: int, fork: Callable[[], int], poll_type: Callable[[], select.poll]) -> list[str]:
    """Fork for each request; return, in the fork, the arguments for gunicorn."""
    # The untouched socket: one of gevent's would make a hub, which no fork may inherit.
    requests = _socket.socket(fileno=fd)
    poll = poll_type()
    poll.register(fd, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}  # a process's descriptor: its id, where to report
    while True:
        for ready, _ in poll.poll():
            if ready in children:
                pid, report = children.pop(ready)
                poll.unregister(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with contextlib.suppress(BrokenPipeError):  # the test no longer asks
                    os.write(report, str(code).encode())
                os.close(report)
                continue
            data, ancillary, _, _ = requests.recvmsg(_MESSAGE, socket.CMSG_SPACE(8))
            if not data:
                sys.exit()
            fds = array.array("i")
            for _, _, each in ancillary:
                fds.frombytes(each)
            output, report = fds
            pid = fork()
            if not pid:
                requests.detach()
                return _become(json.loads(data), output)
            os.write(report, str(pid).encode())
            os.close(output)
            process = os.pidfd_open(pid)
            children[process] = (pid, report)
            poll.register(process, select.POLLIN)


def _become(request: tuple[list[str], dict[str, str], str], output: int) -> list[str]:
    arguments, env, cwd = request
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 1 << 16)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    sys.path[0] = cwd
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return arguments


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the forks; this ends with the test
    import gunicorn
    from gunicorn.app.wsgiapp import run

    fork, poll_type = os.fork, select.poll
    from gevent import monkey

    monkey.patch_all()
    for name in MODULES:
        with contextlib.suppress(ImportError):  # of an extra that is not installed
            importlib.import_module(name)
    import gc

    import gevent

    # Some library has opened a socket. A fork must not share the event loop that this started.
    gevent.get_hub().destroy(destroy_loop=True)

    gc.collect()
    gc.freeze()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose a thread"
    arguments = _serve(int(sys.argv[1]), fork, poll_type)
    sys.argv = [str(Path(gunicorn.__file__).with_name("__main__.py")), *arguments]
    run(prog="gunicorn")


if __name__ == "__main__":
    _main()
