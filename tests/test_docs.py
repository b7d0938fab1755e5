"""The README is true: its settings, its routes, its codes, and its first screen as it runs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from flask import Flask

from flask_stream import ErrorCode, FlaskStream, create_app
from flask_stream.config import Settings, table
from flask_stream.events import TYPES

from .provider import Provider, Script
from .server import ROOT, Server, environment
from .sse import Stream

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks in a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


# Lists


def test_the_settings_are_listed_as_they_are() -> None:
    _, _, rest = README.partition("<!-- settings -->\n")
    listed, marker, _ = rest.partition("<!-- /settings -->")
    assert marker
    assert listed.strip() == table()


def test_a_setting_that_is_named_is_one() -> None:
    named = set(re.findall(r"\bSTREAM_[A-Z_]+\b", README.replace("FLASK_STREAM_", "STREAM_")))
    assert {name for name in named if name != "STREAM_"} == {
        f"STREAM_{name.upper()}" for name in Settings.__dataclass_fields__
    }


def test_the_codes_are_all_told_and_no_others() -> None:
    match = re.search(r"ends with one of these codes,[^:]*:(.*?)\. Bad input", README, re.DOTALL)
    assert match, "the list of codes is not where it was"
    assert re.findall(r"`(\w+)`", match[1]) == [code.value for code in ErrorCode]


def test_the_events_are_all_told_in_their_order() -> None:
    _, _, rest = README.partition("| event | data | |\n")
    assert tuple(re.findall(r"^\| `(\w+)` \|", rest.partition("\n\n")[0], re.M)) == TYPES


def test_the_options_of_a_chain_are_all_told() -> None:
    _, _, rest = README.partition("| `stream.add(name, chain, …)` |")
    named = re.findall(r"^\| (`.*?) \|", rest.partition("\n\n")[0], re.M)
    told = [name for row in named for name in re.findall(r"(\w+)=", row)]
    options = signature(FlaskStream.add).parameters.values()
    assert set(told) == {one.name for one in options if one.kind is one.KEYWORD_ONLY}


def test_every_route_is_in_the_table(site: Flask) -> None:
    _, _, rest = README.partition("## HTTP\n")
    rows = re.findall(r"^\| (`.*?) \|", rest.partition("\n## ")[0], re.MULTILINE)
    told = {
        (method, path)
        for row in rows
        for method in re.findall(r"\b(?:GET|POST|PUT|PATCH|DELETE)\b", row)
        for path in re.findall(r"/[^\s`?,]*", re.sub(r"\{.*?\}", "", row))
    }
    there = {
        (method, rule.rule)
        for rule in site.url_map.iter_rules()
        if rule.endpoint not in ("stream.static", "stream.chat")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert told == there


@pytest.fixture
def site() -> Iterator[Flask]:
    app = create_app(store="memory://", model="local:smollm2")
    yield app
    app.extensions["flask_stream"].close()


# Commands


def test_the_first_screen_is_short() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) <= 15


def test_to_try_and_to_test_are_one_line_each() -> None:
    commands = [block for block in blocks("sh") if ".venv" in block]
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)
    assert commands[0].endswith("/gunicorn wsgi:app\n")
    assert commands[1].endswith("/pytest\n")


def test_ci_finds_the_readmes_test_command() -> None:
    (search,) = re.findall(r"^command=\$\((grep .*)\)$", (ROOT / ".ci/run").read_text(), re.M)
    found = subprocess.run(shlex.split(search), cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == [block for block in blocks("sh") if "pytest" in block][0]  # noqa: RUF015


# The first screen


class Transcript:
    """A `curl` of the README: what it sends, and what it printed."""

    def __init__(self, block: str) -> None:
        command, _, self.printed = block.partition("\n")
        words = iter(shlex.split(command.removeprefix("$ curl -N ")))
        self.url = next(words)
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None
        for option in words:
            value = next(words)
            if option == "-H":
                name, _, header = value.partition(": ")
                self.headers[name] = header
            else:
                assert option == "-d"
                self.body = value.encode()

    def send(self, server: Server, **known: str) -> Stream:
        """The request, to this server, with ids that the README could not know in place."""
        parts = urlsplit(f"http://{self.url}")
        run = re.escape(RUN)
        return Stream(
            server.url + re.sub(run, known.get("run", ""), parts.path),
            method="POST" if self.body else "GET",
            headers={k: re.sub(run, known.get("run", ""), v) for k, v in self.headers.items()},
            body=self.body,
        )


RUN = "8b560b77033c4e5635401192b95fcd2d"


def normal(printed: str) -> str:
    """A transcript without what differs from one time to the next."""
    for name, pattern in {
        "run": r'(?<=id: )\w{32}(?=:)|(?<="run":")\w{32}(?=")',
        "conversation": r'(?<="conversation":")\w{32}(?=")',
        "model": r'(?<="model":")[^"]*(?=")',
        "tokens": r'(?<=_tokens":)\d+',
    }.items():
        printed = re.sub(pattern, f"<{name}>", printed)
    return printed.rstrip("\n")


@pytest.fixture
def server(provider: Provider, tmp_path: Path) -> Iterator[Server]:
    """The README's own app, served by the README's own command."""
    provider.script = Script(["The", " capital", " of", " Japan", " is", " Tokyo", "."])
    (tmp_path / "app.py").write_text(blocks("python")[0])
    program, *arguments = shlex.split(blocks("sh")[0])
    assert program == "gunicorn"
    command = [sys.executable, "-m", program, *arguments]
    command += ["--bind", "127.0.0.1:0", "--no-control-socket"]
    env = environment(OPENAI_BASE_URL=provider.url, OPENAI_API_KEY="test")
    with Server(command, env, cwd=tmp_path) as server:
        yield server


def test_the_first_screen_is_what_happens(server: Server, provider: Provider) -> None:
    first, second = (Transcript(block) for block in blocks("console"))
    assert RUN in first.printed
    assert RUN in second.url

    seen = first.printed.removesuffix("^C\n")
    with first.send(server) as stream:
        events = [stream.next_event() for _ in range(seen.count("\ndata: "))]
        assert events[0]
        run = json.loads(events[0].data)["run"]
        assert normal(stream.received.decode()).startswith(normal(seen))

    with second.send(server, run=run) as stream:
        assert normal(stream.read().decode()) == normal(second.printed)
        assert stream.ended == "clean"
    assert len(provider.calls) == 1
