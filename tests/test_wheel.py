"""The wheel: built from the tree, it serves as the tree does, from wherever it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from .server import ROOT, environment

pytestmark = pytest.mark.timeout(300)

CORE = {"flask", "flask-cors", "gevent", "gunicorn", "langchain-core", "langchain-openai"}
#: What pip says when there is nowhere to get the builder from.
NO_INDEX = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeoutError|Network is unreachable"
    r"|No matching distribution found for setuptools"
)

#: Run from another folder, with the installed copy before the editable one.
SERVE = """
import json, sys
from pathlib import Path
import flask_stream
from flask_stream import create_app

app = create_app(model="local:smollm2")
client = app.test_client()
answers = {}
for path in sys.argv[1:]:
    with client.get(path) as answer:
        answers[path] = [answer.status_code, answer.mimetype, answer.text]
app.extensions["flask_stream"].close()
print(json.dumps({"file": flask_stream.__file__, "answers": answers}))
"""


def tree() -> Iterator[Path]:
    """The files that git knows, or would take: the tree as a commit would have it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            yield Path(name)


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode and NO_INDEX.search(said):
        pytest.skip(f"the package index cannot be reached: {said[-300:]}")
    assert done.returncode == 0, said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in tree():
        copy = folder / "tree" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy)
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(folder / "tree"))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed, alone."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    # The templates stand beside the package in the tree, and in it in the wheel.
    package = {
        f"flask_stream/{name}" if name.parts[0] == "templates" else str(name)
        for name in tree()
        if name.parts[0] in ("flask_stream", "templates")
    }
    assert names == package
    assert "flask_stream/py.typed" in names
    assert "flask_stream/templates/stream/chat.html" in names


def test_it_asks_for_six_packages(site: Path) -> None:
    (found,) = distributions(path=[str(site)])
    assert found.metadata["Name"] == "flask-llm-stream"
    needed = [line for line in found.requires or [] if "extra ==" not in line]
    assert sorted(re.split(r"[^\w-]", line)[0] for line in needed) == sorted(CORE)


def test_it_serves_the_page_from_another_folder(site: Path, tmp_path: Path) -> None:
    files = {
        f"/static/stream/{name.name}": (ROOT / name).read_text()
        for name in tree()
        if name.parts[:2] == ("flask_stream", "static")
    }
    assert files
    done = subprocess.run(
        [sys.executable, "-c", SERVE, "/", "/health/live", *files],
        cwd=tmp_path,
        env=environment(PYTHONPATH=site),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert Path(told["file"]).is_relative_to(site)
    status, mimetype, page = told["answers"].pop("/")
    assert (status, mimetype) == (200, "text/html")
    assert "/static/stream/stream.js" in page
    assert told["answers"].pop("/health/live")[0] == 200
    assert {path: answer[2] for path, answer in told["answers"].items()} == files
    assert {answer[0] for answer in told["answers"].values()} == {200}
