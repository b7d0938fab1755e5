"""Credentials of the callers in the tests, made without the code under test."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from itsdangerous import TimestampSigner, URLSafeTimedSerializer

from .provider import Provider
from .server import Server, environment, gunicorn
from .sse import Response, Stream, request

SECRET = "a key for tests"  # as in `server.USUAL`
ISSUER = "https://issuer.example"
AUDIENCE = "flask_stream"
JWT_SECRET = "a secret of thirty-two characters or more"
NOWHERE = "0123456789abcdef0123456789abcdef"
#: The header that a browser's EventSource sends.
LISTEN = {"Accept": "text/event-stream"}
Sent = Mapping[str, str]
NOBODY: Sent = {}


# Servers


@contextmanager
def users(
    provider: Provider, folder: Path, *arguments: str, **settings: object
) -> Iterator[Server]:
    """Run the app of `tests.users`, whose model is the provider."""
    given: dict[str, object] = {
        "OPENAI_BASE_URL": provider.url,
        "USERS_FOLDER": folder,
        "page": "true",
        "heartbeat": 0.5,
    }
    command = gunicorn(*arguments, app="tests.users:app")
    with Server(command, environment(**given | settings)) as server:
        try:
            yield server
        finally:
            with releasing(provider):
                server.stop(signal.SIGINT)


@contextmanager
def releasing(provider: Provider) -> Iterator[None]:
    """Release stalled calls of the model, now and later in the block.

    A server that stops waits for its runs, and so for these calls.
    """
    done = threading.Event()

    def release() -> None:
        while not done.wait(0.05):
            if any(not call.finished and not call.closed_at for call in list(provider.calls)):
                provider.release()

    thread = threading.Thread(target=release)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@dataclass(frozen=True)
class Site:
    """A running `tests.users`, and how it identifies callers: `session`, `jwt` or `own`."""

    server: Server
    way: str = "session"

    @property
    def url(self) -> str:
        return self.server.url

    def person(self, name: str) -> dict[str, str]:
        """Return the headers of a caller, who is signed in if there is a sign-in."""
        if self.way == "jwt":
            return bearer(token(sub=name))
        if self.way == "own":
            return cookie(request("POST", f"{self.url}/login/{name}"))
        return cookie(request("GET", f"{self.url}/"))

    def principal(self, person: Sent, name: str) -> str:
        """Return the principal of a caller."""
        if self.way != "session":
            return f"user:{name}"
        return f"session:{session_of(person)}"

    def ask(self, question: str, who: Sent = NOBODY, **fields: Any) -> Response:
        """`POST /runs`."""
        body = {"chain": "chat", "input": question} | fields
        return request("POST", f"{self.url}/runs", json=body, headers=who)

    def start(self, question: str, who: Sent = NOBODY, **fields: Any) -> str:
        """Start a run. Return its id."""
        answer = self.ask(question, who, **fields)
        assert answer.status == 201, answer.body
        run: str = answer.json()["run"]
        return run

    def status(self, run: str, who: Sent = NOBODY) -> Response:
        return request("GET", f"{self.url}/runs/{run}", headers=who)

    def follow(self, run: str, who: Sent = NOBODY, query: str = "") -> Stream:
        """Return an open stream of the run."""
        return Stream(f"{self.url}/runs/{run}/events{query}", headers=who)

    def listen(
        self, question: str, who: Sent = NOBODY, chain: str = "chat", **query: str
    ) -> Stream:
        """Open the stream that `new EventSource(…)` opens."""
        extra = "".join(f"&{name}={quote(value)}" for name, value in query.items())
        return Stream(f"{self.url}/stream_{chain}?question={quote(question)}{extra}", headers=who)

    def finished(self, question: str, who: Sent = NOBODY, **fields: Any) -> str:
        """Start a run and wait for its end. Return its id."""
        run = self.start(question, who, **fields)
        with self.follow(run, who) as stream:
            end = list(stream.events())[-1]
        assert json.loads(end.data) == {"status": "done", "finish_reason": "stop", "error": None}, (
            self.server.log
        )
        return run

    def revoke(self, principal: str) -> None:
        answer = request("POST", f"{self.url}/revoke?principal={quote(principal)}")
        assert answer.status == 200, answer.body


# Cookies


def cookie(answer: Response) -> dict[str, str]:
    """Return the header that a browser sends after this response."""
    given = answer.headers.get_all("Set-Cookie") or []
    assert len(given) == 1, answer.body
    return {"Cookie": given[0].partition(";")[0]}


def sealed(value: object, salt: str, *, secret: str = SECRET, age: float = 0) -> str:
    """Return a cookie or ticket as a service with that secret signed it `age` seconds ago."""

    class Earlier(TimestampSigner):
        def get_timestamp(self) -> int:
            return int(time.time() - age)

    serializer = URLSafeTimedSerializer(
        secret,
        salt=f"flask_stream.{salt}",
        signer=Earlier,
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
    )
    return str(serializer.dumps(value))


def session_of(person: Sent) -> str:
    """Return the session's id, which the cookie contains as plain text."""
    match = re.match(r"stream_session=([\w-]+)\.", person["Cookie"])
    assert match, person
    return str(json.loads(base64.urlsafe_b64decode(match[1] + "=" * (-len(match[1]) % 4))))


def altered(text: str, index: int) -> str:
    """Return the text with one character changed, so that the decoded base64 changes as well."""
    other = "A" if text[index] != "A" else "Q"
    index %= len(text)
    return text[:index] + other + text[index + 1 :]


# Tokens


@cache
def key(name: str = "one") -> rsa.RSAPrivateKey:
    """Return a private key, the same one for the same name."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(name: str = "one") -> str:
    """Return the public key as the setting needs it."""
    public = key(name).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def claims(**changed: object) -> dict[str, object]:
    """Return the claims of a valid token with changes. A claim changed to None is left out."""
    now = time.time()
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": int(now), "exp": int(now) + 600}
    return {name: value for name, value in (good | changed).items() if value is not None}


def token(signer: str = "one", headers: dict[str, object] | None = None, **changed: object) -> str:
    """Return a token that is signed with RS256."""
    return jwt.encode(claims(**changed), key(signer), "RS256", headers=headers)


def by_hand(header: dict[str, object], secret: bytes = b"", **changed: object) -> str:
    """Return a token that libraries refuse to make: any header, with HS256 or no signature."""
    head, body = (_base64(json.dumps(part).encode()) for part in (header, claims(**changed)))
    signed = f"{head}.{body}"
    digest = hmac.new(secret, signed.encode(), hashlib.sha256).digest() if secret else b""
    return f"{signed}.{_base64(digest)}"


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


JWT: dict[str, object] = {
    "auth": "jwt",
    "jwt_issuer": ISSUER,
    "jwt_audience": AUDIENCE,
    "jwt_algorithm": "RS256",
}


def settings(way: str) -> dict[str, object]:
    """Return the settings of a server that identifies callers in that way."""
    if way == "jwt":
        return JWT | {"jwt_key": pem()}
    return {"USERS_AUTH": "own"} if way == "own" else {}


# Responses


def refused(answer: Response, status: int, field: str | None = None) -> dict[str, Any]:
    """Check the status and field of a problem document. Return the document."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem.get("field") == field, problem
    if status == 401:
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    if status in (429, 503):
        assert int(answer.headers["Retry-After"]) >= 1
    return problem
