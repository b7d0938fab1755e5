"""An app with users, for any kind of sign-in: `gunicorn tests.users:app`.

`STREAM_AUTH` selects the kind. With `USERS_AUTH=own` the app's own function identifies users by
Flask's session, as Flask-Login does. A user is signed in while a file with their name exists in the
folder `USERS_FOLDER`, which is also the instance folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flask import Flask, Request, Response, request, session
from langchain_openai import ChatOpenAI

from flask_stream import FlaskStream

folder = Path(os.environ["USERS_FOLDER"])
app = Flask(__name__, instance_path=str(folder))
app.config.from_prefixed_env()


def signed_in(request: Request) -> str | None:
    """Return the user who is signed in, or None."""
    user = session.get("user")
    return user if user and (folder / f"in-{user}").exists() else None


own: dict[str, Any] = {"auth": signed_in} if os.environ.get("USERS_AUTH") == "own" else {}
stream = FlaskStream(app, **own)

model = ChatOpenAI(
    model="scripted",
    base_url=os.environ["OPENAI_BASE_URL"],
    api_key=lambda: "test",
    max_retries=0,
    stream_usage=True,
)
stream.add("chat", model)
stream.add("other", model)
stream.add("open", model, public=os.environ.get("USERS_PUBLIC") != "no")


@app.post("/login/<user>")
def login(user: str) -> str:
    session["user"] = user
    (folder / f"in-{user}").touch()
    return "Welcome."


@app.post("/logout/<user>")
def logout(user: str) -> str:
    (folder / f"in-{user}").unlink()
    return "Bye."


@app.post("/revoke")
def revoke() -> str:
    stream.revoke(request.args["principal"])
    return "Revoked."


@app.after_request
def worker(response: Response) -> Response:
    """Name the worker that responds in a header."""
    response.headers["X-Worker"] = str(os.getpid())
    return response
