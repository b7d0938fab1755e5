"""Pages of other sites, and the ways in which a page can make a visitor's browser send a request.

The service of a test is at `http://127.0.0.1:<port>`. For a browser,
`http://<name>.localhost:<port>` is another site. Another port of 127.0.0.1 is another origin of the
same site, which shares its cookies. Browsers treat loopback as secure, so they send `Sec-Fetch-*`
headers. They do not send them to a name such as `service.test` (see `ARGUMENTS`), nor to other
addresses without TLS.

A test module imports the fixtures that it needs: `browser = sites.browser`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from . import chromium

ARGUMENTS = [
    *chromium.ARGUMENTS,
    *("--host-resolver-rules=MAP *.test 127.0.0.1", "--disable-features=HttpsUpgrades"),
]
PAGE = b"<!doctype html><html lang=en><title>Elsewhere</title><link rel=icon href='data:,'><body>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.launched(ARGUMENTS) as browser:
        yield browser


@pytest.fixture
def visitor(browser: Browser) -> Iterator[BrowserContext]:
    """A visitor's browser, with cookies of its own."""
    with browser.new_context() as context:
        context.set_default_timeout(chromium.PATIENCE)
        yield context


@pytest.fixture
def page(visitor: BrowserContext) -> Page:
    return visitor.new_page()


class Pages(ThreadingHTTPServer):
    """Serves an empty page at every path, on a free port, for any host name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self._thread.start()

    def origin(self, host: str) -> str:
        return f"http://{host}:{self.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)


@dataclass(frozen=True)
class Vector:
    """One way to make a browser send a request.

    `script` is JavaScript. It uses `url`, whose query has the question, and `body`, which has it as
    JSON. It returns what the page could read of the response, or "". `sends` is the method of the
    first request that reaches the service, which is OPTIONS if there is a preflight.
    """

    script: str
    sends: Literal["GET", "POST", "OPTIONS"] = "GET"

    @property
    def function(self) -> str:
        """Return the script as a JavaScript function of `{url, body}`."""
        return _LIBRARY.replace("SCRIPT", self.script)


_LIBRARY = """
async ({ url, body }) => {
  const put = (tag, properties) => {
    const made = Object.assign(document.createElement(tag), properties);
    document.body.append(made);
    return made;
  };
  const over = (made) => new Promise((resolve) => {
    for (const type of ["load", "error", "loadeddata"])
      made.addEventListener(type, () => resolve(made));
  });
  // The listeners come first: an element may finish loading as soon as it is in the page.
  const load = async (tag, properties) => {
    const made = Object.assign(document.createElement(tag), properties);
    const end = over(made);
    document.body.append(made);
    await end;
    return made;
  };
  const seen = (frame) => {
    try { return frame.contentDocument?.body?.innerText ?? ""; } catch { return ""; }
  };
  const listen = (source) => new Promise((resolve) => {
    source.onmessage = (event) => { source.close(); resolve(event.data); };
    source.onerror = () => { source.close(); resolve(""); };
  });
  const ask = async (options) => {
    try { return await (await fetch(url, options)).text(); } catch { return ""; }
  };
  const send = async (fields, properties) => {
    const name = `frame${Math.random()}`;
    const frame = put("iframe", { name });
    const form = put("form", { action: url, target: name, ...properties });
    for (const [key, value] of fields) form.append(Object.assign(
      document.createElement("input"), { type: "hidden", name: key, value }));
    const end = over(frame);
    form.submit();
    await end;
    return seen(frame);
  };
  SCRIPT
}
"""

#: Ways that need no script, only markup in a page, or a click.
MARKUP = {
    "image": Vector("await load('img', { src: url }); return '';"),
    "cors-image": Vector(
        "await load('img', { crossOrigin: 'use-credentials', src: url }); return '';"
    ),
    "script": Vector(
        "let error = ''; window.onerror = (said) => { error = said; };"
        "await load('script', { src: url }); return error;"
    ),
    "module": Vector("await load('script', { type: 'module', src: url }); return '';"),
    "stylesheet": Vector(
        "const link = await load('link', { rel: 'stylesheet', href: url });"
        "try { return link.sheet ? String(link.sheet.cssRules.length || '') : ''; }"
        "catch { return ''; }"
    ),
    "prefetch": Vector("await load('link', { rel: 'prefetch', href: url }); return '';"),
    "cors-prefetch": Vector(
        "await load('link', { rel: 'prefetch', crossOrigin: 'use-credentials', href: url });"
        "return '';"
    ),
    "preload": Vector("await load('link', { rel: 'preload', as: 'fetch', href: url }); return '';"),
    "font": Vector("try { await new FontFace('x', `url('${url}')`).load(); } catch {} return '';"),
    "video": Vector("await load('video', { preload: 'auto', src: url }); return '';"),
    "frame": Vector("return seen(await load('iframe', { src: url }));"),
    "object": Vector("return seen(await load('object', { data: url, type: 'text/html' }));"),
    "window": Vector("window.open(url); return '';"),
    "opened-location": Vector("window.open('about:blank').location = url; return '';"),
    "link": Vector("put('a', { href: url, target: '_blank' }).click(); return '';"),
    "get-form": Vector(
        "return await send([['question', new URL(url).searchParams.get('question')]],"
        " { method: 'get' });"
    ),
    "form": Vector("return await send([['question', 'x']], { method: 'post' });", "POST"),
    "json-form": Vector(
        """const [head, tail] = [body.slice(0, -1) + ', "x": "', '"}'];"""
        "return await send([[head, tail]], { method: 'post', enctype: 'text/plain' });",
        "POST",
    ),
    "multipart-form": Vector(
        "return await send([['question', 'x']],"
        " { method: 'post', enctype: 'multipart/form-data' });",
        "POST",
    ),
    "ping": Vector("put('a', { href: '#pinged', ping: url }).click(); return '';", "POST"),
}

#: Ways that need a script in a page of another origin.
SCRIPTS = {
    "eventsource": Vector("return await listen(new EventSource(url));"),
    "credentials-eventsource": Vector(
        "return await listen(new EventSource(url, { withCredentials: true }));"
    ),
    "no-cors-get": Vector("return await ask({ mode: 'no-cors', credentials: 'include' });"),
    "no-cors-event-stream": Vector(
        "return await ask({ mode: 'no-cors', credentials: 'include',"
        " headers: { Accept: 'text/event-stream' } });"
    ),
    "no-cors-post": Vector(
        "return await ask({ method: 'POST', mode: 'no-cors', credentials: 'include', body });",
        "POST",
    ),
    "cors-get": Vector("return await ask({ credentials: 'include' });"),
    "cors-event-stream": Vector("return await ask({ headers: { Accept: 'text/event-stream' } });"),
    "cors-text-post": Vector(
        "return await ask({ method: 'POST', credentials: 'include', body });", "POST"
    ),
    "cors-json-post": Vector(
        "return await ask({ method: 'POST', credentials: 'include', body,"
        " headers: { 'Content-Type': 'application/json' } });",
        "OPTIONS",
    ),
    "cors-authorized-get": Vector(
        "return await ask({ headers: { Authorization: 'Bearer fsk_x' } });", "OPTIONS"
    ),
    "beacon": Vector("navigator.sendBeacon(url, body); return '';", "POST"),
    "json-beacon": Vector(
        "navigator.sendBeacon(url, new Blob([body], { type: 'application/json' })); return '';",
        "OPTIONS",
    ),
    "websocket": Vector(
        "return await new Promise((resolve) => {"
        "  const socket = new WebSocket(url.replace('http', 'ws'));"
        "  socket.onopen = () => resolve('open'); socket.onerror = () => resolve(''); });"
    ),
}

VECTORS = MARKUP | SCRIPTS
