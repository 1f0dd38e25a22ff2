"""The lab, cleared before each test; and what tests start in it. For the conftests that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.lab import ALL, HOSTS, Lab
from tests.support.workloads import start_redis


@pytest.fixture(scope="session")
def lab_of_the_session() -> Lab:
    try:
        return Lab()
    except Exception as error:
        pytest.skip(f"the lab is not up (make lab): {error}")


@pytest.fixture
def lab(lab_of_the_session: Lab) -> Iterator[Lab]:
    lab = lab_of_the_session
    lab.clear()
    yield lab
    for host in HOSTS:
        lab.settle(host)
    lab.clear()


@pytest.fixture
def three(lab: Lab) -> Iterator[Lab]:
    """The lab with its third host, which is cleared and looked at, too."""
    lab.hosts = ALL
    lab.clear()
    yield lab
    try:
        for host in ALL:
            lab.settle(host)
        lab.clear()
    finally:
        lab.hosts = HOSTS


@pytest.fixture
def redis(lab: Lab) -> int:
    """A Redis at the service address on src; its PID."""
    return start_redis(lab)
