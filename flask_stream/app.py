"""The service: a Flask app with the page and the built-in chains."""

from __future__ import annotations

import logging
import os
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from flask import Flask
from werkzeug.exceptions import HTTPException

from .chains.agent import agent
from .chains.chat import chat
from .chains.fallback_model import FallbackModel
from .chains.models import configured_model, tools_refusal
from .chains.summary import Summary
from .config import Settings
from .extension import FlaskStream
from .json_logs import configure_logging
from .security.headers import headers
from .security.origins import vary
from .service import Service
from .sources.inputs import history
from .web.problems import http_problem

logger = logging.getLogger(__name__)

#: Tokens of earlier turns for the embedded model, whose context is small.
LOCAL_HISTORY = 1024


def create_app(**settings: Any) -> Flask:
    """Return the service as a Flask app, configured from `FLASK_STREAM_*` in the environment.

    `settings` are those of `flask_stream.config` without the prefix. They override the
    environment. Raises ConfigError for a wrong value.
    """
    app = Flask(__name__, static_folder=None, template_folder=None)
    app.config.from_prefixed_env()
    app.config.setdefault("STREAM_PAGE", True)
    app.config.setdefault("STREAM_OPENAPI", "/openapi.json")
    configure_logging()
    for name in (f"STREAM_{field.name.upper()}" for field in fields(Settings)):
        if name in os.environ and f"FLASK_{name}" not in os.environ:
            logger.warning("%s in the environment is not read: it is FLASK_%s", name, name)
    if find_spec("limits") is not None:
        app.config.setdefault("STREAM_START_LIMIT", "30/minute")
        app.config.setdefault("STREAM_ADDRESS_LIMIT", "120/minute")
    else:
        logger.warning("starts are not limited: pip install 'flask-llm-stream[limits]'")
    # The blueprint handles its own errors; this is for URLs that no route matches.
    app.register_error_handler(HTTPException, http_problem)
    stream = FlaskStream(app, **settings)
    service: Service = app.extensions["flask_stream"]
    service.access.keys.check_signing_key()
    app.after_request(vary)
    app.after_request(headers(service.settings.frame_ancestors))
    own = service.settings
    model = FallbackModel(settings=own)  # raises now for a wrong name, not at the first question
    small = configured_model(own)[0] == "local"
    stream.add(
        "chat",
        chat(model, own),
        input=lambda input: {"question": input.question, "history": history(input)},
        history_tokens=LOCAL_HISTORY if small and own.history_tokens is None else None,
    )
    # Pieces of one document may be sent without waiting: they are read in order.
    stream.add("summary", Summary(own), multitask="queue")
    if find_spec("langchain") is not None:
        stream.add("agent", agent(model, own), refusal=lambda: tools_refusal(own))
    else:
        logger.info("the chain agent is not available: pip install 'flask-llm-stream[graph]'")
    return app
