"""The description is what the service does: by its routes, and by what schemathesis thinks of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from pydantic import BaseModel
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.generation.case import Case as AnyCase
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from flask_stream import FlaskStream
from flask_stream.service import Service
from flask_stream.web import schemas

from .people import LISTEN, Site, bearer, refused
from .provider import Provider, Script
from .server import Server, environment, gunicorn
from .sse import Parser, request

Case = AnyCase[Any]
KEY = "fsk_the-key-of-the-blog"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
#: Pages and what belongs to them; and what is not spoken in requests and answers.
NOT_DESCRIBED = {"/", "/static/stream/{filename}", "/c/{conversation}"}
NOT_DESCRIBED |= {"/ws/{chain}", "/socket.io/"}


@pytest.fixture(scope="module")
def site(_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The whole service, for anyone and for a site that has an API key."""
    env = environment(
        store=f"sqlite:///{tmp_path_factory.mktemp('openapi')}/runs.db",
        api_keys=f"blog:{hashlib.sha256(KEY.encode()).hexdigest()}",
        model="openai:scripted",
        OPENAI_BASE_URL=_provider.url,
        OPENAI_API_KEY="test",
    )
    with Server(gunicorn(), env) as server:
        yield Site(server)


@pytest.fixture(scope="module")
def described(site: Site) -> dict[str, Any]:
    answer = request("GET", f"{site.url}/openapi.json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(scope="module")
def there(site: Site, _provider: Provider) -> dict[str, dict[str, str]]:
    """A run that is over, and its conversation: anyone's, and the blog's."""
    _provider.script = Script()

    def one(who: dict[str, str]) -> dict[str, str]:
        run = site.finished("q", who)
        return {"run": run, "id": site.status(run, who).json()["conversation"]}

    return {"anyone": one({}), "blog": one(bearer(KEY))}


@pytest.fixture(scope="module")
def api(site: Site) -> Any:
    return schemathesis.openapi.from_url(f"{site.url}/openapi.json")


few = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("who", ["anyone", "blog"])
def test_what_is_answered_is_what_is_described(
    api: Any, there: dict[str, dict[str, str]], provider: Provider, who: str, mode: GenerationMode
) -> None:
    sent = bearer(KEY) if who == "blog" else {}
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        statuses = asked(operation, mode, there[who], sent)
        if mode == GenerationMode.POSITIVE and who == "blog" and operation.method != "delete":
            # It has seen the inside, too.
            assert statuses & {200, 201, 204}, operation.label


def asked(
    operation: Any, mode: GenerationMode, there: dict[str, str], who: dict[str, str]
) -> set[int]:
    """Ask for an operation in many ways; with which statuses it was answered."""
    statuses: set[int] = set()

    @few
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case) -> None:
        statuses.update(answered(case, there, who))

    try:
        ask()
    except Unsatisfiable:
        # There is nothing that could be wrong with it.
        assert mode == GenerationMode.NEGATIVE
    return statuses


def answered(case: Case, there: dict[str, str], who: dict[str, str]) -> set[int]:
    """Ask, and check the answer: about whatever it is, and about what is there; the statuses."""
    headers = who | (LISTEN if case.path.startswith("/stream_") else {})
    found = {case.call_and_validate(headers=headers, checks=CHECKS, timeout=20).status_code}
    known = {name: there[name] for name in case.path_parameters or {}}
    # What is removed would not be there for the next.
    if known and case.method != "DELETE":
        case.path_parameters.update(known)
        found.add(case.call_and_validate(headers=headers, checks=CHECKS, timeout=20).status_code)
    return found


def test_it_is_openapi_as_its_schema_has_it(described: dict[str, Any]) -> None:
    from jsonschema_rs import validator_for  # what schemathesis checks with
    from schemathesis.specs.openapi.definitions import OPENAPI_31

    validator_for(OPENAPI_31).validate(described)


def routes(app: Flask) -> dict[str, set[str]]:
    """An app's paths as OpenAPI writes them, and their methods."""
    found: dict[str, set[str]] = {}
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        found.setdefault(path, set()).update((rule.methods or set()) - {"HEAD", "OPTIONS"})
    return found


@pytest.fixture
def app() -> Iterator[Flask]:
    app = Flask(__name__, static_folder=None)
    app.config.update({"STREAM_STORE": "memory://", "STREAM_PAGE": True, "SECRET_KEY": "k" * 32})
    stream = FlaskStream(app)
    stream.add("one", lambda question: iter(["1"]))
    stream.add("the-other", lambda question: iter(["2"]))
    yield app
    service: Service = app.extensions["flask_stream"]
    service.close()


def test_every_route_is_described_and_no_other(app: Flask) -> None:
    paths = app.test_client().get("/stream/openapi.json").get_json()["paths"]
    methods = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
    told = {path: {m.upper() for m in item if m in methods} for path, item in paths.items()}
    there = {path: methods for path, methods in routes(app).items() if path not in NOT_DESCRIBED}
    asked = there.pop("/stream_{chain}")
    assert told == there | {"/stream_one": asked, "/stream_the-other": asked}


def check_response(model: type[BaseModel], value: dict[str, Any]) -> None:
    """Assert that a response is what its model describes, and has no field beside."""
    model.model_validate(value, strict=True)
    assert value.keys() <= model.model_fields.keys()
    assert {name for name, field in model.model_fields.items() if field.is_required()} <= set(value)


def test_responses_are_what_their_models_describe(app: Flask) -> None:
    client = app.test_client()
    client.get("/")  # which gives it a session
    started = client.post("/runs", json={"chain": "one", "input": "1?"}).get_json()
    with client.get(started["urls"]["events"]) as response:
        events = Parser().feed(response.data)
    assert events
    for event in events:
        check_response(schemas.Event, {"data": event.data, "id": event.id, "event": event.type})
    run = client.get(started["urls"]["self"]).get_json()
    for value in started, run:
        check_response(schemas.Run, value)
    page = client.get("/conversations").get_json()
    check_response(schemas.Conversations, page)
    (listed,) = page["conversations"]
    conversation = client.get(listed["url"]).get_json()
    renamed = client.patch(listed["url"], json={"title": "New"}).get_json()
    for value in listed, conversation, renamed:
        check_response(schemas.Conversation, value)
    for value in conversation["runs"]:
        check_response(schemas.ConversationRun, value)
    check_response(schemas.Ticket, client.post("/tickets", json={"chain": "one"}).get_json())
    for path in ("/runs/short", "/runs/" + "0" * 32):
        check_response(schemas.Problem, client.get(path).get_json())
    check_response(schemas.Problem, client.post("/runs", json={"chain": 1}).get_json())
    check_response(schemas.Live, client.get("/health/live").get_json())
    check_response(schemas.Ready, client.get("/health/ready").get_json())


def test_formats_are_those_that_are_registered(app: Flask) -> None:
    described = app.test_client().get("/stream/openapi.json").get_json()
    parameters = described["paths"]["/runs/{run}/events"]["get"]["parameters"]
    (format,) = [one["schema"] for one in parameters if one["name"] == "format"]
    assert format["enum"] == list(app.extensions["flask_stream"].dialects)


def test_every_way_to_send_a_cursor_is_described(app: Flask) -> None:
    described = app.test_client().get("/stream/openapi.json").get_json()
    for path in ("/runs/{run}/events", "/stream_one"):
        parameters = described["paths"][path]["get"]["parameters"]
        cursors = [(p["in"], p["name"]) for p in parameters if "0|[1-9]" in str(p["schema"])]
        assert cursors == [
            ("header", "Last-Event-ID"),
            ("query", "after"),
            ("query", "lastEventId"),
        ]


def test_it_says_where_the_app_is(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/stream/openapi.json").get_json()["servers"] == [{"url": "/"}]
    mounted = client.get("/stream/openapi.json", base_url="http://localhost/ask").get_json()
    assert mounted["servers"] == [{"url": "/ask"}]


def test_references_lead_somewhere_and_operations_have_names(described: dict[str, Any]) -> None:
    names = []
    for item in described["paths"].values():
        for method, operation in item.items():
            if method != "parameters":
                names.append(operation["operationId"])
                assert operation["summary"]
                for status, answer in operation["responses"].items():
                    assert answer["description"]
                    if int(status) >= 400 and status != "414":
                        assert set(answer["content"]) == {"application/problem+json"}
    assert len(set(names)) == len(names)

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from (v for k, v in value.items() if k == "$ref")
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    for reference in set(references(described)):
        place: Any = described
        for word in reference.removeprefix("#/").split("/"):
            place = place[word]


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "BREW")


def test_other_methods_are_refused(
    site: Site, described: dict[str, Any], provider: Provider
) -> None:
    for path, item in described["paths"].items():
        url = site.url + re.sub("{.*?}", "0" * 32, path)
        for method in METHODS:
            if method.lower() not in item:
                answer = request(method, url, headers=bearer(KEY))
                refused(answer, 405)
                allowed = {word.lower() for word in re.split(", *", answer.headers["Allow"])}
                assert allowed - {"head", "options"} == item.keys() - {"parameters"}, (method, path)
    assert not provider.calls


def test_it_is_readable_for_everybody(site: Site) -> None:
    # It tells nothing that is anybody's.
    assert request("GET", f"{site.url}/openapi.json", headers=bearer(KEY)).status == 200
    assert KEY not in str(request("GET", f"{site.url}/openapi.json").json())
