"""The two processes behind a model of one's own, and the handle by which their owner holds them.

    owner            gunicorn's master, or a Flask server: holds a `Handle`
      └ supervisor   `llama_process.py supervise`: starts the server again when it dies
          └ server   `llama_process.py serve`: llama.cpp, its HTTP port and the model in memory

Whoever loses its parent ends, so nothing outlives the owner, however the owner was killed. Both
run this file by its path, and it imports the standard library alone: neither shall carry Flask or
LangChain. The key comes through the environment, as a command line is for everybody to read.
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
"""The environment variable that carries the API key; llama.cpp's own name for it."""
# Seconds: before a first restart, at most before a later one, and a life that starts afresh.
_FIRST_PAUSE, _LONGEST_PAUSE, _STEADY = 0.25, 30.0, 60.0
_POLL = 0.25


@dataclasses.dataclass(frozen=True)
class Order:
    """What to serve, and for whom. `port` 0 lets the system choose; `limit` is in seconds."""

    model: str
    alias: str
    context: int
    parallel: int
    limit: float
    parent: int = 0
    port: int = 0

    def command(self, role: str) -> list[str]:
        """How to run this file as `role`: `supervise` or `serve`."""
        # -P: without it this folder leads the path, and hides modules called like one in it.
        return [sys.executable, "-P", __file__, role, json.dumps(dataclasses.asdict(self))]


class Handle:
    """Starts the supervisor and holds on to it, without a thread, from any kind of process.

    The owner may be gunicorn's master, which reaps every child there is, forks workers that
    inherit these pipes, and may have been patched by gevent. `key` is the new API key.
    """

    def __init__(self, order: Order) -> None:
        self.key = secrets.token_urlsafe(32)
        self._owner = os.getpid()
        # Bare descriptors: gevent's Popen would wrap its pipes in objects of its own.
        stdin, self._control = os.pipe()
        self._report, stdout = os.pipe()
        try:
            # A session of its own: a Ctrl-C is sent to all of the terminal's group, and the
            # model must outlive the workers, which may be given time to finish.
            self._supervisor = subprocess.Popen(  # noqa: S603
                dataclasses.replace(order, parent=self._owner).command("supervise"),
                stdin=stdin,
                stdout=stdout,
                start_new_session=True,
                env={**os.environ, KEY: self.key},
            )
        finally:
            os.close(stdin)
            os.close(stdout)

    def hear(self, seconds: float) -> dict[str, str | int]:
        """The supervisor's one message; empty if it ended, or hung so long, without one."""
        heard = b""
        while piece := self._read(seconds):
            heard += piece
            if heard.endswith(b"\n"):
                return dict(json.loads(heard))
        return {}

    def stop(self) -> bool:
        """Return True when both processes are gone; False, and do nothing, in a fork."""
        if os.getpid() != self._owner:
            return False
        with contextlib.suppress(OSError):
            os.write(self._control, b"\n")
        # The end of the pipe, not the exit status, which gunicorn's master may have taken.
        while piece := self._read(10.0):
            pass
        if piece is None:
            # One of the two still lives, so the number of their group cannot be anyone else's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._supervisor.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._supervisor.wait(1.0)
        os.close(self._control)
        os.close(self._report)
        return True

    def _read(self, seconds: float) -> bytes | None:
        """What comes next; nothing if all holders of the pipe are gone, None if it takes longer."""
        # poll, not select, which fails on descriptors from 1024 on.
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        return os.read(self._report, 65536) if poll.poll(seconds * 1000) else None


class Supervisor:
    """Keeps one llama.cpp server alive on one port until the owner ends or writes to stdin.

    Standard output carries one JSON object to the owner: `{"port": …}` when the model answers,
    or `{"failed": …}` when it never did. Later deaths are told on standard error only.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._server: subprocess.Popen[str] | None = None
        self._spawning = threading.Lock()
        self._said: collections.deque[str] = collections.deque(maxlen=8)

    def run(self) -> int:
        """Serve until told to stop; return 1 if the server never came up the first time."""
        # The exit status is never 3 or 4: gunicorn 23 takes those, from any child at all, for a
        # worker that cannot boot, and shuts the whole service down.
        threading.Thread(target=self._end_with_owner, daemon=True).start()
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            reason = self._serve()
            if not self._order.port:
                _tell(failed="\n".join([reason, *self._said]))
                return 1
            if time.monotonic() - began > _STEADY:
                pause = _FIRST_PAUSE
            self._complain(f"{reason}; it is started again in {pause:g} s")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _serve(self) -> str:
        """Run the server once, from its start to its death; return what became of it."""
        order = dataclasses.replace(self._order, parent=os.getpid())
        # The server holds the owner's pipe too. When the owner reads its end, both are gone.
        pipe = os.dup(1)
        with self._spawning:
            server = self._server = subprocess.Popen(  # noqa: S603
                order.command("serve"),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[pipe],
                text=True,
                errors="replace",
            )
        os.close(pipe)
        # A thread, so that a terminal nobody reads can stall the messages and nothing else.
        listener = threading.Thread(target=self._listen, args=[server], daemon=True)
        deadline = threading.Timer(order.limit, server.kill)
        listener.start()
        deadline.start()
        assert server.stdout
        with server.stdout:
            port = int(server.stdout.readline() or 0)
        late = not deadline.is_alive()
        deadline.cancel()
        if port and not order.port:
            self._order = dataclasses.replace(self._order, port=port)
            _tell(port=port)
        status = server.wait()
        listener.join(_POLL)
        if late:
            return f"the model was not ready within {order.limit:g} s"
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return f"the model's server ended {how}"

    def _listen(self, server: subprocess.Popen[str]) -> None:
        assert server.stderr
        with server.stderr:
            for line in server.stderr:
                self._said.append(line.rstrip())
                self._complain(line.rstrip())

    def _complain(self, line: str) -> None:
        # The owner's terminal may be gone; the model stays.
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{self._order.alias}: {line}\n")
            sys.stderr.flush()

    def _end_with_owner(self) -> None:
        # Both signs are needed. The pipe alone would miss a killed gunicorn master as long as
        # a worker, which inherited the other end, lives on; the parent alone cannot say "stop".
        while os.getppid() == self._order.parent:
            if select.select([sys.stdin], [], [], _POLL)[0]:
                break
        with self._spawning:
            if self._server:
                self._server.kill()
            os._exit(0)


def serve(order: Order) -> NoReturn:
    """Hold the model and answer on 127.0.0.1; write the port to stdout once it does.

    Ends when its parent ends, or with status 1 when the model cannot be loaded.
    """
    # The port must be all there is to read on standard output, whatever a library prints.
    report = os.dup(1)
    os.dup2(2, 1)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = order.model
    params.model_alias = {order.alias}
    params.n_ctx = order.context
    params.n_parallel = order.parallel
    params.kv_unified = True  # one pool: a lone conversation may fill the whole context
    params.hostnames = ["127.0.0.1"]
    params.port = order.port
    params.api_keys = [os.environ[KEY]]
    params.ui = False
    # The default lets remembered prompts grow to 8 GiB.
    params.cache_ram_mib = 256
    # Errors only: every Stop is a warning to llama.cpp, and every request is eight lines of info.
    params.verbosity = 1
    try:
        # Returns when the model is loaded and the port is open. It keeps the interpreter's lock
        # until then, so no thread could watch the parent meanwhile; the supervisor kills us.
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.exit(str(error))
    os.write(report, server.listening_address.rpartition(":")[2].encode() + b"\n")
    os.close(report)
    while os.getppid() == order.parent:
        time.sleep(_POLL)
    os._exit(0)


def _tell(**message: object) -> None:
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    order = Order(**json.loads(sys.argv[2]))
    sys.exit(Supervisor(order).run() if sys.argv[1] == "supervise" else serve(order))
