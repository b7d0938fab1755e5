"""The benchmark's processes: started on a core, measured through /proc, stopped by their id."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Self

from .client import Job, Seen

ROOT = Path(__file__).resolve().parent.parent
_TICK = os.sysconf("SC_CLK_TCK")


def cores() -> tuple[set[int], set[int]]:
    """Return the server's core and the core for everything else; the same if there is only one."""
    there = sorted(os.sched_getaffinity(0))
    return {there[0]}, {there[1] if len(there) > 1 else there[0]}


def raise_limits() -> None:
    """Raise the limit on open files for this process and those that it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Process:
    """A process on one core, in its own folder. Its stderr is kept for `why`."""

    def __init__(self, command: list[str], on: set[int], env: dict[str, str] | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._said: IO[bytes] = (Path(self.folder.name) / "stderr").open("w+b")
        self._process = subprocess.Popen(
            command,
            # In the repository's root gunicorn would read gunicorn.conf.py.
            cwd=self.folder.name,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        os.sched_setaffinity(self._process.pid, on)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def why(self) -> str:
        """Return the last line of stderr."""
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"ended with {self._process.poll()}, without a word"

    def listening(self, port: int, patience: float = 30.0) -> None:
        """Wait until it accepts connections. Raises RuntimeError if it exits instead."""
        until = time.monotonic() + patience
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(self.why) from None
                time.sleep(0.05)

    def output(self, patience: float) -> bytes:
        """Return all output until it exits. Raises RuntimeError if it fails."""
        try:
            out, _ = self._process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"did not end within {patience:.0f} s") from None
        if self._process.returncode:
            raise RuntimeError(self.why)
        return out

    def tell(self, line: bytes) -> None:
        """Write one line to stdin."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def answer(self) -> bytes:
        """Read one line from stdout. Raises RuntimeError if it has exited."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(self.why)
        return answer

    def stop(self) -> None:
        """Stop it and remove its folder."""
        self._process.terminate()
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            # The workers first: they outlive a master that is killed.
            for pid in reversed(family(self.pid)):
                os.kill(pid, 9)
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            if pipe is not None:
                pipe.close()
        self.folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Client(Process):
    """The client's process: it takes jobs and returns results."""

    def __init__(self, on: set[int]) -> None:
        super().__init__([sys.executable, "-m", "benchmarks.client"], on)

    def do(self, job: Job, received: Callable[[], None] = lambda: None) -> Seen:
        """Do a job. `received` is called when all data has arrived, before it is checked."""
        self.tell(json.dumps(asdict(job)).encode())
        self.answer()
        received()
        return Seen(**json.loads(self.answer()))


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process and its children."""
    ticks = 0
    for each in family(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICK


def settle(pid: int, patience: float = 15.0) -> None:
    """Wait until a process and its children are idle, at most `patience` seconds."""
    until, before = time.monotonic() + patience, cpu(pid)
    while time.monotonic() < until:
        time.sleep(0.3)
        now = cpu(pid)
        if now - before < 0.03:
            return
        before = now


def memory(pid: int, what: str) -> int:
    """Return `VmHWM` or `VmRSS` in bytes, of the largest of a process and its children."""
    # Not the sum: a gunicorn worker shares memory with its master.
    return max(_status(each, what) for each in family(pid))


def _status(pid: int, what: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024
    return 0


def forget_peak(pid: int) -> None:
    """Reset `VmHWM` to the memory that is in use now."""
    for each in family(pid):
        Path(f"/proc/{each}/clear_refs").write_text("5")
