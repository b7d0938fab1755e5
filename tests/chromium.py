"""The chat page in headless Chromium: fixtures, and functions that use the page as a person does.

A test module imports the fixtures that it needs: `site, page = chromium.site, chromium.page`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from .provider import Provider
from .server import Server, environment, gunicorn

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PATIENCE = 20_000  # milliseconds; a deadline, never a measurement

needed = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a browser: install chromium, or set CHROMIUM to its path"
)


@pytest.fixture(scope="module")
def site(_provider: Provider) -> Iterator[Server]:
    """The service with its default time limits, because a browser is slow on a busy machine."""
    env = environment(
        model="openai:scripted",
        model_retries=0,
        heartbeat=0.5,
        title="A page of tests",
        OPENAI_BASE_URL=_provider.url,
        OPENAI_API_KEY="test",
    )
    with Server(gunicorn(), env) as server:
        yield server


@contextmanager
def launched(arguments: list[str]) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched(ARGUMENTS) as browser:
        yield browser


@pytest.fixture
def complaints() -> list[str]:
    """The errors and warnings in the browser's console, including lost connections."""
    return []


@pytest.fixture
def page(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    """An empty page. The test fails if the console shows an error, such as a policy violation."""
    with browser.new_context() as context:
        yield _watched(context.new_page(), complaints)
    lost = "Failed to load resource"  # tests that cut connections cause these
    assert [line for line in complaints if not line.startswith(lost)] == []


@pytest.fixture
def phone(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    """A small phone."""
    with browser.new_context(
        viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True
    ) as context:
        yield _watched(context.new_page(), complaints)
    assert complaints == []


def _watched(page: Page, complaints: list[str]) -> Page:
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None,
    )
    return page


def visit(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=PATIENCE)


def ask(page: Page, question: str) -> None:
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Send").click()


def answer(page: Page) -> Locator:
    """Return the newest answer."""
    return page.locator(".answer").last


def says(page: Page, text: str) -> None:
    """Wait until the newest answer is exactly this text."""
    expect(answer(page)).to_have_text(text, timeout=PATIENCE)


def reaches(page: Page, status: str) -> None:
    expect(page.get_by_role("status")).to_have_attribute("data-status", status, timeout=PATIENCE)


def run_ids(page: Page) -> list[str]:
    runs: list[str] = page.evaluate("JSON.parse(sessionStorage['flask_stream:chat']).runs")
    return runs


def log(run: str, *events: tuple[str, dict[str, Any]]) -> str:
    """Return a run's events as the service sends them, from the first on."""
    frames = []
    for seq, (type, data) in enumerate(events, 1):
        name = "" if type == "chunk" else f"event: {type}\n"
        frames.append(f"{name}id: {run}:{seq}\ndata: {json.dumps(data)}\n\n")
    return "".join(frames)
