"""The app that has the extension: its names, its routes, its own OpenAPI, and its server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apiflask import APIFlask
from flask import Blueprint, Flask
from flask_smorest import Api
from flask_smorest import Blueprint as ApiBlueprint

from flask_stream import ConfigError, FlaskStream
from flask_stream.service import Service
from flask_stream.web.host_app import ONE_REQUEST, ONE_THREAD_EACH

from .server import ROOT, Server, environment, gunicorn
from .sse import Parser, request


def shout(question: str) -> Iterator[str]:
    yield question.upper()


Extend = Callable[..., FlaskStream]


@pytest.fixture
def extend() -> Iterator[Extend]:
    """Gives an app the extension and a chain; it is closed at the end of the test."""
    extended: list[Flask] = []

    def extend(app: Flask, **settings: Any) -> FlaskStream:
        stream = FlaskStream(app, **{"store": "memory://", **settings})
        stream.add("shout", shout)
        extended.append(app)
        return stream

    yield extend
    for app in extended:
        service: Service = app.extensions["flask_stream"]
        service.close()


def answers(app: Flask, prefix: str = "") -> bool:
    """Whether the app's chain streams an answer."""
    body = {"question": "yes"}
    with app.test_client().post(f"{prefix}/stream_shout", json=body) as response:
        return any("YES" in event.data for event in Parser().feed(response.data))


# A prefix


def test_every_route_is_below_the_prefix(extend: Extend) -> None:
    app = Flask(__name__, static_folder=None)
    extend(app, url_prefix="/ai", page=True)
    rules = {rule.rule for rule in app.url_map.iter_rules()}
    assert all(rule.startswith("/ai/") for rule in rules), rules
    assert {"/ai/", "/ai/ws/<chain>", "/ai/socket.io/", "/ai/runs"} <= rules
    assert "/ai/static/stream/<path:filename>" in rules


def test_an_app_with_a_prefix_has_a_page_runs_and_a_session(extend: Extend) -> None:
    app = Flask(__name__)
    extend(app, url_prefix="/ai", page=True)
    client = app.test_client()
    page = client.get("/ai/")
    assert "/ai/static/stream/stream.js" in page.text
    data = json.loads(page.text.partition('id="stream-data">')[2].partition("<")[0])
    assert (data["home"], data["runs"]) == ("/ai/", "/ai/runs")
    assert "Path=/ai;" in page.headers["Set-Cookie"] + ";"
    assert client.get("/").status_code == 404

    started = client.post("/ai/runs", json={"chain": "shout", "input": "yes"})
    run = started.get_json()
    assert started.headers["Location"] == run["urls"]["self"] == f"/ai/runs/{run['run']}"
    assert client.get(run["urls"]["events"]).status_code == 200
    assert client.get("/ai/conversations").get_json()["conversations"]  # it knows the session
    assert answers(app, "/ai")


def test_a_prefix_stands_behind_the_path_that_the_app_is_mounted_at(extend: Extend) -> None:
    app = Flask(__name__)
    extend(app, url_prefix="/ai", page=True)
    client = app.test_client()
    base = "http://localhost/site"
    described = client.get("/ai/stream/openapi.json", base_url=base).get_json()
    assert described["servers"] == [{"url": "/site/ai"}]
    assert "/runs" in described["paths"]
    page = client.get("/ai/", base_url=base)
    assert "Path=/site/ai;" in page.headers["Set-Cookie"] + ";"
    assert "/site/ai/static/stream/stream.js" in page.text


def test_socketio_answers_below_the_prefix(extend: Extend) -> None:
    app = Flask(__name__)
    extend(app, url_prefix="/ai")
    client = app.test_client()
    assert client.get("/ai/socket.io/?EIO=4&transport=polling").data.startswith(b'0{"sid"')
    assert client.get("/socket.io/?EIO=4&transport=polling").status_code == 404


# Names and routes that the app has


def test_a_route_of_the_app_is_told_with_ours(extend: Extend) -> None:
    app = Flask(__name__)
    app.add_url_rule("/runs/<int:number>", "races", lambda number: "mine")
    with pytest.raises(ConfigError) as error:
        FlaskStream(app, store="memory://")
    assert error.value.setting == "STREAM_URL_PREFIX"
    assert str(error.value) == (
        "STREAM_URL_PREFIX is '', so flask_stream's route GET /runs/<run> (endpoint "
        "'stream.status') collides with the app's GET /runs/<int:number> (endpoint 'races'): set "
        "a prefix such as /ai, or move the app's route"
    )


@pytest.mark.parametrize(
    ("rule", "methods"),
    [
        ("/", ["GET"]),
        ("/runs", ["POST", "PUT"]),
        ("/health/live", ["GET"]),
        ("/conversations/<name>", ["DELETE"]),
        ("/stream_<thing>", ["POST"]),
    ],
)
def test_which_routes_collide(rule: str, methods: list[str]) -> None:
    app = Flask(__name__)
    app.add_url_rule(rule, "mine", lambda **_: "mine", methods=methods)
    with pytest.raises(ConfigError, match="'mine'"):
        FlaskStream(app, store="memory://", page=True)


@pytest.mark.parametrize(
    ("rule", "methods"),
    [
        ("/", ["GET"]),  # there is no page
        ("/runs", ["GET"]),
        ("/runs/all/of/them", ["GET"]),
        ("/<path:anything>", ["GET"]),
        ("/openapi.json", ["GET"]),
        ("/static/<path:filename>", ["GET"]),
    ],
)
def test_which_routes_do_not(extend: Extend, rule: str, methods: list[str]) -> None:
    app = Flask(__name__, static_folder=None)
    app.add_url_rule(rule, "mine", lambda **_: "mine", methods=methods)
    extend(app)
    path = rule.replace("<path:anything>", "a/b").replace("<path:filename>", "logo")
    assert app.test_client().get(path).text == "mine"
    assert answers(app)


def test_a_prefix_ends_the_collision(extend: Extend) -> None:
    app = Flask(__name__)
    app.add_url_rule("/runs", "mine", lambda: "mine", methods=["POST"])
    extend(app, url_prefix="/ai")
    assert app.test_client().post("/runs").text == "mine"
    assert answers(app, "/ai")


def test_a_route_that_is_added_later_is_told_once(
    extend: Extend, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask(__name__)
    extend(app)
    app.add_url_rule("/health/live", "mine", lambda: "mine")
    for _ in range(2):
        assert app.test_client().get("/health/live").get_json() == {"status": "live"}
    assert [record.getMessage() for record in caplog.records] == [
        "the app's route GET /health/live (endpoint 'mine'), added after FlaskStream.init_app, is "
        "hidden by flask_stream's GET /health/live (endpoint 'stream.live'): add it before, or "
        "set STREAM_URL_PREFIX"
    ]


def test_a_blueprint_of_our_name_is_told() -> None:
    app = Flask(__name__)
    app.register_blueprint(Blueprint("stream", "their.module"))
    with pytest.raises(ConfigError, match=r"'stream' of their\.module is already registered"):
        FlaskStream(app, store="memory://")


def test_a_second_extension_is_told(extend: Extend) -> None:
    app = Flask(__name__)
    extend(app)
    with pytest.raises(ConfigError, match=r"already set, to a flask_stream.service.Service: one"):
        FlaskStream(app, store="memory://")
    assert answers(app)


# Apps that describe themselves


@pytest.mark.parametrize("ours", ["first", "last"])
def test_apiflask_keeps_its_own_openapi(extend: Extend, ours: str) -> None:
    app = APIFlask(__name__, title="Theirs")
    if ours == "first":
        extend(app)

    @app.get("/pets")
    def pets() -> list[str]:
        return []

    if ours == "last":
        extend(app)
    client = app.test_client()
    described = client.get("/openapi.json").get_json()
    assert (described["info"]["title"], list(described["paths"])) == ("Theirs", ["/pets"])
    assert client.get("/docs").status_code == 200
    ours_described = client.get("/stream/openapi.json").get_json()
    assert "/runs" in ours_described["paths"]
    assert answers(app)
    refused = client.get("/runs/" + "0" * 32)
    assert (refused.status_code, refused.mimetype) == (404, "application/problem+json")


def test_apiflasks_own_path_is_not_taken_from_it() -> None:
    app = APIFlask(__name__)
    with pytest.raises(ConfigError, match=r"/openapi\.json \(endpoint 'openapi\.spec'\)"):
        FlaskStream(app, store="memory://", openapi="/openapi.json")


@pytest.mark.parametrize("ours", ["first", "last"])
def test_flask_smorest_keeps_its_own_openapi(extend: Extend, ours: str) -> None:
    app = Flask(__name__)
    app.config |= {
        "API_TITLE": "Theirs",
        "API_VERSION": "1",
        "OPENAPI_VERSION": "3.0.3",
        "OPENAPI_URL_PREFIX": "/",
    }
    if ours == "first":
        extend(app)
    pets = ApiBlueprint("pets", __name__)
    pets.route("/pets")(lambda: "none")
    Api(app).register_blueprint(pets)
    if ours == "last":
        extend(app)
    client = app.test_client()
    described = client.get("/openapi.json").get_json()
    assert (described["info"]["title"], list(described["paths"])) == ("Theirs", ["/pets"])
    assert "/runs" in client.get("/stream/openapi.json").get_json()["paths"]
    assert answers(app)
    refused = client.get("/runs/" + "0" * 32)
    assert (refused.status_code, refused.mimetype) == (404, "application/problem+json")


def test_our_own_description_can_be_left_out(extend: Extend) -> None:
    app = Flask(__name__)
    extend(app, openapi="")
    assert not [rule for rule in app.url_map.iter_rules() if "openapi" in rule.rule]


# What is imported

EMBED = """
import sys
from flask import Flask
from langchain_core.runnables import RunnableLambda
from flask_stream import FlaskStream

app = Flask("embedded")
stream = FlaskStream(app, store="memory://")
stream.add("chain", RunnableLambda(lambda text: text))
stream.add("function", lambda question: [question])
answer = app.test_client().post("/stream_function", json={"question": "imported?"})
assert answer.status_code == 200, answer.data
app.extensions["flask_stream"].close()
print(*sorted(sys.modules))
"""


def test_an_app_of_ones_own_imports_no_model_and_no_graph() -> None:
    env = environment()
    done = subprocess.run(
        [sys.executable, "-c", EMBED], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "flask_stream.extension" in imported
    heavy = {"openai", "anthropic", "langchain", "langchain_openai", "langgraph", "xllamacpp"}
    assert not imported & (heavy | {"flask_stream.app", "flask_stream.chains"})


# Servers

APP = """
from flask import Flask
from flask_stream import FlaskStream

app = Flask(__name__)
app.config.from_prefixed_env()
stream = FlaskStream(app)
stream.add("shout", lambda question: [question.upper()])
if __name__ == "__main__":
    import socket, waitress
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"Running on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        waitress.serve(app, sockets=[listener])
"""
GUNICORN = [*gunicorn(app="host:app"), "--config"]
OURS = "from flask_stream.gunicorn import *"


@pytest.mark.parametrize(
    ("command", "conf", "warning"),
    [
        ([*GUNICORN, "conf.py", "-k", "sync"], "", ONE_REQUEST),
        ([*GUNICORN, "conf.py", "-k", "sync"], OURS, ONE_REQUEST),
        ([*GUNICORN, "conf.py", "-k", "gthread", "--threads", "4"], "", ONE_THREAD_EACH),
        ([*GUNICORN, "conf.py", "-k", "gthread", "--threads", "4"], OURS, ONE_THREAD_EACH),
        ([*GUNICORN, "conf.py", "-k", "gevent"], "", None),
        ([sys.executable, "host.py"], "", ONE_THREAD_EACH),
        ([sys.executable, "-m", "flask", "--app", "host", "run", "--port", "0"], "", None),
    ],
    ids=["sync", "sync-ours", "gthread", "gthread-ours", "gevent", "waitress", "flask"],
)
def test_a_server_that_is_bad_at_streams_is_told_once(
    tmp_path: Path, command: list[str], conf: str, warning: str | None
) -> None:
    (tmp_path / "host.py").write_text(APP)
    (tmp_path / "conf.py").write_text(conf)
    with Server(command, environment(PYTHONPATH=f"{tmp_path}:{ROOT}"), cwd=tmp_path) as server:
        for question in ("one", "two"):
            body = json.dumps({"question": question}).encode()
            sent = {"Content-Type": "application/json"}
            answer = request("POST", f"{server.url}/stream_shout", headers=sent, body=body)
            assert question.upper().encode() in answer.body
        log = server.log
    counts = {text: log.count(text) for text in (ONE_REQUEST, ONE_THREAD_EACH)}
    assert counts == {ONE_REQUEST: 0, ONE_THREAD_EACH: 0} | ({warning: 1} if warning else {}), log
