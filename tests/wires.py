"""An app for the tests of WebSocket and Socket.IO: `gunicorn tests.wires:app`.

`/vanilla`, `/steps` and `/socketio` are pages as tutorials show them. `/emit` sends an event of the
app itself to all clients of Socket.IO. `/left` returns what the worker has open. If `WIRES_OWN` is
set, the app has a Socket.IO server of its own.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import gevent
from flask import Flask, Response, request, send_from_directory
from flask_socketio import SocketIO
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph

from flask_stream import FlaskStream
from flask_stream.service import Service

VANILLA = """<!doctype html><title>Vanilla</title><link rel=icon href="data:,">
<form id=form><input id=question><button>Send</button></form><pre id=answer></pre>
<p id=state>connecting</p>
<script>
  const byId = (id) => document.getElementById(id);
  const socket = new WebSocket(`ws://${location.host}/ws/CHAIN?format=text`);
  socket.onopen = () => { byId("state").textContent = "open"; };
  socket.onclose = () => { byId("state").textContent = "closed"; };
  socket.onmessage = (event) => {
    if (event.data === "<END_STREAM>") byId("state").textContent = "done";
    else byId("answer").append(event.data);
  };
  byId("form").onsubmit = (event) => {
    event.preventDefault();
    byId("answer").textContent = "";
    byId("state").textContent = "asked";
    socket.send(byId("question").value);
  };
</script>"""

STEPS = """<!doctype html><title>Steps</title><link rel=icon href="data:,">
<form id=form><input id=question><button>Send</button></form>
<ol id=steps></ol><pre id=answer></pre><p id=state>connecting</p>
<script>
  const byId = (id) => document.getElementById(id);
  const socket = new WebSocket(`ws://${location.host}/ws/agent`);
  socket.onopen = () => { byId("state").textContent = "open"; };
  socket.onmessage = (event) => {
    const { type, data } = JSON.parse(event.data);
    if (type === "step") {
      const item = document.createElement("li");
      item.textContent = `${data.node} ${data.status}`;
      byId("steps").append(item);
    } else if (type === "chunk") byId("answer").append(data.content);
    else if (type === "end") byId("state").textContent = data.status;
    else if (type === "error") byId("state").textContent = data.detail;
  };
  byId("form").onsubmit = (event) => {
    event.preventDefault();
    byId("answer").textContent = "";
    byId("steps").textContent = "";
    byId("state").textContent = "asked";
    const message = byId("question").value;
    socket.send(JSON.stringify({ session_id: "session-1", message }));
  };
</script>"""

SOCKETIO = """<!doctype html><title>Socket.IO</title><link rel=icon href="data:,">
<script src="/socket.io.min.js"></script>
<form id=form><input id=question><button>Send</button></form>
<pre id=answer></pre><pre id=full></pre><p id=run></p><p id=state>connecting</p>
<p id=transport></p><p id=connects>0</p>
<script>
  const byId = (id) => document.getElementById(id);
  const socket = io(OPTIONS);
  let last = null;
  let connects = 0;
  socket.on("connect", () => {
    byId("connects").textContent = ++connects;
    byId("state").textContent = last ? "back" : "open";
    if (last) socket.emit("stream_resume", { after: last });
    const { engine } = socket.io;
    byId("transport").textContent = engine.transport.name;
    engine.on("upgrade", ({ name }) => { byId("transport").textContent = name; });
  });
  socket.on("disconnect", () => { byId("state").textContent = "lost"; });
  socket.on("stream_start", ({ id }) => { last = id; });
  socket.on("stream_chunk", ({ id, content }) => {
    last = id;
    byId("answer").append(content);
  });
  socket.on("stream_end", ({ full_response }) => {
    last = null;
    byId("full").textContent = full_response;
    byId("state").textContent = "done";
  });
  socket.on("stream_error", ({ error }) => {
    last = null;
    byId("state").textContent = error;
  });
  byId("form").onsubmit = (event) => {
    event.preventDefault();
    byId("answer").textContent = "";
    byId("full").textContent = "";
    byId("state").textContent = "asked";
    socket.emit("stream_question", byId("question").value, ({ run }) => {
      byId("run").textContent = run;
    });
  };
</script>"""


def agent(model: ChatOpenAI) -> Any:
    """Return a graph of one node that calls the model, with its state in a file."""
    graph = StateGraph(MessagesState)
    graph.add_node("talk", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_edge(START, "talk")
    file = os.environ.get("WIRES_STATE")
    connection = sqlite3.connect(file or ":memory:", check_same_thread=False)
    saver = SqliteSaver(connection)
    saver.setup()
    return graph.compile(checkpointer=saver)


def own_events(server: Any) -> None:
    """Add the handlers of an app that already uses Socket.IO."""

    def shout(text: str) -> str:
        server.emit("shouted", text.upper())
        return "heard"

    server.on_event("shout", shout)


def create_app() -> Flask:
    """Return the app. `OPENAI_BASE_URL` is the address of the provider."""
    app = Flask(__name__)
    app.config.from_prefixed_env()
    if os.environ.get("WIRES_OWN"):
        own_events(SocketIO(app))
    stream = FlaskStream(app)
    model = ChatOpenAI(
        model="scripted",
        base_url=os.environ["OPENAI_BASE_URL"],
        api_key=lambda: "test",
        max_retries=0,
    )
    prompt = ChatPromptTemplate([("placeholder", "{history}"), ("human", "{question}")])
    talk: Any = prompt | model
    stream.add("chat", talk)
    stream.add("queue", talk, multitask="queue")
    stream.add("interrupt", talk, multitask="interrupt")
    stream.add("agent", agent(model))

    # The app's own handler must not replace the handler of the extension.
    app.extensions["socketio"].on_event("connect", lambda: None)

    @stream.chain("count")
    def count(question: str) -> Iterator[str]:
        """Count numbers for `<count> <seconds>`, with a pause after each number."""
        numbers, _, pause = question.partition(" ")
        for number in range(int(numbers)):
            yield f"{number} "
            if pause:
                time.sleep(float(pause))

    @stream.chain("much")
    def much(question: str) -> Iterator[str]:
        """Yield the given number of kilobytes, one at a time."""
        for number in range(int(question)):
            yield f"{number:08}" * 128

    @stream.chain("broken")
    def broken(question: str) -> Iterator[str]:
        yield "One "
        raise RuntimeError("a fault")

    @stream.chain("all")
    def everything(question: str) -> Iterator[Any]:
        """Yield an event of each type."""
        yield "tool_call", {"id": "call-1", "name": "look", "args": {"id": "inner"}}
        yield "tool_result", {"id": "call-1", "name": "look", "content": "seen"}
        yield "progress", {"done": 1, "total": 2, "label": "Half"}
        yield "custom", {"name": "weather", "value": {"id": "rain"}}
        yield "One "
        yield "two"

    @app.get("/vanilla/<chain>")
    def vanilla(chain: str) -> str:
        return VANILLA.replace("CHAIN", chain)

    @app.get("/steps")
    def steps() -> str:
        return STEPS

    @app.get("/socketio")
    def socketio() -> str:
        return SOCKETIO.replace("OPTIONS", request.args.get("options", ""))

    @app.get("/socket.io.min.js")
    def client() -> Response:
        return send_from_directory(os.environ["WIRES_CLIENT"], "socket.io.min.js")

    @app.post("/emit/<name>")
    def emit(name: str) -> str:
        app.extensions["socketio"].emit(name, {"text": request.args["text"]})
        return "Said."

    @app.get("/left")
    def left() -> dict[str, int]:
        gc.collect()
        service: Service = app.extensions["flask_stream"]
        greenlets = [each for each in gc.get_objects() if issubclass(type(each), gevent.Greenlet)]
        assert service.websocket is not None
        assert service.socketio is not None
        server = app.extensions["socketio"].server
        return {
            "pid": os.getpid(),
            "sockets": service.websocket.open,
            "clients": service.socketio.open,
            "sessions": len(server.eio.sockets),
            "rooms": sum(len(rooms) for rooms in server.manager.rooms.values()),
            "environments": len(server.environ),
            "seats": service.access.quotas._streams,
            "greenlets": len([greenlet for greenlet in greenlets if not greenlet.dead]),
            "files": len(os.listdir("/proc/self/fd")),
        }

    return app


def __getattr__(name: str) -> Any:
    if name == "app":
        return create_app()
    raise AttributeError(name)
