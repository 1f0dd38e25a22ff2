"""Tests on the real kernel, in network namespaces of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.netlock import apply
from tests.support.agents import Agent
from tests.support.doctor import Doctor
from tests.support.netns import Host, Namespace, network
from tests.support.processes import Start, processes
from tests.support.service import PLACES, Serve, scripted_lab, services
from tests.support.sites import Lab
from tests.support.tcp import KINDS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/kernel/" in str(item.path):
            item.add_marker(pytest.mark.root)


@pytest.fixture(scope="session", autouse=True)
def _no_namespace_left() -> Iterator[None]:
    yield
    left = list(Namespace.open)
    for namespace in left:
        namespace.close()
    assert not left, f"namespaces left open: {[one.name for one in left]}"


@pytest.fixture
def pair() -> Iterator[tuple[Host, Host]]:
    """A server and a client on one link."""
    with network("server", "client") as (server, client):
        yield server, client


@pytest.fixture
def trio() -> Iterator[tuple[Host, Host, Host]]:
    """A source, a destination and a client on one link."""
    with network("source", "destination", "client") as (source, destination, client):
        yield source, destination, client


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """What a connection has for addresses."""
    return str(request.param)


@pytest.fixture
def agents() -> Iterator[Callable[..., Agent]]:
    made: list[Agent] = []

    def make(host: Host, addresses: list[str], **options: Any) -> Agent:
        made.append(Agent(host, addresses, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def doctor(
    pair: tuple[Host, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Doctor]:
    monkeypatch.setattr(apply, "_shared", None)  # that one is of another namespace
    yield Doctor(*pair, tmp_path / "doctor")
    if apply._shared is not None:
        apply._shared.close()


@pytest.fixture
def start() -> Iterator[Start]:
    with processes() as start:
        yield start


@pytest.fixture(scope="module")
def wire() -> Iterator[Lab]:
    """Where a service has a peer that is a script."""
    with scripted_lab() as lab:
        yield lab


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    """Where a service moves to."""
    return str(request.param)


@pytest.fixture
def serve(wire: Lab, family: int, place: str) -> Iterator[Serve]:
    with services(wire, family, place) as serve:
        yield serve
