"""Secrets: API keys, from the command that makes them to who has one; the key that signs."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from flask_stream import ConfigError, FlaskStream
from flask_stream.security.keys import Keys
from flask_stream.service import Service

from .people import Site, altered, bearer, refused, users
from .provider import Provider
from .server import ROOT, environment
from .sse import request


def made(name: str) -> tuple[str, str]:
    """What `flask stream key` prints: the key, and the setting's word."""
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi", "stream", "key", name],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    key, word = re.findall(r"(?:fsk_|\w+:)[\w-]+$", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stderr
    return key, word


@pytest.fixture(scope="module")
def api() -> tuple[str, str]:
    """A site's key, and what the service keeps of it."""
    return made("blog")


@pytest.fixture(scope="module")
def site(
    _provider: Provider, tmp_path_factory: pytest.TempPathFactory, api: tuple[str, str]
) -> Iterator[Site]:
    """The service, with the keys of two sites."""
    words = f"{api[1]}  shop:{hashlib.sha256(b'fsk_the-shops-own').hexdigest()}"
    with users(_provider, tmp_path_factory.mktemp("keys"), api_keys=words) as server:
        yield Site(server)


def test_the_command_makes_a_key_and_what_is_kept_of_it(api: tuple[str, str]) -> None:
    key, word = api
    assert re.fullmatch(r"fsk_[\w-]{43}", key)
    assert word == f"blog:{hashlib.sha256(key.encode()).hexdigest()}"
    assert made("blog")[0] != key


@pytest.mark.parametrize("name", ["Blog", "a b", "a:b", "", "x" * 65, "a/b"])
def test_the_command_makes_no_key_that_would_not_work(name: str) -> None:
    app = Flask(__name__)
    FlaskStream(app, store="memory://", checkpoints="memory://")
    done = app.test_cli_runner().invoke(args=["stream", "key", name])
    assert done.exit_code == 2
    assert "fsk_" not in done.output
    assert "Invalid value for NAME" in done.output


def test_a_site_may_ask_and_has_what_it_asked(
    site: Site, provider: Provider, api: tuple[str, str]
) -> None:
    blog, shop = bearer(api[0]), bearer("fsk_the-shops-own")
    run = site.finished("mine", blog)
    assert site.status(run, blog).status == 200
    for who in (shop, {}, site.person("a visitor")):
        assert site.status(run, who).status == 404
    refused(site.ask("more", shop, parent=run), 404, "parent")


def test_a_key_that_is_not_known_is_told_so(
    site: Site, provider: Provider, api: tuple[str, str]
) -> None:
    key, word = api
    for wrong in (
        "fsk_",
        "fsk_unknown",
        altered(key, -1),
        key[:-1],
        key + "x",
        "fsk_" + word.partition(":")[2],  # whoever has read the settings has no key
        "fsk_é",
    ):
        for method, path, body in (
            ("POST", "/tickets", {"chain": "chat"}),
            ("POST", "/runs", {"chain": "open", "input": "q"}),
            ("GET", "/stream_open?question=q", None),
        ):
            answer = request(method, site.url + path, json=body, headers=bearer(wrong))
            problem = refused(answer, 401, "Authorization")
            assert wrong not in str(problem).replace("fsk_", "", wrong == "fsk_")
    assert not provider.calls


def test_a_key_is_nowhere_in_the_log(site: Site, api: tuple[str, str]) -> None:
    assert api[0] not in site.server.log
    assert api[1].partition(":")[2] not in site.server.log


@pytest.mark.parametrize(
    "words",
    [
        "fsk_a-plain-key",
        "blog:fsk_a-plain-key",
        "blog",
        "blog:",
        f":{'0' * 64}",
        f"blog:{'0' * 63}",
        f"blog:{'0' * 65}",
        f"Blog:{'0' * 64}",
        f"a/b:{'0' * 64}",
        f"blog:{'0' * 64},shop:{'1' * 64}",
        f"blog:{'0' * 64} shop",
    ],
)
def test_what_is_no_hash_is_told_at_start_and_not_shown(words: str) -> None:
    app = Flask(__name__)
    app.config.update({"STREAM_STORE": "memory://", "STREAM_API_KEYS": words})
    with pytest.raises(ConfigError, match="STREAM_API_KEYS") as told:
        FlaskStream(app)
    assert "plain-key" not in str(told.value)
    assert "0" * 60 not in str(told.value)


def test_the_keys_are_not_in_what_settings_show() -> None:
    app = Flask(__name__)
    secrets = {"STREAM_API_KEYS": f"blog:{'0' * 64}", "STREAM_LOCAL_KEY": "canary"}
    app.config.update({"STREAM_STORE": "memory://"} | secrets)
    FlaskStream(app)
    service: Service = app.extensions["flask_stream"]
    assert "canary" not in repr(service.settings)
    assert "0" * 64 not in repr(service.settings)
    service.close()


# The key that signs, where it is kept


def keys(folder: Path) -> Keys:
    return Keys(Flask(__name__, instance_path=str(folder)), "")


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "for it"
    before = os.umask(0)
    try:
        signed = keys(folder).serializer("x").dumps("text")
    finally:
        os.umask(before)
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys(folder).serializer("x").loads(signed) == "text"
    assert keys(folder).fingerprint("192.0.2.1") == keys(folder).fingerprint("192.0.2.1")
    assert keys(tmp_path).fingerprint("192.0.2.1") != keys(folder).fingerprint("192.0.2.1")


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64])
def test_a_key_that_is_none_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret_key").write_bytes(content)
    with pytest.raises(ConfigError, match="SECRET_KEY"):
        keys(tmp_path).check_signing_key()


def test_a_folder_that_cannot_be_made_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="SECRET_KEY is not set"):
        keys(tmp_path / "file" / "instance").check_signing_key()
    assert not caplog.records
