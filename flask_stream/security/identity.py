"""Who asks: how a request becomes a principal.

A principal is the owner of runs and conversations, a text that begins with its kind:
`session:…`, `user:…`, `site:…`. A request that says nothing of itself is `anyone`'s: such a run
belongs to whoever has its unguessable id. `anyone:` is followed by a fingerprint of the address,
which is for limits and gives no right to anything.
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
    """Who a request says that it is, and since and until when, in seconds since the epoch.

    `carried` is what a script put there, a token or a ticket; a cookie is sent by the browser
    whoever asks.
    """

    principal: str
    issued: float | None = None
    expires: float | None = None
    carried: bool = False


class Auth(Protocol):
    """One way to tell who asks."""

    #: Whether somebody whom it does not know may ask chains that are not public.
    open: bool

    def identify(self, request: Request) -> Identity | None:
        """Who asks, or None for anyone. Raises Unauthorized for what is not, or no longer, true."""

    def welcome(self, request: Request, response: Response, anew: bool) -> None:
        """Give a page's visitor what the next request will be known by.

        `anew` is when what the visitor has counts no longer.
        """


#: A developer's own: a principal's id for a request, or None.
Callback = Callable[[Request], str | int | None]


class SessionAuth:
    """`STREAM_AUTH=session`: an anonymous signed cookie, the same for all tabs of a browser."""

    open = True

    def __init__(self, keys: Keys, age: float) -> None:
        self._keys = keys
        self._age = age

    def identify(self, request: Request) -> Identity | None:
        known = self._known(request)
        if known is None:
            return None
        session, since = known
        return Identity(f"session:{session}", since, since + self._age)

    def welcome(self, request: Request, response: Response, anew: bool) -> None:
        known = None if anew else self._known(request)
        if known is not None and time.time() - known[1] < self._age / 2:
            return
        response.set_cookie(
            COOKIE,
            str(self._keys.serializer("session").dumps(known[0] if known else new_id())),
            max_age=int(self._age),
            path=request.root_path or "/",
            secure=request.is_secure,
            httponly=True,
            samesite="Lax",
        )

    def _known(self, request: Request) -> tuple[str, float] | None:
        # What is forged or too old is no session: a new one is made, and nobody is told off.
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
    """`STREAM_AUTH=jwt`: a token in `Authorization: Bearer …`, whose `sub` is the principal.

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
            raise ConfigError("STREAM_JWT_ALGORITHM", f"is {algorithm!r}, which is none that works")
        if settings.jwt_key and settings.jwt_jwks:
            raise ConfigError("STREAM_JWT_KEY", "and STREAM_JWT_JWKS are both set: keep one")
        self._jwks = None
        if settings.jwt_jwks:
            if algorithm.startswith("HS"):
                raise ConfigError(
                    "STREAM_JWT_ALGORITHM", f"is {algorithm}, and a published key is no secret"
                )
            try:
                self._jwks = jwt.PyJWKClient(settings.jwt_jwks, timeout=5)
            except jwt.PyJWTError as error:
                raise ConfigError("STREAM_JWT_JWKS", "is no http or https URL") from error
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
        return Identity(who, issued, float(claims["exp"]), carried=True)

    def _key_of(self, token: str) -> Any:
        if self._jwks is None:
            return self._key
        self._jwt.get_unverified_header(token)  # for what is no token, no key is fetched
        try:
            self._jwks.get_jwk_set()
        except (self._jwt.PyJWTError, ValueError, OSError) as error:
            logger.error("the keys of STREAM_JWT_JWKS cannot be had: %s", error)
            raise Unavailable("Tokens cannot be checked right now.", retry_after=5) from error
        return self._jwks.get_signing_key_from_jwt(token).key

    def welcome(self, request: Request, response: Response, anew: bool) -> None:
        """A token is had elsewhere."""


class CallbackAuth:
    """`auth=function`: the developer's own, such as Flask-Login's user."""

    open = False

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    def identify(self, request: Request) -> Identity | None:
        id = self._callback(request)
        # Known by what the app says at this moment, whatever was said before.
        if id is None or id == "":
            return None
        return Identity(_user(id), issued=time.time())

    def welcome(self, request: Request, response: Response, anew: bool) -> None:
        """The app signs people in by itself."""


def make_auth(settings: Settings, keys: Keys) -> Auth:
    """What `STREAM_AUTH` names. Raises ConfigError."""
    if callable(settings.auth):
        return CallbackAuth(settings.auth)
    if settings.auth == "session":
        return SessionAuth(keys, settings.session_age)
    if settings.auth == "jwt":
        return TokenAuth(settings)
    raise ConfigError("STREAM_AUTH", f"is {settings.auth!r}, and should be session or jwt")


def site_identity(request: Request, keys: Keys) -> Identity | None:
    """The site whose API key a request carries. Raises Unauthorized for a key that is unknown."""
    key = bearer_token(request)
    if key is None or not key.startswith(API_KEY):
        return None
    name = keys.site(key)
    if name is None:
        raise Unauthorized("The API key is not known.", field="Authorization")
    return Identity(f"site:{name}", issued=time.time(), carried=True)


def _user(id: str | int) -> str:
    """The principal of a user's id. Raises ValueError for one that is empty."""
    if id == "":
        raise ValueError("a user's id is empty")
    # Half of a surrogate pair is JSON, and no text.
    return f"user:{id}".encode("utf-8", "replace").decode()


def bearer_token(request: Request) -> str | None:
    """The token of an `Authorization: Bearer …`, if there is one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _usable(jwt: Any, algorithm: str, key: str | None) -> Any:
    """The key as the algorithm wants it, once, and checked before anybody sends a token."""
    if key is None:
        return None
    if algorithm.startswith("HS") and len(key.encode()) < int(algorithm[2:]) // 8:
        raise ConfigError("STREAM_JWT_KEY", f"is too short a secret for {algorithm}")
    try:
        return jwt.algorithms.get_default_algorithms()[algorithm].prepare_key(key)
    except Exception as error:  # what is raised depends on the algorithm
        raise ConfigError("STREAM_JWT_KEY", f"is no key for {algorithm}") from error
