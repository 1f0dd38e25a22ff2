"""A node is drained over two hosts with everything under load, and drained back."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab import ALL, PROGRAMS, Client, Lab, until
from tests.support.workloads import start_redis

ADDRESSES = {"cache-a": "10.77.0.100", "cache-b": "10.77.0.101", "web": "10.77.0.102",
             "echo": "10.77.0.103", "sessions": "10.77.0.104"}  # fmt: skip
CACHES = ("cache-a", "cache-b")
COUNT = "/run/lab-count"
NGINX = f"""
    daemon off; master_process on; worker_processes 2; pid /run/lab-nginx.pid; user root;
    error_log /dev/null;
    events {{}}
    http {{ access_log off; keepalive_requests 1000000;
      server {{ listen {ADDRESSES["web"]}:8080; root /var/lib/lab-www; }} }}
"""
Json = dict[str, Any]


def start_six(lab: Lab) -> dict[str, int]:
    """Six workloads of five kinds on src; name -> PID."""
    for host in ALL:
        for name in ("asyncio_echo.py", "worker.py"):
            lab.put(host, f"/tmp/{name}", (PROGRAMS / name).read_text())
        lab.put(host, "/tmp/lab-nginx.conf", NGINX)
        lab.run(host, "mkdir -p /var/lib/lab-www && echo small > /var/lib/lab-www/small")
    for name in ("web", "echo", "sessions"):
        lab.add_address("src", ADDRESSES[name])
    pids = {name: start_redis(lab, ADDRESSES[name]) for name in CACHES}
    pids["web"] = lab.start("src", "nginx -c /tmp/lab-nginx.conf")
    pids["echo"] = lab.start("src", f"python3 /tmp/asyncio_echo.py {ADDRESSES['echo']} 7000")
    memcached = f"memcached -u root -l {ADDRESSES['sessions']} -p 11211 -m 16 -t 2"
    pids["sessions"] = lab.start("src", memcached)
    pids["worker"] = lab.start(
        "src", f"env STREAMFERRY_LABELS=app=worker python3 /tmp/worker.py {COUNT}"
    )
    for port in (8080, 7000, 11211):
        until(lambda p=port: lab.run("src", f"ss -Hltn sport {p}"), 10, f"port {port} listens")
    return pids


def workloads(**more: Json) -> list[Json]:
    """Of the six, as a playbook has them; `more` by name."""
    redis_cli = "redis-cli -h {} ping | grep -q PONG"
    rows: list[Json] = [
        *(
            {
                "name": name, "group": "cache", "optional": True,
                "select": {"command": "redis-server", "address": ADDRESSES[name]},
                "health": {"command": redis_cli.format(ADDRESSES[name]), "within": "10s"},
            }
            for name in CACHES
        ),
        {
            "name": "web", "optional": True, "select": {"command": "nginx: master", "port": 8080},
            "health": {"http": f"http://{ADDRESSES['web']}:8080/small", "within": "10s"},
        },
        {
            "name": "echo", "optional": True, "select": {"port": 7000},
            "health": {"tcp": {"port": 7000}, "within": "10s"},
        },
        {
            "name": "sessions", "optional": True, "select": {"command": "^memcached"},
            "health": {"tcp": {"port": 11211}, "within": "10s"},
        },
        {"name": "worker", "optional": True, "select": {"label": "app=worker"}},
    ]  # fmt: skip
    return [{**row, **more.get(row["name"], {})} for row in rows]


def playbook(directory: Path, *drains: Json) -> str:
    """JSON is YAML, too."""
    path = directory / "book.yaml"
    path.write_text(json.dumps({"playbook": 1, "drains": list(drains)}))
    return str(path)


def out_of_src(**over: Any) -> Json:
    return {
        "node": "src", "to": ["dst", "spare"], "max_parallel": 2, "workloads": workloads(),
        "budgets": [{"group": "cache", "at_most": 1}], **over,
    }  # fmt: skip


@contextlib.contextmanager
def under_load(lab: Lab) -> Iterator[list[Client]]:
    loads = [
        *(("redis_counter.py", ADDRESSES[name], 6379, 4, 1, 0.002) for name in CACHES),
        ("steady_client.py", "http", ADDRESSES["web"], 8080, 4, 0.002),
        ("steady_client.py", "echo", ADDRESSES["echo"], 7000, 4, 0.002),
        ("steady_client.py", "memcached", ADDRESSES["sessions"], 11211, 4, 0.002),
    ]
    with contextlib.ExitStack() as stack:
        clients = []
        for load in loads:
            clients.append(stack.enter_context(lab.client(*load)))
            assert clients[-1].line() == "ready"  # the next one writes its program anew
        yield clients


def no_errors(clients: list[Client]) -> None:
    for client in clients:
        seen = client.finish()
        assert seen["errors"] == [] and seen["total"] > 0, (client.name, seen)


def where(lab: Lab, pid: int) -> list[str]:
    return [host for host in ALL if lab.alive(host, pid)]


def spans(drain: Json, *names: str) -> list[tuple[float, float]]:
    """From the beginning of each migration until it is well, by the orchestrator's clock."""
    rows = [one["times"] for one in drain["workloads"] if not names or one["name"] in names]
    return [(one["moving"], one["moved"]) for one in rows]


def at_once(spans: list[tuple[float, float]]) -> int:
    return max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)


def count(lab: Lab, host: str) -> int:
    return int(lab.run(host, f"cat {COUNT}"))


def test_six_workloads_drained_and_drained_back(three: Lab, tmp_path: Path) -> None:
    lab = three
    pids = start_six(lab)
    with under_load(lab) as clients:
        before = count(lab, "src")
        status, answer = lab.command("drain", "--playbook", playbook(tmp_path, out_of_src()))
        assert status == 0, answer
        (there,) = answer["drains"]
        assert there["outcome"] == "drained" and len(there["workloads"]) == 6
        assert at_once(spans(there, *CACHES)) == 1
        assert at_once(spans(there)) == 2
        gone_to = {name: where(lab, pid) for name, pid in pids.items()}
        assert all(len(hosts) == 1 and hosts != ["src"] for hosts in gone_to.values()), gone_to
        assert {host for (host,) in gone_to.values()} == {"dst", "spare"}
        assert not set(ADDRESSES.values()) & lab.addresses("src")
        assert count(lab, gone_to["worker"][0]) > before

        # the node is cordoned, and empty
        refused = lab.migrate(gone_to["echo"][0], "src", pids["echo"])
        assert (refused.status, refused.result["error"]["code"]) == (3, "cordoned")
        assert "migrate uncordon src" in refused.result["error"]["hint"]
        status, answer = lab.command("drain", "--playbook", playbook(tmp_path, out_of_src()))
        assert (status, answer["drains"][0]["outcome"]) == (0, "nothing-to-do")

        status, _ = lab.command("uncordon", "src")
        assert status == 0
        back = [
            {"node": host, "to": ["src"], "max_parallel": 2, "workloads": workloads()}
            for host in ("dst", "spare")
        ]
        status, answer = lab.command("drain", "--playbook", playbook(tmp_path, *back))
        assert status == 0, answer
        assert sum(len(one["workloads"]) for one in answer["drains"]) == 6
        assert {tuple(where(lab, pid)) for pid in pids.values()} == {("src",)}
        no_errors(clients)


def moved_and_moving(lab: Lab) -> bool:
    """At least one is there, and another on its way."""
    if not lab.drains():
        return False
    text = lab.drains()[-1].read_text()
    states: dict[str, str] = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            states |= {one["key"]: one["state"] for one in json.loads(line).get("items", [])}
    return {"moved", "moving"} <= set(states.values())


def test_killed_in_the_middle_and_resumed(three: Lab, tmp_path: Path) -> None:
    lab = three
    pids = start_six(lab)
    with under_load(lab) as clients:
        process = lab.start_command("drain", "--playbook", playbook(tmp_path, out_of_src()))
        until(lambda: moved_and_moving(lab), 60, "one moved and one moving")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        drain = lab.drains()[-1].stem
        status, answer = lab.command("drain", "--resume", drain)
        assert status == 0, answer
        assert {one["state"] for one in answer["drains"][0]["workloads"]} == {"moved"}
        assert all("src" not in where(lab, pid) for pid in pids.values())
        assert all(len(where(lab, pid)) == 1 for pid in pids.values())
        no_errors(clients)


def test_not_well_goes_back_and_what_cannot_move_stays(three: Lab, tmp_path: Path) -> None:
    lab = three
    pids = start_six(lab)
    lab.start("src", "sh -c 'sleep 1000 | setsid cat'")  # a pipe whose other end stays
    until(lambda: lab.run("src", "pgrep -x cat", False), 10, "cat runs")
    lab.run("src", "touch /run/lab-well")
    unwell = {"command": "test -e /run/lab-well", "within": "1s"}
    assert lab.command("cordon", "spare", "--reason", "broken fan")[0] == 0
    rows = workloads(echo={"health": unwell}, web={"to": ["spare"]})
    rows.append({"name": "held", "select": {"command": "^cat$"}})
    with under_load(lab) as clients:
        book = playbook(tmp_path, out_of_src(workloads=rows))
        status, answer = lab.command("drain", "--playbook", book, "--dry-run")
        assert status == 3 and {tuple(where(lab, pid)) for pid in pids.values()} == {("src",)}
        status, answer = lab.command("drain", "--playbook", book)
        assert status == 1, answer
        found = {one["key"]: one for one in answer["drains"][0]["workloads"]}
        states = {key: one["state"] for key, one in found.items()}
        assert states == {
            "cache-a": "moved", "cache-b": "moved", "sessions": "moved", "worker": "moved",
            "echo": "returned", "web": "immovable", "held": "immovable",
        }  # fmt: skip
        assert found["echo"]["error"]["code"] == "unwell"
        assert found["web"]["error"]["code"] == "cordoned"
        assert found["held"]["error"]["code"] == "pipe-outside"
        assert "broken fan" in found["web"]["error"]["message"]
        for name, pid in pids.items():
            at = "src" if name in ("echo", "web") else "dst"
            assert where(lab, pid) == [at], name
        no_errors(clients)


@pytest.mark.parametrize(
    ("book", "said"),
    [
        ({"node": "src", "to": ["spar"]}, "Did you mean `spare`?"),
        ({"node": "src", "to": ["dst"], "workloads": [
            {"name": "x", "select": {"pid_file": "/run/lab-none.pid"}}]}, "/run/lab-none.pid"),
    ],
    ids=["unknown-host", "empty-selection"],
)  # fmt: skip
def test_bad_input_touches_nothing(three: Lab, tmp_path: Path, book: Json, said: str) -> None:
    status, answer = three.command("drain", "--playbook", playbook(tmp_path, book))
    assert status in (2, 3) and said in answer["error"]["message"] + answer["error"]["hint"]
    assert three.run("src", "ls /var/lib/streamferry/cordon", check=False).endswith("directory")
