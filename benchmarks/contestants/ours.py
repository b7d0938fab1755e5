"""Ours, with its settings as they come; only the store is chosen."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from flask import Flask

from flask_stream import FlaskStream

from ..model import chosen
from ..words import words

app = Flask(__name__)
stream = FlaskStream(app, store=os.environ["BENCH_STORE"])
stream.add("chat", chosen())


@stream.chain("slow")
def slow(question: str) -> Iterator[str]:
    """`<words> <seconds>`: so many words, with that pause after each."""
    count, pause = question.split()
    for word in words(int(count)):
        yield word
        time.sleep(float(pause))
