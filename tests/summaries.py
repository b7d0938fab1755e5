"""An app with the built-in summary chain: `gunicorn tests.summaries:app`."""

from __future__ import annotations

from flask import Flask

from flask_stream import FlaskStream
from flask_stream.chains.summary import Summary
from flask_stream.service import Service

app = Flask(__name__)
app.config.from_prefixed_env()
stream = FlaskStream(app)
service: Service = app.extensions["flask_stream"]
stream.add("summary", Summary(service.settings), multitask="queue")
