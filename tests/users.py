"""An app whose people are known in any of the ways that there are: `gunicorn tests.users:app`.

`STREAM_AUTH` picks one; with `USERS_AUTH=own` it is a function of the app's own, which knows
people by Flask's session, as Flask-Login does, and who is signed in by a file in the folder
`USERS_FOLDER`, which is the instance folder, too.
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
    """Who is signed in, or None."""
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
    """Tell which worker has answered."""
    response.headers["X-Worker"] = str(os.getpid())
    return response
