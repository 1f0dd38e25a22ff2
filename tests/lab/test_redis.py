"""A real Redis under load goes there and back, and its clients feel a stall and nothing else."""

from __future__ import annotations

import itertools

import pytest

from tests.support.lab import SERVICE, Lab

THERE_AND_BACK = [("src", "dst"), ("dst", "src")] * 2


@pytest.mark.parametrize(
    ("connections", "depth", "pause"),
    [(1, 1, 0.001), (8, 1, 0), (8, 50, 0), (100, 10, 0.005)],
)
def test_four_migrations_under_load(
    lab: Lab, redis: int, connections: int, depth: int, pause: float
) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, connections, depth, pause) as client:
        assert client.line() == "ready"
        for source, destination in THERE_AND_BACK:
            migration = lab.migrate(source, destination, redis)
            assert migration.status == 0, (migration.result, migration.stderr)
            result = migration.result
            assert result["outcome"] == "migrated" and result["error"] is None
            assert len(result["streams"]) == connections
            assert all(0 <= stream["wake_ms"] < 2000 for stream in result["streams"])
            assert all(stream["state"] == "ESTABLISHED" for stream in result["streams"])
            assert lab.alive(destination, redis) and not lab.alive(source, redis)
            assert SERVICE in lab.addresses(destination)
            assert SERVICE not in lab.addresses(source)
            for host in (source, destination):
                lab.settle(host)
        seen = client.finish()
    assert seen["errors"] == []
    assert all(count > 0 for count in seen["counts"])
    stored = lab.run(
        "client",
        f"redis-cli -h {SERVICE} mget "
        + " ".join(f"counter-{number}" for number in range(connections)),
    )
    values = [int(line.split()[-1].strip('"')) for line in stored.splitlines()]
    assert values == seen["counts"]


def test_json_object_is_complete(lab: Lab, redis: int) -> None:
    with lab.client("redis_counter.py", SERVICE, 6379, 2, 1, 0.001) as client:
        client.line()
        result = lab.migrate("src", "dst", redis).result
        client.finish()
    assert set(result) == {
        "id", "outcome", "error", "source", "destination", "pid", "blackout_ms",
        "clock_error_ms", "phases_ms", "streams", "replayed_packets", "bytes", "memory",
    }  # fmt: skip
    assert set(result["phases_ms"]) == {
        "check", "lock", "freeze", "dump_streams", "dump_process", "ship", "restore_streams",
        "restore_process", "commit", "take_over", "unlock", "replay",
    }  # fmt: skip
    assert all(isinstance(ms, float) for ms in result["phases_ms"].values())
    assert set(result["bytes"]) == {"memory", "streams", "files"}
    assert result["bytes"]["memory"] > 0
    assert 0 < result["blackout_ms"] < 10_000
    assert 0 < result["clock_error_ms"] < 5
    for stream in result["streams"]:
        assert set(stream) == {
            "local", "remote", "state", "receive_queue", "send_queue", "unsent", "wake_ms",
            "probes",
        }  # fmt: skip


def test_data_and_new_connections_after_the_move(lab: Lab, redis: int) -> None:
    keys = " ".join(itertools.chain.from_iterable((f"key{n}", f"value{n}") for n in range(100)))
    lab.run("client", f"redis-cli -h {SERVICE} mset {keys}")
    migration = lab.migrate("src", "dst", redis)
    assert migration.status == 0, migration.result
    assert migration.result["streams"] == []
    assert lab.run("client", f"redis-cli -h {SERVICE} get key99") == "value99"
