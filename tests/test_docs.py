"""The documentation is true: settings, routes, codes, links, and the README's first screen."""

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
DOCS = sorted((ROOT / "docs").glob("*.md"))
#: The pages whose links are checked, by path. CONTRIBUTING.md may be missing.
PAGES = {
    path: path.read_text()
    for path in [
        *(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")),
        *DOCS,
    ]
    if path.is_file()
}


def doc(name: str) -> str:
    """Return the text of a page in docs/."""
    return PAGES[ROOT / "docs" / f"{name}.md"]


def blocks(language: str) -> list[str]:
    """Return the README's fenced blocks in a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


# Lists


def test_every_setting_is_listed() -> None:
    _, _, rest = doc("settings").partition("<!-- settings -->\n")
    listed, marker, _ = rest.partition("<!-- /settings -->")
    assert marker
    assert listed.strip() == table()


def test_every_setting_that_is_mentioned_exists() -> None:
    changelog = ROOT / "CHANGELOG.md"  # it also names settings that are gone
    text = "\n".join(text for path, text in PAGES.items() if path != changelog)
    named = set(re.findall(r"\bSTREAM_[A-Z_]+\b", text.replace("FLASK_STREAM_", "STREAM_")))
    # STREAM_TESTS_… are variables of the test suite.
    settings = {name for name in named if name != "STREAM_" and "_TESTS_" not in name}
    assert settings == {f"STREAM_{name.upper()}" for name in Settings.__dataclass_fields__}


def test_every_code_is_listed() -> None:
    _, _, rest = doc("errors").partition("| code | message | retryable |\n|---|---|---|\n")
    assert rest.partition("\n\n")[0].splitlines() == [
        f"| `{code.value}` | {code.sentence} | {'yes' if code.retryable else 'no'} |"
        for code in ErrorCode
    ]


def test_every_event_is_listed_in_order() -> None:
    _, _, rest = doc("events").partition("| event | data | |\n")
    assert tuple(re.findall(r"^\| `(\w+)` \|", rest.partition("\n\n")[0], re.M)) == TYPES


def test_every_option_of_a_chain_is_listed() -> None:
    _, _, rest = doc("chains").partition("| `stream.add(name, chain, …)` |")
    named = re.findall(r"^\| (`.*?) \|", rest.partition("\n\n")[0], re.M)
    told = [name for row in named for name in re.findall(r"(\w+)=", row)]
    options = signature(FlaskStream.add).parameters.values()
    assert set(told) == {one.name for one in options if one.kind is one.KEYWORD_ONLY}


def test_every_route_is_in_the_table(site: Flask) -> None:
    _, _, rest = doc("http").partition("| Request | Result |\n")
    rows = re.findall(r"^\| (`.*?) \|", rest.partition("\n\n")[0], re.MULTILINE)
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


def test_the_files_that_security_names_are_there() -> None:
    text = PAGES[ROOT / "SECURITY.md"]
    named = re.findall(r"`((?:\w+/)+\w+\.py)`", text)
    assert len(named) > 20
    folders = (ROOT, ROOT / "flask_stream")
    assert [name for name in named if not any((one / name).is_file() for one in folders)] == []


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=lambda path: path.name)
def test_every_python_block_can_be_compiled(path: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", PAGES[path], re.M | re.S):
        compile(block, path.name, "exec")


# Links


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(text: str) -> list[str]:
    """Return the targets of a page's links to files and headings of the repository."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [target for target in found if urlsplit(target).scheme == ""]


def broken(path: Path, text: str) -> list[str]:
    """Return the links of a page that lead nowhere."""
    wrong = []
    for target in links(text):
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        known = PAGES.get(there, "")
        if not there.exists() or (anchor and anchor not in anchors(known)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    assert broken(path, PAGES[path]) == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    text = "[a](docs/chains.md#options) [b](docs/gone.md) [c](docs/http.md#gone) [d](#gone)"
    assert broken(ROOT / "README.md", text) == ["docs/gone.md", "docs/http.md#gone", "#gone"]


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (path.parent / target.partition("#")[0]).resolve()
        for path, text in PAGES.items()
        for target in links(text)
        if target.partition("#")[0] and (path.parent / target).resolve() != path
    }
    assert [path.name for path in DOCS if path not in linked] == []


# Commands


def test_the_readme_is_short() -> None:
    """Two or three screens beside the recorded output."""
    assert len(re.sub(r"^```console\n.*?^```$", "", README, flags=re.M | re.S).splitlines()) <= 90


def test_the_first_screen_is_short() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) <= 15


def test_trying_it_and_testing_it_are_one_command_each() -> None:
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
    """A `curl` command in the README: the request it sends, and the output it printed."""

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
        """Send the request to this server, with `known` ids instead of the README's."""
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
    """Return a transcript with placeholders for everything that differs between runs."""
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


def test_the_first_screen_is_what_a_user_sees(server: Server, provider: Provider) -> None:
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
