"""Secrets: the key that signs cookies and tickets, and the API keys of other sites.

The signing key is Flask's own (`SECRET_KEY`, with `SECRET_KEY_FALLBACKS` for one that is on its
way out). Where none is set, one is made and kept in the instance folder, for this user alone and
the same for all workers.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from flask import Flask
from itsdangerous import URLSafeTimedSerializer

from ..errors import ConfigError

#: What every API key begins with, so that it is told from a token, and found where it leaked.
API_KEY = "fsk_"
FILE = "secret_key"


class Keys:
    """The secrets of one app. The signing key is looked for when it is first needed."""

    def __init__(self, app: Flask, api_keys: str) -> None:
        self._app = app
        fallbacks = app.config.get("SECRET_KEY_FALLBACKS") or []
        if not isinstance(fallbacks, list | tuple):
            raise ConfigError("SECRET_KEY_FALLBACKS", 'is no list, such as ["an old key"]')
        for name, key in [("SECRET_KEY", app.secret_key or ""), *_named(fallbacks)]:
            if not isinstance(key, str | bytes):
                raise ConfigError(name, "is no text: quote it, if it is all digits")
        self._made: str | None = None
        self._sites = dict(_site(word) for word in api_keys.split())

    def check(self) -> None:
        """Raise ConfigError when there is no signing key, and none can be made."""
        if not self._app.secret_key:
            self._own()

    def serializer(self, salt: str) -> URLSafeTimedSerializer:
        """Signs for one purpose: what it has signed says nothing under another salt.

        Raises ConfigError when there is no key, and none can be made.
        """
        app = self._app
        key = app.secret_key or self._own()
        fallbacks = app.config.get("SECRET_KEY_FALLBACKS") or []
        # The last one signs.
        return URLSafeTimedSerializer(
            [*reversed(fallbacks), key], salt=f"flask_stream.{salt}", signer_kwargs=_SIGNER
        )

    def fingerprint(self, text: str) -> str:
        """The same for the same text, and of no use without the key: 16 hexadecimal digits."""
        key = self._app.secret_key or self._own()
        raw = key.encode() if isinstance(key, str) else key
        return hmac.new(raw, text.encode(), sha256).hexdigest()[:16]

    def _own(self) -> str:
        if self._made is None:
            self._made = _kept(Path(self._app.instance_path) / FILE)
        return self._made

    def site(self, key: str) -> str | None:
        """The name of the site whose API key this is, or None."""
        given = digest(key)
        found = None
        for known, name in self._sites.items():  # all of them, however soon one fits
            if hmac.compare_digest(known, given):
                found = name
        return found


def new_api_key() -> str:
    """A fresh API key, of 256 random bits."""
    return API_KEY + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """How an API key is kept. It has more random bits than anybody can try: no salt, no rounds."""
    return sha256(key.encode()).hexdigest()


#: Flask's default digest is SHA-1; this is for longer than a page's session.
_SIGNER = {"key_derivation": "hmac", "digest_method": sha256}


def _named(fallbacks: Iterable[object]) -> list[tuple[str, object]]:
    return [("SECRET_KEY_FALLBACKS", key) for key in fallbacks]


def is_site(name: str) -> bool:
    """Whether that can be the name of a site."""
    return re.fullmatch(r"[a-z0-9_.-]{1,64}", name) is not None


def _site(word: str) -> tuple[str, str]:
    name, colon, kept = word.partition(":")
    if not colon or word.startswith(API_KEY):
        # It may well be a key, and is not repeated here.
        raise ConfigError("STREAM_API_KEYS", "has a word that is not name:hash")
    if not is_site(name) or not re.fullmatch("[0-9a-f]{64}", kept):
        raise ConfigError(
            "STREAM_API_KEYS",
            f"has {name!r} with something that is no hash: `flask stream key <name>` makes both",
        )
    return kept, name


def _kept(path: Path) -> str:
    """The key in this file, made by whoever comes first."""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"{FILE}.{os.getpid()}.{secrets.token_hex(4)}")
            with os.fdopen(
                os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
            ) as file:
                file.write(secrets.token_hex(32))
            try:
                os.link(fresh, path)  # whole or not at all, and only once
            except FileExistsError:
                pass
            finally:
                os.unlink(fresh)
        key = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "SECRET_KEY", f"is not set, and none can be kept in the instance folder: {error}"
        ) from error
    if len(key) < 32:
        raise ConfigError("SECRET_KEY", "is not set, and the file in the instance folder has none")
    return key
