"""The lab, cleared before each test; and what tests start in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.lab import HOSTS, PROGRAMS, SERVICE, Lab, until

StartRedis = Callable[..., int]


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


def start_redis(lab: Lab, address: str = SERVICE) -> int:
    lab.add_address("src", address)
    command = (
        f"redis-server --bind {address} --port 6379 --save '' --appendonly no "
        "--protected-mode no --dir /tmp --daemonize no"
    )
    pid = lab.start("src", command)
    ping = f"redis-cli -h {address} ping"
    until(lambda: lab.run("client", ping, check=False) == "PONG", 10, "Redis answers")
    return pid


def start_server(lab: Lab, address: str = SERVICE, port: int = 7000) -> int:
    """byte_server.py on src; its PID."""
    lab.add_address("src", address)
    program = (PROGRAMS / "byte_server.py").read_text()
    for host in HOSTS:
        lab.put(host, "/tmp/byte_server.py", program)
    pid = lab.start("src", f"python3 /tmp/byte_server.py {address} {port}")
    probe = f"ss -Hltn src {address if ':' not in address else f'[{address}]'} | grep -c {port}"
    until(lambda: lab.run("src", probe, check=False) == "1", 10, "the server listens")
    return pid
