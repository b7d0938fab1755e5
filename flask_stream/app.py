"""The service: a Flask app with the page and the built-in chains."""

from __future__ import annotations

import logging
from typing import Any

from flask import Flask
from werkzeug.exceptions import HTTPException

from .chains.chat import Chat
from .chains.models import chosen
from .extension import FlaskStream, Service
from .problems import http_problem
from .sources.langchain import history


def create_app(**settings: Any) -> Flask:
    """The service, configured from `FLASK_STREAM_*` in the environment.

    `settings` are those of `flask_stream.config`, without the prefix, and go before the
    environment. Raises ConfigError for a setting that cannot work.
    """
    app = Flask(__name__, static_folder=None, template_folder=None)
    app.config.from_prefixed_env()
    app.config.setdefault("STREAM_PAGE", True)
    if not logging.getLogger().handlers:
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        for chatty in ("httpx", "httpx2"):
            logging.getLogger(chatty).setLevel(logging.WARNING)

    # Beside the blueprint's own: what no route of it was found for.
    app.register_error_handler(HTTPException, http_problem)
    stream = FlaskStream(app, **settings)
    service: Service = app.extensions["flask_stream"]
    chosen(service.settings)  # a wrong name is told now, not when the first person asks
    stream.add(
        "chat",
        Chat(service.settings),
        input=lambda input: {"question": input.question, "history": history(input)},
    )
    return app
