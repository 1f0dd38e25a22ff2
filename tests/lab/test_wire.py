"""A capture at the client holds nothing but TCP as it should be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.lab import SERVICE, SERVICE6, Lab, until
from tests.support.workloads import start_redis

PCAP = "/run/lab-capture"


@contextlib.contextmanager
def capture(lab: Lab, address: str) -> Iterator[None]:
    """tcpdump on the client's side of every packet of the service, with link addresses."""
    command = (
        f"tcpdump -i any -e -nn -tt -U --immediate-mode 'tcp and host {address}' "
        f"> {PCAP} 2> {PCAP}.log & echo $!"
    )
    pid = lab.run("client", command).split()[-1]
    until(lambda: "listening" in lab.run("client", f"cat {PCAP}.log"), 10, "tcpdump listens")
    try:
        yield
    finally:
        lab.run("client", f"kill {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.05; done")


@pytest.mark.parametrize("address", [SERVICE, SERVICE6], ids=["ipv4", "ipv6"])
def test_no_reset_and_nothing_from_the_source_after_the_unlock(lab: Lab, address: str) -> None:
    pid = start_redis(lab, address)
    hardware = {
        host: lab.run(host, f"cat /sys/class/net/{lab.device(host)}/address")
        for host in ("src", "dst")
    }
    with capture(lab, address):
        with lab.client("redis_counter.py", address, 6379, 8, 1, 0.001) as client:
            client.line()
            migration = lab.migrate("src", "dst", pid)
            seen = client.finish()
    assert migration.status == 0, migration.result
    assert seen["errors"] == []
    lines = lab.run("client", f"cat {PCAP}").splitlines()
    incoming = [line for line in lines if " In " in line]
    assert incoming
    assert not [line for line in lines if "Flags [R" in line]
    senders = [
        next(host for host in hardware if f" {hardware[host]} " in line) for line in incoming
    ]
    assert senders == sorted(senders, key=["src", "dst"].index), "src was heard after dst"
    assert "dst" in senders
