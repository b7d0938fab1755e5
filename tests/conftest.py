"""What tests stand on: a scripted provider, and the real service that asks it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from . import services
from .provider import Provider, Script
from .server import Server, environment, gunicorn

# Other work on the machine makes an example slow, and the code no worse.
settings.register_profile(
    "suite", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("suite")


def pytest_configure() -> None:
    # A shell's background job ignores Ctrl-C, and so would every server that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    services.watch()


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and services.starts_process(item):
            item.add_marker("service")


def pytest_xdist_auto_num_workers() -> int:
    """Run two workers per core: most tests wait for a server, a lease or a deadline."""
    return (
        2 * len(os.sched_getaffinity(0)) if sys.platform == "linux" else 2 * (os.cpu_count() or 1)
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    services.allow(item.get_closest_marker("service") is not None)
    try:
        return (yield)
    finally:
        services.allow(True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where nothing may be skipped (`.ci/run`), a skipped test has failed."""
    report = yield
    if report.skipped and os.environ.get("STREAM_TESTS_SKIP") == "never":
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def _provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def provider(_provider: Provider) -> Provider:
    """The provider that `service` asks, with nothing scripted and nothing recorded."""
    _provider.release()
    with contextlib.suppress(BlockingIOError):  # tokens that an earlier test allowed in vain
        while True:
            os.eventfd_read(_provider.gate)
    _provider.script = Script()
    _provider.scripts.clear()
    _provider.calls.clear()
    return _provider


@pytest.fixture(scope="session")
def _service(_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    env = environment(
        store=f"sqlite:///{tmp_path_factory.mktemp('service')}/runs.db",
        model="openai:scripted",
        model_retries=0,
        heartbeat=0.5,
        silence_timeout=3,
        OPENAI_BASE_URL=_provider.url,
        OPENAI_API_KEY="test",
    )
    with Server(gunicorn(), env, fork=False) as server:
        yield server


@pytest.fixture
def service(_service: Server, provider: Provider) -> Server:
    """The service on gunicorn, started as a user starts it, with the provider as its model."""
    return _service
