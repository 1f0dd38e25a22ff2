"""The lab, cleared before each test; and what tests start in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.lab import HOSTS, Lab
from tests.support.workloads import start_redis


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lab/" in str(item.path):
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session")
def _lab() -> Lab:
    try:
        return Lab()
    except Exception as error:
        pytest.skip(f"the lab is not up (make lab): {error}")


@pytest.fixture
def lab(_lab: Lab) -> Iterator[Lab]:
    _lab.clear()
    yield _lab
    for host in HOSTS:
        _lab.settle(host)
    _lab.clear()


@pytest.fixture
def redis(lab: Lab) -> int:
    """A Redis at the service address on src; its PID."""
    return start_redis(lab)
