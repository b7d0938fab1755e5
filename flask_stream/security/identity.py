"""Identity: the principal of a request.

A principal owns runs and conversations. It is text that begins with its kind: `session:…`,
`user:…` or `site:…`. A request without credentials gets `anyone:` and a fingerprint of its address.
The fingerprint is used for limits only and grants nothing: such a run may be read by everybody who
has its id, which cannot be guessed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from flask import Request, Response
from itsdangerous import BadSignature

from ..config import Settings
from ..errors import ConfigError, Unauthorized, Unavailable
from ..events import is_id, new_id
from .keys import API_KEY, Keys

logger = logging.getLogger(__name__)

COOKIE = "stream_session"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a request's credentials say.

    `issued` and `expires` are in seconds since the epoch. `explicit` is True for a credential
    that a script sent, such as a token; a browser sends a cookie by itself.
    """

    principal: str
    issued: float | None = None
    expires: float | None = None
    explicit: bool = False


class Auth(Protocol):
    """One way to identify callers."""

    #: Whether a caller without credentials may use chains that are not public.
    open: bool

    def identify(self, request: Request) -> Identity | None:
        """Return the identity, or None without credentials.

        Raises Unauthorized for credentials that are not valid or have expired.
        """

    def set_session(self, request: Request, response: Response, renew: bool) -> None:
        """Add to a page's response what identifies the next request.

        `renew` replaces an identity that is no longer valid.
        """


#: A developer's own function: returns a user's id for a request, or None.
Callback = Callable[[Request], str | int | None]


class SessionAuth:
    """`STREAM_AUTH=session`: an anonymous signed cookie, shared by all tabs of a browser."""

    open = True

    def __init__(self, keys: Keys, age: float, url_prefix: str) -> None:
        self._keys = keys
        self._age = age
        self._url_prefix = url_prefix

    def identify(self, request: Request) -> Identity | None:
        found = self._session(request)
        if found is None:
            return None
        session, since = found
        return Identity(f"session:{session}", since, since + self._age)

    def set_session(self, request: Request, response: Response, renew: bool) -> None:
        found = None if renew else self._session(request)
        if found is not None and time.time() - found[1] < self._age / 2:
            return
        response.set_cookie(
            COOKIE,
            str(self._keys.serializer("session").dumps(found[0] if found else new_id())),
            max_age=int(self._age),
            path=request.root_path + self._url_prefix or "/",
            secure=request.is_secure,
            httponly=True,
            samesite="Lax",
        )

    def _session(self, request: Request) -> tuple[str, float] | None:
        # A forged or expired cookie is ignored, and a new session is made.
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            session, since = self._keys.serializer("session").loads(
                cookie, max_age=int(self._age), return_timestamp=True
            )
        except BadSignature:
            return None
        return (session, since.timestamp()) if is_id(str(session)) else None


class TokenAuth:
    """`STREAM_AUTH=jwt`: a token in `Authorization: Bearer …`. Its `sub` is the user's id.

    The algorithm is pinned; issuer, audience and an expiry are required.
    """

    open = False

    def __init__(self, settings: Settings) -> None:
        try:
            import jwt
        except ImportError as missing:
            raise ConfigError(
                "STREAM_AUTH", "is 'jwt', which needs: pip install 'flask-llm-stream[jwt]'"
            ) from missing
        self._jwt = jwt
        names = ("jwt_algorithm", "jwt_issuer", "jwt_audience")
        needed = [f"STREAM_{name.upper()}" for name in names if not getattr(settings, name)]
        if not settings.jwt_key and not settings.jwt_jwks:
            needed.append("STREAM_JWT_KEY or STREAM_JWT_JWKS")
        if needed:
            raise ConfigError("STREAM_AUTH", f"is 'jwt', which needs {', '.join(needed)}")
        algorithm = str(settings.jwt_algorithm)
        self._options: dict[str, Any] = {
            "algorithms": [algorithm],
            "issuer": settings.jwt_issuer,
            "audience": settings.jwt_audience,
            "options": {"require": ["exp", "iss", "aud", "sub"]},
        }
        if algorithm not in jwt.algorithms.get_default_algorithms() or algorithm == "none":
            raise ConfigError("STREAM_JWT_ALGORITHM", f"is {algorithm!r}, which is not supported")
        if settings.jwt_key and settings.jwt_jwks:
            raise ConfigError("STREAM_JWT_KEY", "and STREAM_JWT_JWKS are both set: keep one")
        self._jwks = None
        if settings.jwt_jwks:
            if algorithm.startswith("HS"):
                raise ConfigError(
                    "STREAM_JWT_ALGORITHM",
                    f"is {algorithm}, which needs a secret key: STREAM_JWT_JWKS publishes its keys",
                )
            try:
                self._jwks = jwt.PyJWKClient(settings.jwt_jwks, timeout=5)
            except jwt.PyJWTError as error:
                raise ConfigError("STREAM_JWT_JWKS", "is not an http or https URL") from error
        self._key = _usable(jwt, algorithm, settings.jwt_key)

    def identify(self, request: Request) -> Identity | None:
        token = bearer_token(request)
        if token is None:
            return None
        jwt = self._jwt
        try:
            claims = jwt.decode(token, self._key_of(token), **self._options)
            who = _user(claims["sub"])
            issued = claims.get("iat")
        except jwt.ExpiredSignatureError as error:
            raise Unauthorized("The token has expired.", field="Authorization") from error
        except (jwt.PyJWTError, ValueError) as error:
            raise Unauthorized("The token is not valid.", field="Authorization") from error
        return Identity(who, issued, float(claims["exp"]), explicit=True)

    def _key_of(self, token: str) -> Any:
        if self._jwks is None:
            return self._key
        # Raises for text that is not a token, before any keys are fetched.
        self._jwt.get_unverified_header(token)
        try:
            self._jwks.get_jwk_set()
        except (self._jwt.PyJWTError, ValueError, OSError) as error:
            logger.error("the keys of STREAM_JWT_JWKS cannot be fetched: %s", error)
            raise Unavailable("Tokens cannot be checked right now.", retry_after=5) from error
        return self._jwks.get_signing_key_from_jwt(token).key

    def set_session(self, request: Request, response: Response, renew: bool) -> None:
        """Do nothing: tokens are issued elsewhere."""


class CallbackAuth:
    """`auth=function`: a developer's own function, such as one that asks Flask-Login."""

    open = False

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    def identify(self, request: Request) -> Identity | None:
        id = self._callback(request)
        # Issued now: the app decides anew at each request.
        if id is None or id == "":
            return None
        return Identity(_user(id), issued=time.time())

    def set_session(self, request: Request, response: Response, renew: bool) -> None:
        """Do nothing: the app signs people in."""


def make_auth(settings: Settings, keys: Keys) -> Auth:
    """Return what `STREAM_AUTH` names. Raises ConfigError."""
    if callable(settings.auth):
        return CallbackAuth(settings.auth)
    if settings.auth == "session":
        return SessionAuth(keys, settings.session_age, settings.url_prefix)
    if settings.auth == "jwt":
        return TokenAuth(settings)
    raise ConfigError("STREAM_AUTH", f"is {settings.auth!r}, but must be session or jwt")


def site_identity(request: Request, keys: Keys) -> Identity | None:
    """Return the site whose API key a request has, or None. Raises Unauthorized for a wrong key."""
    key = bearer_token(request)
    if key is None or not key.startswith(API_KEY):
        return None
    name = keys.site(key)
    if name is None:
        raise Unauthorized("The API key is not known.", field="Authorization")
    return Identity(f"site:{name}", issued=time.time(), explicit=True)


def _user(id: str | int) -> str:
    """Return the principal of a user's id. Raises ValueError for an empty one."""
    if id == "":
        raise ValueError("a user's id is empty")
    # JSON may contain half of a surrogate pair, which UTF-8 cannot encode.
    return f"user:{id}".encode("utf-8", "replace").decode()


def bearer_token(request: Request) -> str | None:
    """Return the token of an `Authorization: Bearer …` header, or None."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _usable(jwt: Any, algorithm: str, key: str | None) -> Any:
    """Return the key in the algorithm's form. Raises ConfigError at start for a wrong key."""
    if key is None:
        return None
    if algorithm.startswith("HS") and len(key.encode()) < int(algorithm[2:]) // 8:
        raise ConfigError("STREAM_JWT_KEY", f"is too short a secret for {algorithm}")
    try:
        return jwt.algorithms.get_default_algorithms()[algorithm].prepare_key(key)
    except Exception as error:  # what is raised depends on the algorithm
        raise ConfigError("STREAM_JWT_KEY", f"is not a key for {algorithm}") from error
