"""Secrets: the key that signs cookies and tickets, and the API keys of other sites.

The signing key is Flask's own (`SECRET_KEY`, with `SECRET_KEY_FALLBACKS` for one that is on its
way out). Without one, a key is made and kept in the instance folder. Only this user can read that
file, and all workers use it.
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

#: Every API key begins with this. It tells a key from a token, and helps to find leaked keys.
API_KEY = "fsk_"
FILE = "secret_key"


class Keys:
    """The secrets of one app. The signing key is read when it is first needed."""

    def __init__(self, app: Flask, api_keys: str) -> None:
        self._app = app
        fallbacks = app.config.get("SECRET_KEY_FALLBACKS") or []
        if not isinstance(fallbacks, list | tuple):
            raise ConfigError("SECRET_KEY_FALLBACKS", 'is not a list, such as ["an old key"]')
        for name, key in [("SECRET_KEY", app.secret_key or ""), *_named(fallbacks)]:
            if not isinstance(key, str | bytes):
                raise ConfigError(name, "is not text: quote it if it is all digits")
        self._made: str | None = None
        self._sites = dict(_site(word) for word in api_keys.split())

    def check_signing_key(self) -> None:
        """Raise ConfigError if there is no signing key and none can be made."""
        if not self._app.secret_key:
            self._instance_key()

    def serializer(self, salt: str) -> URLSafeTimedSerializer:
        """Return a serializer for one purpose: its signatures are not valid under another salt.

        Raises ConfigError if there is no key and none can be made.
        """
        app = self._app
        key = app.secret_key or self._instance_key()
        fallbacks = app.config.get("SECRET_KEY_FALLBACKS") or []
        # itsdangerous signs with the last key and accepts all of them.
        return URLSafeTimedSerializer(
            [*reversed(fallbacks), key], salt=f"flask_stream.{salt}", signer_kwargs=_SIGNER
        )

    def fingerprint(self, text: str) -> str:
        """Return 16 hexadecimal digits for a text. They reveal nothing without the key."""
        key = self._app.secret_key or self._instance_key()
        raw = key.encode() if isinstance(key, str) else key
        return hmac.new(raw, text.encode(), sha256).hexdigest()[:16]

    def _instance_key(self) -> str:
        if self._made is None:
            self._made = _kept(Path(self._app.instance_path) / FILE)
        return self._made

    def site(self, key: str) -> str | None:
        """Return the name of the site with this API key, or None."""
        given = digest(key)
        found = None
        # Compare all of them: the time must not depend on which one matches.
        for known, name in self._sites.items():
            if hmac.compare_digest(known, given):
                found = name
        return found


def new_api_key() -> str:
    """Return a new API key of 256 random bits."""
    return API_KEY + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """Return the hash under which an API key is kept.

    A random key of 256 bits needs neither a salt nor a slow hash.
    """
    return sha256(key.encode()).hexdigest()


#: SHA-256, where the default is SHA-1.
_SIGNER = {"key_derivation": "hmac", "digest_method": sha256}


def _named(fallbacks: Iterable[object]) -> list[tuple[str, object]]:
    return [("SECRET_KEY_FALLBACKS", key) for key in fallbacks]


def is_site(name: str) -> bool:
    """Return whether `name` can be the name of a site."""
    return re.fullmatch(r"[a-z0-9_.-]{1,64}", name) is not None


def _site(word: str) -> tuple[str, str]:
    name, colon, kept = word.partition(":")
    if not colon or word.startswith(API_KEY):
        # The word may be a key, so the message does not repeat it.
        raise ConfigError("STREAM_API_KEYS", "has an entry that is not name:hash")
    if not is_site(name) or not re.fullmatch("[0-9a-f]{64}", kept):
        raise ConfigError(
            "STREAM_API_KEYS",
            f"has {name!r} with a value that is not a hash: `flask stream key <name>` makes both",
        )
    return kept, name


def _kept(path: Path) -> str:
    """Return the key in this file. The first worker makes it."""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f"{FILE}.{os.getpid()}.{secrets.token_hex(4)}")
            with os.fdopen(
                os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
            ) as file:
                file.write(secrets.token_hex(32))
            try:
                os.link(fresh, path)  # atomic: the file appears whole, and only once
            except FileExistsError:
                pass
            finally:
                os.unlink(fresh)
        key = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "SECRET_KEY", f"is not set, and no key can be kept in the instance folder: {error}"
        ) from error
    if len(key) < 32:
        raise ConfigError("SECRET_KEY", f"is not set, and the file {FILE} holds no key")
    return key
