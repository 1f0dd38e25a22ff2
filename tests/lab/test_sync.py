"""Files are brought along: a server goes on with all that it has open, on a host that had none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.lab import HOSTS, PROGRAMS, Client, Lab, Migration, until

HOME = "/srv/lab-sync"
DIRECTORY = "/srv/lab-program"
PROGRAM = f"{DIRECTORY}/file_server.py"
ADDRESS, PORT = "10.77.0.107", 7100


@pytest.fixture
def server(lab: Lab) -> Iterator[int]:
    """A server at src with files in `HOME`, of which dst has nothing; its PID."""
    clean(lab)
    lab.add_address("src", ADDRESS)
    lab.run(
        "src", f"mkdir -p {HOME} /srv/lab-program && chmod 750 {HOME} && chown 1234:4321 {HOME}"
    )
    lab.put("src", PROGRAM, (PROGRAMS / "file_server.py").read_text())
    lab.run("src", f"head -c 3000000 /dev/urandom > {HOME}/data && echo begin > {HOME}/log")
    lab.run("src", f"chown 1234:4321 {HOME}/data {HOME}/log")
    pid = lab.start("src", f"python3 {PROGRAM} {ADDRESS} {PORT} {HOME}")
    until(lambda: lab.run("src", f"ss -Hltn sport {PORT}", False), 10, "the server listens")
    yield pid
    clean(lab)


def clean(lab: Lab) -> None:
    for host in HOSTS:
        lab.run(host, "pkill -KILL -f '[f]ile_server.py' || true")
        lab.run(host, f"umount {HOME} 2>/dev/null; rm -rf /srv/lab-sync /srv/lab-program")


@contextlib.contextmanager
def talking(lab: Lab) -> Iterator[Client]:
    with lab.client("file_client.py", ADDRESS, PORT) as client:
        assert client.line() == "ready"
        yield client
        assert client.finish() == {"errors": []}


def ask(client: Client, text: str) -> str:
    client.tell(f"{text}\n")
    return client.line()


def moved(lab: Lab, server: int, migration: Migration) -> None:
    assert migration.status == 0, (migration.result, migration.stderr)
    assert lab.alive("dst", server) and not lab.alive("src", server)
    assert migration.result["sync_bytes"] > 0 and migration.result["phases_ms"]["sync"] > 0
    no_rsync(lab)


def no_rsync(lab: Lab) -> None:
    for host in HOSTS:
        until(lambda h=host: not lab.run(h, "pgrep rsync || true"), 5, "rsync has ended")


def same(lab: Lab, *paths: str) -> None:
    """Content, owner, mode and time are those of the source."""
    for path in paths:
        stat = f"stat -c '%a %u %g %s %Y %h' {path} && sha256sum {path}"
        assert lab.run("dst", stat) == lab.run("src", stat), path


BOTH = ("--sync", HOME, "--sync", "/srv/lab-program")


def test_what_it_has_open_comes_along(lab: Lab, server: int) -> None:
    """Files of another user, one that is deleted, a program and its library that dst lacks."""
    with talking(lab) as client:
        ask(client, "append hello"), ask(client, "write 1000000 changed")
        before = ask(client, "digest")
        migration = lab.migrate("src", "dst", server, "--sync-open")
        moved(lab, server, migration)
        assert ask(client, "digest") == before
        same(lab, f"{HOME}/data", f"{HOME}/log")
        assert lab.run("dst", f"stat -c '%a %u %g' {HOME}") == "750 1234 4321"
        ask(client, "append there")
    assert lab.run("dst", f"tail -n 1 {HOME}/log") == "there"


def test_a_program_and_a_library_that_are_not_there(lab: Lab, server: int) -> None:
    lab.run("src", f"pkill -KILL -f '[f]ile_server.py'; cp -L $(which python3) {DIRECTORY}/python")
    library = lab.run("src", "ldconfig -p | grep -o '/.*libz[.]so[.]1$' | head -n 1")
    lab.run("src", f"cp -L {library} {DIRECTORY}/libz.so.1")
    environment = f"env LD_PRELOAD={DIRECTORY}/libz.so.1"
    pid = lab.start("src", f"{environment} {DIRECTORY}/python {PROGRAM} {ADDRESS} {PORT} {HOME}")
    until(lambda: lab.run("src", f"ss -Hltn sport {PORT}", False), 10, "the server listens")
    refused = lab.migrate("src", "dst", pid)
    assert refused.status == 3 and refused.result["error"]["code"] == "file-missing"
    assert "--sync /" in refused.result["error"]["hint"]
    with talking(lab) as client:
        before = ask(client, "digest")
        moved(lab, pid, lab.migrate("src", "dst", pid, "--sync-open"))
        assert ask(client, "digest") == before
    same(lab, f"{DIRECTORY}/python", f"{DIRECTORY}/libz.so.1")


def test_a_log_that_grows_all_the_time(lab: Lab, server: int) -> None:
    with talking(lab) as client:
        ask(client, "grow 100")
        for (source, destination), memory in (
            (HOSTS, "stop"), (HOSTS[::-1], "post-copy"), (HOSTS, "pre-copy"),
        ):  # fmt: skip
            migration = lab.migrate(source, destination, server, *BOTH, "--memory", memory)
            assert migration.status == 0, (migration.result, migration.stderr)
            assert migration.result["phases_ms"]["sync_last"] > 0
        ask(client, "grow 0")
        lines = int(ask(client, "digest").split()[-1])
    numbers = lab.run("dst", f"grep -o '^[0-9]* ' {HOME}/log").split()
    assert [int(one) for one in numbers] == list(range(1, lines + 1)), "a line is missing, or twice"


def test_a_second_time_next_to_nothing_goes(lab: Lab, server: int) -> None:
    lab.run("src", f"head -c 30000000 /dev/urandom > {HOME}/more && ln {HOME}/more {HOME}/link")
    lab.run("src", f"head -c 1M /dev/urandom > {HOME}/sparse && truncate -s 10G {HOME}/sparse")
    lab.run("src", f"mkfifo {HOME}/fifo && mknod {HOME}/device c 1 3")
    lab.run("src", f"setfattr -n user.x -v y {HOME}/more || true")
    first = lab.migrate("src", "dst", server, *BOTH)
    moved(lab, server, first)
    same(lab, f"{HOME}/more", f"{HOME}/link")
    same_start = f"stat -c '%a %u %g %s %Y' {HOME}/sparse; head -c 2M {HOME}/sparse | sha256sum"
    assert lab.run("dst", same_start) == lab.run("src", same_start)
    assert int(lab.run("dst", f"du -k {HOME}/sparse").split()[0]) < 2048
    assert lab.run("dst", f"stat -c %F {HOME}/fifo") == "fifo"
    assert first.result["sync_left"] == [f"{HOME}/device"]
    assert f"not brought, a socket or device: {HOME}/device" in first.stderr
    second = lab.migrate("dst", "src", server, *BOTH)
    assert second.status == 0, second.result
    assert 30_000_000 < first.result["sync_bytes"] < 40_000_000
    assert second.result["sync_bytes"] < 100_000


def test_check_says_what_would_come(lab: Lab, server: int) -> None:
    status, answer = lab.command("check", "src", "dst", "--pid", str(server), "--sync-open", *BOTH)
    assert status == 0, answer
    assert answer["plan"]["sync_dirs"] == sorted([HOME, DIRECTORY])
    assert not lab.run("dst", f"ls {HOME} 2>/dev/null || true")
    status, answer = lab.command("check", "src", "dst", "--pid", str(server), "--sync-open")
    assert f"{HOME}/log" in answer["plan"]["sync_files"]


def goes_on(lab: Lab, server: int, client: Client, before: str) -> None:
    """At the source, as if nothing had been."""
    assert lab.alive("src", server) and not lab.alive("dst", server)
    assert ask(client, "digest") == before
    for host in HOSTS:
        lab.settle(host)
    no_rsync(lab)


def test_a_disk_that_fills_up(lab: Lab, server: int) -> None:
    lab.run("src", f"head -c 30000000 /dev/urandom > {HOME}/more")
    lab.run("dst", f"mkdir -p {HOME} && mount -t tmpfs -o size=10m tmpfs {HOME}")
    with talking(lab) as client:
        before = ask(client, "digest")
        migration = lab.migrate("src", "dst", server, *BOTH)
        assert migration.status == 1, migration.result
        assert migration.result["error"]["code"] == "sync-full"
        assert migration.result["error"]["phase"] == "sync"
        assert migration.result["phases_ms"]["freeze"] == 0
        assert migration.stderr == ""
        goes_on(lab, server, client, before)


def test_a_place_that_is_elsewhere(lab: Lab, server: int) -> None:
    lab.run("dst", f"mkdir -p /srv/lab-program/x && ln -s /srv/lab-program/x {HOME}")
    migration = lab.migrate("src", "dst", server, *BOTH)
    assert (migration.status, migration.result["error"]["code"]) == (3, "sync-path")


def test_without_rsync(lab: Lab, server: int) -> None:
    lab.run("dst", "mv /usr/bin/rsync /usr/bin/rsync.away")
    try:
        migration = lab.migrate("src", "dst", server, *BOTH)
    finally:
        lab.run("dst", "mv /usr/bin/rsync.away /usr/bin/rsync")
    error = migration.result["error"]
    assert (migration.status, error["code"]) == (3, "rsync")
    assert "on dst: it is not installed" in error["message"] and "Install rsync" in error["hint"]


@pytest.mark.parametrize("fault", [
    "sync@source=kill", "sync@source=hang", "sync@destination=kill", "sync@destination=error",
    "sync_last@source=kill", "sync_last@source=cut",
])  # fmt: skip
def test_a_fault(lab: Lab, server: int, fault: str) -> None:
    with talking(lab) as client:
        before = ask(client, "digest")
        options = (*BOTH, "--max-blackout", "2", "--fault", fault)
        migration = lab.migrate("src", "dst", server, *options)
        assert migration.status == 1, migration.result
        goes_on(lab, server, client, before)


def test_a_file_that_is_new_at_the_freeze_and_not_brought(lab: Lab, server: int) -> None:
    """Opened after the comparison, in a directory that is not named: too late for the check."""
    with talking(lab) as client:
        before = ask(client, "digest")
        options = ("--sync-open", "--fault", "lock@source=delay=3")
        process = lab.start_migrate("src", "dst", server, *options)
        until(lambda: lab.entered("src", "locked"), 20, "the lock")
        ask(client, "new late")
        migration = lab.end_migrate(process)
        error = migration.result["error"]
        assert (migration.status, error["code"]) == (1, "sync-different")
        assert f"--sync {HOME}/late" in error["hint"]
        goes_on(lab, server, client, before)
