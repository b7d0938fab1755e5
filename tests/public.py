"""An app with a public chain and a protected one: `gunicorn tests.public:app`."""

from __future__ import annotations

import os

from flask import Flask
from langchain_openai import ChatOpenAI

from flask_stream import FlaskStream
from flask_stream.json_logs import configure_logging

configure_logging()
app = Flask(__name__)
app.config.from_prefixed_env()
stream = FlaskStream(app)

model = ChatOpenAI(
    model="scripted",
    base_url=os.environ["OPENAI_BASE_URL"],
    api_key=lambda: "test",
    max_retries=0,
)
stream.add("chat", model)
stream.add("open", model, public=True)
