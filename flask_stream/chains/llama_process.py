"""The two processes that run a local model, and the handle that controls them.

    owner            gunicorn's master or a Flask server: has a `Handle`
      └ supervisor   `llama_process.py supervise`: restarts the server when it dies
          └ server   `llama_process.py serve`: llama.cpp, its HTTP port and the model in memory

Each process exits when its parent is gone. So both end with the owner, even if it was killed.

Both processes run this file by its path. It only imports the standard library, so neither loads
Flask or LangChain. They get the API key in the environment, because all users of the machine can
read command lines.
"""

import collections
import contextlib
import dataclasses
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from typing import NoReturn

KEY = "LLAMA_API_KEY"
"""The environment variable of the API key. llama.cpp uses the same name."""
# Seconds: the pause before the first restart, the longest pause, and the uptime that resets it.
_FIRST_PAUSE, _MAX_PAUSE, _STABLE_UPTIME = 0.25, 30.0, 60.0
_POLL = 0.25


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """What to serve. `port` 0 lets the system choose; `limit`, the time to start, is in seconds.

    `parent` is the id of the process with which the started process ends.
    """

    model: str
    alias: str
    context: int
    parallel: int
    limit: float
    parent: int = 0
    port: int = 0

    def command(self, role: str) -> list[str]:
        """Return the command that runs this file as `supervise` or `serve`."""
        # -P keeps this folder out of sys.path, where its files would hide modules of the same name.
        return [sys.executable, "-P", __file__, role, json.dumps(dataclasses.asdict(self))]


class Handle:
    """Starts and controls the supervisor. Uses no thread and works in any kind of process.

    The owner may be gunicorn's master, which reaps all children, forks workers that inherit these
    pipes, and may be patched by gevent. `key` is the new API key.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.key = secrets.token_urlsafe(32)
        self._owner = os.getpid()
        # File descriptors, because gevent's Popen wraps its pipes in objects of its own.
        stdin, self._control = os.pipe()
        self._report, stdout = os.pipe()
        try:
            # A new session: Ctrl-C reaches all processes of the terminal's group, but the model
            # must outlive the workers, which may still finish their runs.
            self._supervisor = subprocess.Popen(  # noqa: S603
                dataclasses.replace(options, parent=self._owner).command("supervise"),
                stdin=stdin,
                stdout=stdout,
                start_new_session=True,
                env={**os.environ, KEY: self.key},
            )
        finally:
            os.close(stdin)
            os.close(stdout)

    def read_message(self, seconds: float) -> dict[str, str | int]:
        """Return the supervisor's message; an empty one if it ended, or sent nothing in time."""
        received = b""
        while piece := self._read(seconds):
            received += piece
            if received.endswith(b"\n"):
                return dict(json.loads(received))
        return {}

    def stop(self) -> bool:
        """Stop both processes, wait for them and return True. In a fork, only return False."""
        if os.getpid() != self._owner:
            return False
        with contextlib.suppress(OSError):
            os.write(self._control, b"\n")
        # Waits for the end of the pipe, because gunicorn's master may reap the supervisor first.
        while piece := self._read(10.0):
            pass
        if piece is None:
            # At least one process is still alive, so the system has not reused their group's id.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._supervisor.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._supervisor.wait(1.0)
        os.close(self._control)
        os.close(self._report)
        return True

    def _read(self, seconds: float) -> bytes | None:
        """Return the next bytes; none at the end of the pipe, None after a timeout."""
        # Not select, which fails for file descriptors above 1023.
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        return os.read(self._report, 65536) if poll.poll(seconds * 1000) else None


class Supervisor:
    """Keeps a llama.cpp server running on one port until the owner ends or writes to stdin.

    It writes one JSON object to stdout: `{"port": …}` when the model is ready, or
    `{"failed": …}` if the first start fails. It reports later failures on stderr.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._server: subprocess.Popen[str] | None = None
        self._spawning = threading.Lock()
        self._last_lines: collections.deque[str] = collections.deque(maxlen=8)

    def run(self) -> int:
        """Run the server until the owner stops it. Return 1 if the first start fails."""
        # Never 3 or 4: if any child exits with one of these, gunicorn 23 assumes that a worker
        # cannot boot and shuts down.
        threading.Thread(target=self._end_with_owner, daemon=True).start()
        pause = _FIRST_PAUSE
        while True:
            started = time.monotonic()
            reason = self._serve()
            if not self._options.port:
                _send(failed="\n".join([reason, *self._last_lines]))
                return 1
            if time.monotonic() - started > _STABLE_UPTIME:
                pause = _FIRST_PAUSE
            self._log(f"{reason}; restarting it in {pause:g} s")
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE)

    def _serve(self) -> str:
        """Run the server until it ends. Return the reason why it ended."""
        options = dataclasses.replace(self._options, parent=os.getpid())
        # The server inherits the owner's pipe. So the pipe only ends when both processes are gone.
        pipe = os.dup(1)
        with self._spawning:
            server = self._server = subprocess.Popen(  # noqa: S603
                options.command("serve"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[pipe],
                text=True,
                errors="replace",
            )
        os.close(pipe)
        # A thread, so that a blocked terminal only delays the messages.
        reader = threading.Thread(target=self._read_errors, args=[server], daemon=True)
        deadline = threading.Timer(options.limit, server.kill)
        reader.start()
        deadline.start()
        assert server.stdout
        with server.stdout:
            port = int(server.stdout.readline() or 0)
        late = not deadline.is_alive()
        deadline.cancel()
        if port and not options.port:
            self._options = dataclasses.replace(self._options, port=port)
            _send(port=port)
        status = server.wait()
        reader.join(_POLL)
        if late:
            return f"the model was not ready within {options.limit:g} s"
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return f"the model's server ended {how}"

    def _read_errors(self, server: subprocess.Popen[str]) -> None:
        assert server.stderr
        with server.stderr:
            for line in server.stderr:
                self._last_lines.append(line.rstrip())
                self._log(line.rstrip())

    def _log(self, line: str) -> None:
        # The owner's terminal may be closed. The model keeps running.
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{self._options.alias}: {line}\n")
            sys.stderr.flush()

    def _end_with_owner(self) -> None:
        # Checks both the parent and the pipe. If gunicorn's master is killed, the pipe stays open
        # as long as a worker that inherited its other end. Only the pipe can tell it to stop.
        while os.getppid() == self._options.parent:
            if select.select([sys.stdin], [], [], _POLL)[0]:
                break
        with self._spawning:
            if self._server:
                self._server.kill()
            os._exit(0)


def serve(options: ServerOptions) -> NoReturn:
    """Serve the model on 127.0.0.1. Write the port to stdout when it is ready.

    Exits when its parent ends, and with status 1 if the model cannot be loaded.
    """
    # Redirects stdout, so that the port is the only output even if a library prints something.
    report = os.dup(1)
    os.dup2(2, 1)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.alias}
    params.n_ctx = options.context
    params.n_parallel = options.parallel
    params.kv_unified = True  # one pool: a single conversation can use the whole context
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.api_keys = [os.environ[KEY]]
    params.ui = False
    # By default, the cache of prompts can grow to 8 GiB.
    params.cache_ram_mib = 256
    # Errors only: llama.cpp logs a warning for every stopped run and eight lines for every request.
    params.verbosity = 1
    try:
        # Returns when the model is loaded and the port is open. Until then it holds the GIL, so a
        # thread could not watch the parent. The supervisor kills this process instead.
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(str(error))
    os.write(report, server.listening_address.rpartition(":")[2].encode() + b"\n")
    os.close(report)
    while os.getppid() == options.parent:
        time.sleep(_POLL)
    os._exit(0)


def _send(**message: object) -> None:
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    options = ServerOptions(**json.loads(sys.argv[2]))
    sys.exit(Supervisor(options).run() if sys.argv[1] == "supervise" else serve(options))
