"""LangServe with `add_routes` and its `/stream`. Nothing is stored."""

from __future__ import annotations

from fastapi import FastAPI
from langserve import add_routes

from ..model import chain

app = FastAPI()
add_routes(app, chain, path="/chat", enabled_endpoints=["stream"])
