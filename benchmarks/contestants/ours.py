"""flask_stream with default settings, except for the store."""

from __future__ import annotations

import os

from flask import Flask

from flask_stream import FlaskStream

from ..model import chain

app = Flask(__name__)
stream = FlaskStream(app, store=os.environ["BENCH_STORE"])
stream.add("chat", chain)
