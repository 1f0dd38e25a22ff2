"""Markers, and the flag that turns each skip into a failure.

With STREAMFERRY_NO_SKIPS=1 in the environment (CI sets it) a test that would be skipped fails, with
the reason of the skip, so that nothing goes untested unseen.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Generator

import pytest

from tests.support import netns

NO_SKIPS = "STREAMFERRY_NO_SKIPS"


def pytest_configure() -> None:
    """A shell starts what is in its background with SIGINT ignored, and so what that starts: what
    the tests interrupt would not be."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@functools.cache
def _no_namespaces() -> str | None:
    return netns.why_not()


@pytest.hookimpl(trylast=True)  # after those that add markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root") and (reason := _no_namespaces()):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _fail_where_asked(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        _fail_where_asked(report)
    return report


def _fail_where_asked(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get(NO_SKIPS) != "1":
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{reason} ({NO_SKIPS}=1: a skip is a failure)"
