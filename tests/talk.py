"""An app of chat chains: `gunicorn tests.talk:app`.

All chains call the same model with the history. They differ in their `multitask` strategy and in
their answer cache.
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

from flask_stream import Cache, FlaskStream

app = Flask(__name__)
app.config.from_prefixed_env()
stream = FlaskStream(app)

prompt = ChatPromptTemplate([("placeholder", "{history}"), ("human", "{question}")])
talk: Any = prompt | ChatOpenAI(
    model="scripted",
    base_url=os.environ["OPENAI_BASE_URL"],
    api_key=lambda: "test",
    max_retries=0,
    stream_usage=True,
)
stream.add("chat", talk)
stream.add("queue", talk, multitask="queue")
stream.add("interrupt", talk, multitask="interrupt")
stream.add("replace", talk, multitask="replace")
stream.add("cached", talk, cache=Cache(3600, version=os.environ.get("TALK_VERSION", "")))
stream.add("other", talk, cache=3600)
stream.add("brief", talk, cache=float(os.environ["TALK_BRIEF"]))
stream.add("shared", talk, cache=Cache(shared=True))
stream.add("waits", talk, cache=3600, multitask="queue")
stream.add("again", talk, cache=3600, restarts=2)
