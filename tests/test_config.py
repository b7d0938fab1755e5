"""Settings: what cannot work is told at start, under the setting's own name."""

from __future__ import annotations

import os
from typing import Any

import pytest
from flask import Flask

from flask_stream import ConfigError, FlaskStream, create_app
from flask_stream.config import Settings

NAN, INFINITY = float("nan"), float("inf")

#: Setting, value, and what is said of it.
WRONG: list[tuple[str, Any, str]] = [
    ("heartbeat", "soon", "must be a number"),
    ("heartbeat", "", "is empty"),
    ("heartbeat", None, "is empty"),
    ("heartbeat", True, "must be a number"),
    ("heartbeat", 0, "at least 0.1"),
    ("heartbeat", -1.5, "at least 0.1"),
    ("heartbeat", NAN, "at least 0.1"),
    ("temperature", NAN, "at least 0"),
    ("temperature", False, "must be a number"),
    ("max_tokens", 0, "at least 1"),
    ("max_tokens", 1.5, "must be a whole number"),
    ("max_tokens", True, "must be a whole number"),
    ("max_question", "many", "must be a whole number"),
    ("max_body", "", "is empty"),
    ("page", "maybe", "must be true or false"),
    ("page", 1, "must be true or false"),
    ("page", "", "is empty"),
    ("title", 2, "must be text"),
    ("title", None, "is empty"),
    ("title", ["a"], "must be text"),
    ("model_folder", 1, "must be text"),
    ("store", "mysql://db", "use sqlite:///file"),
    ("store", "memory", "use sqlite:///file"),
    ("url_prefix", "ai", "a path that begins with / and does not end with one"),
    ("url_prefix", "/", "a path that begins with / and does not end with one"),
    ("url_prefix", "/ai/", "a path that begins with / and does not end with one"),
    ("url_prefix", "//ai", "a path that begins with / and does not end with one"),
    ("url_prefix", "/<name>", "a path that begins with / and does not end with one"),
    ("url_prefix", None, "is empty"),
    ("openapi", "openapi.json", "a path that begins with / and does not end with one"),
    ("store", "", ""),
    ("origins", "example.org", "should have origins"),
    ("origins", "https://example.org/", "should have origins"),
    ("origins", "https://good.example ftp://example.org", "'ftp://example.org'"),
    ("origins", "https://*.example.org", "should have origins"),
    # What no browser ever sends, and so could never work
    ("origins", "https://Example.org", "should have origins"),
    ("origins", "https://me@example.org", "should have origins"),
    ("origins", "https://example.org:port", "should have origins"),
    # To flask-cors a pattern, which lets in https://xexample.org
    ("origins", "https://*.example.org", "should have origins"),
    # What no clock, no socket and no browser can count to
    ("lease", INFINITY, ""),
    ("reconnect", INFINITY, ""),
    ("write_timeout", INFINITY, ""),
    ("write_timeout", 10_000_000, ""),
]

wrong = pytest.mark.parametrize(("name", "value", "said"), WRONG)


def told(error: pytest.ExceptionInfo[ConfigError], name: str, said: str) -> None:
    setting = f"STREAM_{name.upper()}"
    assert error.value.setting == setting
    assert str(error.value).startswith(setting)
    assert said in str(error.value)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which nothing is set but where logs go: nowhere."""
    for name in list(os.environ):
        if name.startswith(("FLASK_", "OPENAI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FLASK_STREAM_STORE", "memory://")


def bare_app() -> Flask:
    app = Flask(__name__)
    app.config["STREAM_STORE"] = "memory://"
    return app


# Where a setting comes from


@wrong
def test_a_wrong_value_in_the_apps_config(name: str, value: Any, said: str) -> None:
    app = bare_app()
    app.config[f"STREAM_{name.upper()}"] = value
    with pytest.raises(ConfigError) as error:
        FlaskStream(app)
    told(error, name, said)


@wrong
def test_a_wrong_value_given_to_the_constructor(name: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        FlaskStream(bare_app(), **{name: value})
    told(error, name, said)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("heartbeat", "soon", "is 'soon', but must be a number"),
        ("heartbeat", "", "is empty"),
        ("heartbeat", "0", "is 0.0, but must be at least 0.1"),
        ("heartbeat", "true", "is True, but must be a number"),
        ("heartbeat", "NaN", "is nan, but must be at least 0.1"),
        ("max_tokens", "12.5", "is 12.5, but must be a whole number"),
        ("page", "yes", "is 'yes', but must be true or false"),
        ("store", "mysql://db", "is not the URL of a store: use"),
        ("origins", "example.org", "has 'example.org', and should have origins"),
        ("hartbeat", "1", "is not a setting: did you mean STREAM_HEARTBEAT?"),
    ],
)
def test_a_wrong_value_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, said: str
) -> None:
    monkeypatch.setenv(f"FLASK_STREAM_{name.upper()}", text)
    with pytest.raises(ConfigError) as error:
        create_app()
    told(error, name, said)


def test_the_environment_is_read_by_apps_that_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_STREAM_HEARTBEAT", "2.5")
    monkeypatch.setenv("FLASK_STREAM_TITLE", "Ask us")
    app = Flask(__name__)
    assert Settings.load(app.config, {}).heartbeat == 10
    app.config.from_prefixed_env()
    loaded = Settings.load(app.config, {})
    assert (loaded.heartbeat, loaded.title) == (2.5, "Ask us")


def test_the_constructor_goes_before_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_STREAM_TITLE", "Environment")
    monkeypatch.setenv("FLASK_STREAM_PAGE", "false")
    app = create_app(title="Constructor")
    settings = app.extensions["flask_stream"].settings
    assert settings.title == "Constructor"
    assert settings.page is False
    # Also over one that alone could not work
    assert Settings.load({"STREAM_HEARTBEAT": "soon"}, {"heartbeat": 5}).heartbeat == 5


# Names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("heart_beat", "is not a setting: did you mean STREAM_HEARTBEAT?"),
        ("MAX_TOKEN", "is not a setting: did you mean STREAM_MAX_TOKENS?"),
        ("cache", "is not a setting: did you mean STREAM_MODEL_FOLDER?"),
        ("xyzzy", "is not a setting"),
    ],
)
def test_an_unknown_name_is_no_setting(name: str, said: str) -> None:
    app = bare_app()
    app.config[f"STREAM_{name.upper()}"] = 1
    with pytest.raises(ConfigError) as error:
        FlaskStream(app)
    told(error, name, said)
    with pytest.raises(ConfigError) as error:
        FlaskStream(bare_app(), **{name: 1})
    told(error, name, said)
    assert str(error.value).endswith(said)


def test_what_other_extensions_set_is_none_of_ours() -> None:
    assert Settings.load({"STREAMING": 1, "SECRET_KEY": "x", "stream_page": 1}, {}) == Settings()


# Values


def test_with_nothing_set_the_defaults_hold() -> None:
    app = bare_app()
    FlaskStream(app)
    settings = app.extensions["flask_stream"].settings
    assert settings == Settings(store="memory://")
    assert Settings.load({}, {}) == Settings()
    assert settings.page is False
    assert settings.origins == ""
    assert settings.model is None
    settings = create_app().extensions["flask_stream"].settings
    assert settings == Settings(
        store="memory://",
        page=True,
        openapi="/openapi.json",
        start_limit="30/minute",
        address_limit="120/minute",
    )


def test_a_whole_number_is_a_number() -> None:
    loaded = Settings.load({"STREAM_HEARTBEAT": 3}, {})
    assert isinstance(loaded.heartbeat, float)


def test_what_may_be_unset_may_be_empty() -> None:
    config = {"STREAM_MAX_TOKENS": None, "STREAM_MODEL": "", "STREAM_ORIGINS": ""}
    loaded = Settings.load(config, {})
    assert (loaded.max_tokens, loaded.model, loaded.origins) == (None, None, "")


def test_origins_are_separated_by_spaces() -> None:
    app = bare_app()
    FlaskStream(app, origins="https://example.org  http://localhost:5173")
    assert app.extensions["flask_stream"].access.origins.listed == {
        "https://example.org",
        "http://localhost:5173",
    }


@pytest.mark.parametrize(
    "model",
    ["gpt-4o-mini", "mistral:small", "openai:", ":gpt", "OpenAI:gpt-4o-mini", "local", "local:"],
)
def test_a_model_is_named_by_provider_and_name(model: str) -> None:
    with pytest.raises(ConfigError, match="must be provider:name") as error:
        create_app(model=model)
    told(error, "model", repr(model))


def test_a_model_that_nobody_can_ask_is_told_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs OPENAI_API_KEY") as error:
        create_app(model="openai:gpt-4o-mini")
    told(error, "model", "openai:gpt-4o-mini")
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    assert create_app(model="openai:gpt-4o-mini").extensions["flask_stream"]
