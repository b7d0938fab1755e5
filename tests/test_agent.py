"""The built-in agent: tools that are real, calls and results that stream, a model that cannot."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_stream.chains import document_search
from flask_stream.chains.document_search import DocumentIndex, passages
from flask_stream.chains.tools import calculator, search_in, time_in
from flask_stream.errors import ConfigError

from .provider import Provider, Script
from .server import ROOT, Server, environment, gunicorn
from .sse import ServerSentEvent, Stream, request


def calculate(expression: str) -> str:
    return str(calculator.invoke({"expression": expression}))


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("6 * 7", "42"),
        ("(1 + 2) ** 3 - 4 / 8", "26.5"),
        ("sqrt(2) * sqrt(2)", "2"),
        ("-3 % 5 + 7 // 2", "5"),
        ("round(pi, 2) + max(1, 2)", "5.14"),
        ("123456789 * 987654321", "121932631112635269"),
        ("1.0001 ** 10000", "2.71814592682493"),
        ("0.5 ** 5000", "0"),
        ("2 ** -99999999", "0"),
        ("(-1) ** 10 ** 300", "1"),
        ("min(3)", "3"),
        ("log(8, 2)", "3"),
        ("round(12345, -2)", "12300"),
        ("round(5, -9999999)", "0"),
        ("round(5.5, -9999999)", "0"),
        ("round(5, 10 ** 300)", "5"),
        ("round(2.675, 2.0)", "2.67"),
        ("1+" * 249 + "1", "250"),
        ("-" * 300 + "1", "1"),
        ("(" * 90 + "1" + ")" * 90, "1"),
    ],
)
def test_it_calculates(expression: str, result: str) -> None:
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9",
        "9**9999",
        "10.0**400",
        "1/0",
        "__import__('os').system('true')",
        "(1).real",
        "[1][0]",
        "'a' * 9",
        "lambda: 1",
        "True + 1",
        "sqrt(-1)",
        "sqrt(1, base=2)",
        "",
        "1 +",
        "1" * 501,
        "(" * 300 + "1",
        "(-8) ** 0.5",
        "(-8.0) ** 1e300",
        "\0",
        "\ud800",
        "1e999",
        "1e308 * 10",
        "1e308 // 1e-308",
        "floor(1e308 * 10)",
        "1e308 * 10 - 1e308 * 10",
        "10 ** 308 * 100",
        "10 ** 308 * 1e9",
        "9**" * 160 + "9",
        "*".join(["9" * 80] * 6),
        "exp(1000)",
        "log(0)",
        "log(8, 1)",
        "min()",
        "sin()",
        "min(*1)",
        "round(5, 2.5)",
        "round(1, 2, 3)",
        "1j",
        "(" * 249 + ")" * 249,
        "[" * 499,
    ],
)
def test_what_cannot_be_calculated_is_told_and_harms_nobody(expression: str) -> None:
    began = time.thread_time()
    # A sentence, and nothing of Python's own.
    assert re.fullmatch(r"This cannot be calculated: [\w ,]+\.", calculate(expression))
    assert time.thread_time() - began < 0.5


def test_rounding_to_any_place_takes_no_time() -> None:
    began = time.thread_time()
    for places in ("-9999999", "-10 ** 9", "10 ** 9", "-(10 ** 300)", "-1e308"):
        assert calculate(f"round(5, {places})") in ("0", "5")
        assert float(calculate(f"round(5.5, {places})")) in (0, 5.5)
    assert time.thread_time() - began < 0.5


@given(st.text(alphabet="0123456789+-*/%().e ,sqrtminaxlogp", max_size=60))
def test_no_expression_takes_long_or_raises(expression: str) -> None:
    assert calculate(expression)


_LARGE = ["0", "1", "-2", "0.5", "3", "1e308", "-1e-308", "9" * 60, "10**300", "pi", "e"]
_CALLED = ["sqrt", "exp", "log", "log2", "sin", "floor", "ceil", "abs", "round", "min", "max"]
EXPRESSIONS = st.recursive(
    st.sampled_from(_LARGE),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%", "**"]), inner).map(
            lambda parts: f"({''.join(parts)})"
        ),
        st.tuples(
            st.sampled_from(_CALLED),
            st.lists(inner, max_size=3).map(", ".join),
        ).map(lambda call: f"{call[0]}({call[1]})"),
        inner.map(lambda one: f"-{one}"),
    ),
    max_leaves=30,
)


@given(EXPRESSIONS)
def test_every_expression_is_a_number_or_a_sentence_at_once(expression: str) -> None:
    began = time.thread_time()
    result = calculate(expression)
    assert time.thread_time() - began < 0.5
    if not re.fullmatch(r"This cannot be calculated: [\w ,]+\.", result):
        assert math.isfinite(float(result))


def test_an_expression_is_answered_where_the_stack_is_nearly_full() -> None:
    def deeper(levels: int) -> str:
        function = calculator.func  # type: ignore[attr-defined]
        return deeper(levels - 1) if levels else str(function("1+" * 249 + "1"))

    left = sys.getrecursionlimit() - len(inspect.stack())
    assert deeper(left - 200).startswith("This cannot be calculated: the expression is nested")


def test_the_time_is_told_in_any_zone() -> None:
    told = time_in.invoke({"zone": "Europe/Berlin"})
    assert re.fullmatch(r"\w+, \d\d \w+ \d{4}, [\d:]{8} \(Europe/Berlin, UTC\+0[12]00\)", told)
    assert str(datetime.now(UTC).year) in time_in.invoke({})
    assert "(America/New_York" in time_in.invoke({"zone": "new york"})
    assert "Did you mean Europe/Berlin" in time_in.invoke({"zone": "Europe/Berlni"})
    assert time_in.invoke({"zone": "../../etc/passwd"}).startswith("There is no zone")
    began = time.thread_time()
    assert len(time_in.invoke({"zone": "Berlin" * 100_000})) < 200
    assert time.thread_time() - began < 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    documents = tmp_path / "documents"
    (documents / "inner").mkdir(parents=True)
    (documents / "house.md").write_text(
        "# The house\n\nIt is green.\n\n## Roof\n\nTiles are red.\n"
    )
    (documents / "inner" / "garden.txt").write_text("Roses grow beside the wall.\n")
    (documents / "image.png").write_bytes(b"\x89PNG roses")
    (tmp_path / "secret.txt").write_text("The secret is roses.")
    (documents / "link.txt").symlink_to(tmp_path / "secret.txt")
    return documents


def test_documents_are_found_by_their_words(folder: Path) -> None:
    index = DocumentIndex(folder)
    hit = index.search("what colour is a tile?")[0]
    assert (hit.file, hit.title) == ("house.md", "Roof")
    assert "Tiles are red." in hit.passage
    assert [hit.file for hit in index.search("rose")] == ["inner/garden.txt"]
    assert index.search('" OR * NEAR( AND') == []
    assert index.search("?!") == []


def test_the_index_follows_the_folder(folder: Path) -> None:
    index = DocumentIndex(folder)
    assert index.search("bees") == []
    new = folder / "new.md"
    new.write_text("Bees hum.")
    assert [hit.file for hit in index.search("bees")] == ["new.md"]
    new.write_text("Wasps hum, too.")
    os.utime(new, (1, 1))
    assert index.search("bees") == []
    new.unlink()
    assert index.search("wasps") == []


def test_a_file_whose_name_is_no_text_is_searched_too(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.md")).write_text("Bees hum.")
    assert [hit.file for hit in DocumentIndex(folder).search("bees")] == ["caf\ufffd.md"]


def test_a_file_that_cannot_be_read_hides_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read_text = Path.read_text

    def read(path: Path, *args: Any, **kwargs: Any) -> str:
        if path.name == "house.md":
            raise PermissionError(13, "Permission denied")
        return read_text(path, *args, **kwargs)

    index = DocumentIndex(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", read)
        for _ in range(2):
            assert [hit.file for hit in index.search("rose tiles")] == ["inner/garden.txt"]
        assert caplog.messages == [
            "documents: cannot read house.md, which is not searched: Permission denied"
        ]
    (folder / "house.md").chmod(0o600)  # its content is as it was
    assert {hit.file for hit in index.search("rose tiles")} == {"house.md", "inner/garden.txt"}


def test_a_reading_that_failed_leaves_nothing_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = DocumentIndex(folder)

    def failing(text: str, title: str) -> Iterator[tuple[str, str]]:
        yield from passages(text, title)
        if title == "garden":  # the last of them
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(document_search, "passages", failing)
        with pytest.raises(MemoryError):
            index.search("tiles")
    assert len(index.search("tiles roses green")) == 3


def test_the_work_grows_with_the_files_and_no_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def steps(files: int) -> list[int]:
        """What SQLite does for the first search, for one after all has changed, and for another."""
        folder = tmp_path / str(files)
        folder.mkdir()
        for number in range(files):
            (folder / f"{number}.txt").write_text(f"Bees hum {number}.")
        done = 0

        def count() -> int:
            nonlocal done
            done += 1
            return 0

        def connected(*args: Any, **kwargs: Any) -> Any:
            connection = connect(*args, **kwargs)
            connection.set_progress_handler(count, 1)
            return connection

        monkeypatch.setattr(sqlite3, "connect", connected)
        index = DocumentIndex(folder)
        found = []
        for _ in range(2):
            done = 0
            assert len(index.search("17")) == 1
            found.append(done)
            for file in folder.iterdir():
                os.utime(file, (1, 1))
        done = 0
        for file in sorted(folder.iterdir())[1:]:
            file.unlink()
        assert len(index.search("bees")) == 1
        return [*found, done]

    for few, many in zip(steps(100), steps(800), strict=True):
        assert many < 12 * few


#: What a program can do with an index whose reading waits, without gevent's knowledge, until it
#: is told to go on. A program that stands still is ended.
_HELD = """
import os, signal, sys, threading, time
from pathlib import Path
from flask_stream.concurrency import tasks
from flask_stream.chains import document_search
from flask_stream.chains.document_search import DocumentIndex

signal.alarm(20)
held, go_on = os.pipe()
reading, passages = [], document_search.passages

def wait(text, title):
    reading.append(title)
    assert os.read(held, 1)
    return passages(text, title)

document_search.passages = wait
index, found = DocumentIndex(Path(sys.argv[1])), []
search = lambda: found.append(index.search("roses"))

def until(there):
    end = time.monotonic() + 30
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)
"""

_OTHERS_GO_ON = """
searches = [threading.Thread(target=search) for _ in range(5)]
for one in searches:
    one.start()
until(lambda: reading)
assert found == []
os.write(go_on, bytes(100))
for one in searches:
    one.join(30)
assert len(found) == 5 and all(hits == found[0] != [] for hits in found)
assert len(reading) == 2
"""

_STOPPED = """
task = tasks.start_task(search, "search")
until(lambda: reading)
assert task.interrupt() == tasks.uses_greenlets()
left = task.join(5 if tasks.uses_greenlets() else 0)
assert left == tasks.uses_greenlets() and found == []
os.write(go_on, bytes(100))
assert index.search("roses")
"""

_FORKED = """
document_search.passages = passages
child = os.fork()
search()
assert len(found[0]) == 1
if child:
    assert os.waitpid(child, 0)[1] == 0
"""

_ENDED = """
threading.Thread(target=search, daemon=True).start()
until(lambda: reading)
os.write(go_on, bytes(100))
"""


@pytest.mark.parametrize("gevent", [True, False], ids=["greenlets", "threads"])
@pytest.mark.parametrize(
    "then", [_OTHERS_GO_ON, _STOPPED, _FORKED, _ENDED], ids=["others", "stop", "fork", "end"]
)
def test_a_search_holds_nobody_up(folder: Path, gevent: bool, then: str) -> None:
    patch = "from gevent import monkey; monkey.patch_all()\n" if gevent else ""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", patch + _HELD + then, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")


@given(st.text(max_size=5000))
def test_no_word_of_a_text_is_lost(text: str) -> None:
    kept = "".join(f"{title} {body}" for title, body in passages(text, ""))
    # A heading without text below it has no passage.
    words = {
        w for line in text.splitlines() if not line.lstrip().startswith("#") for w in line.split()
    }
    assert all(word in kept for word in words if len(word) < 100)


def test_no_folder_is_told_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="STREAM_DOCUMENTS"):
        search_in(str(tmp_path / "nowhere"))


# The service


def ask(server: Server, question: str) -> list[ServerSentEvent]:
    with Stream(
        f"{server.url}/stream_agent",
        method="POST",
        headers={"Content-Type": "application/json"},
        body=json.dumps({"question": question}).encode(),
    ) as stream:
        return list(stream.events())


@pytest.fixture
def agent(provider: Provider, folder: Path) -> Iterator[Server]:
    env = environment(
        model="openai:scripted",
        model_retries=0,
        documents=folder,
        checkpoints="memory://",
        OPENAI_BASE_URL=provider.url,
        OPENAI_API_KEY="test",
    )
    with Server(gunicorn(), env) as server:
        yield server


def test_calls_and_results_stream_as_they_happen(agent: Server, provider: Provider) -> None:
    rounds = iter(
        [
            Script(["I", " look."], tools=[("calculator", {"expression": "6 * 7"})]),
            Script(
                [],
                tools=[
                    ("search_documents", {"query": "roses"}),
                    ("time_in", {"zone": "Asia/Tokyo"}),
                ],
            ),
            Script(["It", " is", " 42."]),
        ]
    )
    provider.script = lambda _: next(rounds)
    events = ask(agent, "What is it?")
    told: list[tuple[str, Any]] = [(e.type, json.loads(e.data)) for e in events]
    calls = [data for type, data in told if type == "tool_call"]
    assert [(call["name"], call["args"]) for call in calls] == [
        ("calculator", {"expression": "6 * 7"}),
        ("search_documents", {"query": "roses"}),
        ("time_in", {"zone": "Asia/Tokyo"}),
    ]
    results = {data["name"]: data for type, data in told if type == "tool_result"}
    assert results["calculator"]["content"] == "42"
    assert "inner/garden.txt" in results["search_documents"]["content"]
    assert "Asia/Tokyo" in results["time_in"]["content"]
    assert all(result["status"] == "success" for result in results.values())
    texts = [data["content"] for type, data in told if "content" in data and "message" in data]
    assert "".join(texts) == "I look.It is 42."
    assert len([1 for type, _ in told if type == "usage"]) == 3
    assert ("step", {"node": "tools", "status": "done"}) in told
    assert told[-1] == ("end", {"status": "done", "finish_reason": "stop", "error": None})
    # The result went to the model as a tool's, and nothing but text came from outside.
    roles = [message["role"] for message in provider.calls[-1].json["messages"]]
    assert roles[0] == "system"
    assert roles.count("user") == 1
    assert roles.count("tool") == 3


def test_a_tool_that_cannot_says_why_to_the_model(agent: Server, provider: Provider) -> None:
    rounds = iter(
        [Script([], tools=[("calculator", {"expression": "1/0"})]), Script(["It cannot be."])]
    )
    provider.script = lambda _: next(rounds)
    events = ask(agent, "Divide.")
    (result,) = [json.loads(e.data) for e in events if e.type == "tool_result"]
    assert result["content"].startswith("This cannot be calculated")
    assert json.loads(events[-1].data)["status"] == "done"


def test_where_the_model_cannot_use_tools_it_says_so() -> None:
    env = environment(model="local:smollm2", local_url="http://127.0.0.1:9/v1", local_key="none")
    with Server(gunicorn(), env) as server:
        answer = request("POST", f"{server.url}/runs", json={"chain": "agent", "input": "Hello"})
    assert answer.status == 503
    assert "too small to use tools" in answer.json()["detail"]
    assert answer.json()["field"] == "chain"
