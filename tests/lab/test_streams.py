"""Streams of every shape arrive to the last byte, checked by SHA-256 at the peer."""

from __future__ import annotations

import pytest

from tests.support.lab import HOSTS, SERVICE, SERVICE6, Lab, Migration, until
from tests.support.workloads import start_server

MIB = 1 << 20
SLOW = 2 * MIB  # bytes a second while the migration runs
SMALL_BUFFER = 64 << 10


def moved(migration: Migration) -> Migration:
    assert migration.status == 0, (migration.result, migration.stderr)
    return migration


@pytest.mark.parametrize("address", [SERVICE, SERVICE6], ids=["ipv4", "ipv6"])
def test_download_with_a_slow_reader(lab: Lab, address: str) -> None:
    pid = start_server(lab, address)
    arguments = (address, 7000, "download", 256 * MIB, 7, SLOW, SMALL_BUFFER)
    with lab.client("byte_client.py", *arguments) as client:
        assert client.line() == "ready"
        (stream,) = moved(lab.migrate("src", "dst", pid)).result["streams"]
        assert stream["unsent"] > stream["send_queue"] / 2 > 0
        client.tell("go\n")
        result = client.result()
    assert result["ok"], result
    assert result["received"] == 256 * MIB


def test_half_closed_download(lab: Lab) -> None:
    """The client has closed its side: CLOSE_WAIT at the server, which still sends."""
    pid = start_server(lab)
    arguments = (SERVICE, 7000, "half-closed-download", 64 * MIB, 9, SLOW, SMALL_BUFFER)
    with lab.client("byte_client.py", *arguments) as client:
        assert client.line() == "ready"
        for source, destination in (("src", "dst"), ("dst", "src")):
            (stream,) = moved(lab.migrate(source, destination, pid)).result["streams"]
            assert stream["state"] == "CLOSE_WAIT"
        client.tell("go\n")
        result = client.result()
    assert result["ok"], result
    assert result["received"] == 64 * MIB


@pytest.mark.parametrize("mode", ["upload", "both"])
def test_upload_and_both_at_once(lab: Lab, mode: str) -> None:
    pid = start_server(lab)
    with lab.client("byte_client.py", SERVICE, 7000, mode, 256 * MIB, 8, 8 * MIB, 0) as client:
        assert client.line() == "ready"
        moved(lab.migrate("src", "dst", pid))
        moved(lab.migrate("dst", "src", pid))
        client.tell("go\n")
        result = client.result()
    assert result["ok"], result
    assert result["sent"] == 256 * MIB


@pytest.mark.parametrize("address", [SERVICE, SERVICE6], ids=["ipv4", "ipv6"])
def test_idle_connection(lab: Lab, address: str) -> None:
    pid = start_server(lab, address)
    with lab.client("request_client.py", address, 7000, 0, "idle") as client:
        assert client.line() == "ready"
        moved(lab.migrate("src", "dst", pid))
        moved(lab.migrate("dst", "src", pid))
        result = client.finish()
    assert result["errors"] == []
    assert result["requests"] == 2


def test_nginx_serves_a_large_file(lab: Lab) -> None:
    lab.add_address("src")
    config = f"""
        daemon off; master_process on; worker_processes 2; pid /run/lab-nginx.pid; user root;
        error_log /dev/null;
        events {{}}
        http {{ access_log off; sendfile on;
          server {{ listen {SERVICE}:8080; root /var/lib/lab-www; }} }}
    """
    make = (
        "mkdir -p /var/lib/lab-www && cd /var/lib/lab-www && "
        "python3 -c \"import random; open('large', 'wb').write("
        'random.Random(5).randbytes(64 << 20))"'
    )
    for host in HOSTS:
        lab.put(host, "/tmp/lab-nginx.conf", config)
        lab.run(host, make)
    wanted = lab.run("src", "sha256sum < /var/lib/lab-www/large")
    pid = lab.start("src", "nginx -c /tmp/lab-nginx.conf")
    until(lambda: lab.run("src", "ss -Hltn | grep :8080", check=False), 10, "nginx listens")
    url = f"http://{SERVICE}:8080/large"
    with lab.client("http_client.py", url, 8 * MIB) as client:
        assert client.line() == "ready"
        moved(lab.migrate("src", "dst", pid))
        client.tell("go\n")
        result = client.result()
    assert result["error"] == ""
    assert result["sha256"] == wanted.split()[0]
