"""What tests, the bench and the demo start in the lab."""

from __future__ import annotations

from orchestrator.chaos import workloads
from tests.support.lab import HOSTS, PROGRAMS, SERVICE, Lab, until


def start_redis(lab: Lab, address: str = SERVICE, host: str = "src") -> int:
    lab.add_address(host, address)
    return workloads.start_redis(lab, host, address, "client")


def start_server(
    lab: Lab,
    address: str = SERVICE,
    port: int = 7000,
    program: str = "byte_server.py",
    *options: str,
) -> int:
    """byte_server.py, or another one, on src; its PID."""
    lab.add_address("src", address)
    for host in HOSTS:
        lab.put(host, f"/tmp/{program}", (PROGRAMS / program).read_text())
    pid = lab.start("src", " ".join(["python3", f"/tmp/{program}", address, str(port), *options]))
    probe = f"ss -Hltn src {address if ':' not in address else f'[{address}]'} | grep -c {port}"
    until(lambda: lab.run("src", probe, check=False) == "1", 10, "the server listens")
    return pid
