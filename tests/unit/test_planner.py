"""The planner: a plan from good facts, and for each code of refusal a case that brings it about."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agent.errors import ProtocolError
from agent.kernel import uapi
from agent.plan import PRE_COPY, STOP, Address, Listener, Plan
from orchestrator.errors import UsageProblem
from orchestrator.plan import Options, check_hosts
from orchestrator.refusals import SHOWN, TABLE, Refusal
from tests.support.facts import (
    GIB,
    Case,
    address,
    bound,
    established,
    info,
    listener,
    obstacle,
    other,
)


def refused(case: Case) -> list[Refusal]:
    result = case.judge()
    assert isinstance(result, list), result
    return result


def planned(case: Case) -> Plan:
    result = case.judge()
    assert isinstance(result, Plan), result
    return result


def host_of(case: Case, side: str) -> Any:
    return case.source if side == "src" else case.destination


Spoil = Callable[[Case], object]


def host(side: str, **over: Any) -> Spoil:
    return lambda case: host_of(case, side).update(over)


def root(**over: Any) -> Spoil:
    return lambda case: case.process["processes"][0].update(over)  # type: ignore[typeddict-item]


def blocked(code: str, **fields: Any) -> Spoil:
    return lambda case: case.process["obstacles"].append(obstacle(code, **fields))


def connected(*args: Any, **over: Any) -> Spoil:
    return lambda case: case.process["connections"].append(established(*args, **over))


def criu(side: str, **over: Any) -> Spoil:
    return lambda case: host_of(case, side)["criu"].update(over)


def images(side: str, **over: Any) -> Spoil:
    return lambda case: host_of(case, side)["images"].update(over)


def held(side: str, text: str, **over: Any) -> Spoil:
    def spoil(case: Case) -> None:
        for one in host_of(case, side)["addresses"]:
            if one["address"] == text:
                one.update(over)

    return spoil


def file(problem: str) -> Spoil:
    facts = {"path": "/usr/bin/redis", "detail": "no", "pid": 5000, "use": "program"}
    return lambda case: case.found["files"].append({**facts, "problem": problem})  # type: ignore


def port(**over: Any) -> Spoil:
    facts = {"protocol": "tcp", "address": "::", "port": 80, "pid": 9, "comm": "nginx"}
    taken = {**facts, "detail": "Address already in use", **over}
    return lambda case: case.found["ports"].append(taken)  # type: ignore[arg-type]


def ahead(case: Case) -> None:
    case.options = replace(case.options, memory_mode=PRE_COPY)


# (code, words the message must have, words the hint must have, what is spoilt)
CASES: list[tuple[str, str, str, Spoil]] = [
    ("same-machine", "src and dst", "different hosts", host("dst",
     identity="boot net:[src] pid:[src]")),
    ("cordoned", "dst is cordoned (maintenance)", "migrate uncordon dst", host("dst",
     cordon={"since": 1, "reason": "maintenance"})),
    ("capabilities-missing", "src runs as user 1000 without CAP_NET_ADMIN", "root",
     host("src", uid=1000, missing_capabilities=["CAP_NET_ADMIN"])),
    ("architecture", "src is x86_64, dst is aarch64", "same architecture", host("dst",
     machine="aarch64")),
    ("criu-missing", "not installed on dst", "4.2", criu("dst", path=None, version=None)),
    ("criu-too-old", "CRIU 4.1.1 on src", "4.2", criu("src", version=[4, 1, 1])),
    ("criu-unusable", "on dst: no ptrace", "criu check", criu("dst", problem="no ptrace")),
    ("nftables", "on src: missing", "libnftables", host("src", nftables="missing")),
    ("sock-diag", "dst", "modprobe", host("dst", sock_diag="No such file or directory")),
    ("tcp-repair", "dst", "CAP_NET_ADMIN", host("dst", tcp_repair="Operation not permitted")),
    ("raw-sockets", "dst", "CAP_NET_RAW", host("dst", raw_socket="Operation not permitted")),
    ("packet-sockets", "src", "CAP_NET_RAW", host("src", packet_socket="Operation not permitted")),
    ("no-userfaultfd", "does not work on dst: Operation not permitted", "--memory stop",
     lambda case: (host("dst", userfault="Operation not permitted")(case), ahead(case))),
    ("choose-pid", "dst", "CAP_SYS_ADMIN", host("dst", choose_pid="Operation not permitted")),
    ("images-dir", "/run on dst: others may write", "owner", images("dst",
     problem="others may write")),
    ("cpu-features", "dst lacks what programs on src may use: avx512f", "instruction sets",
     host("src", cpu_flags=["avx", "avx512f"])),
    ("traced", "process 5000 (redis-server) is traced by process 9", "debugger", root(tracer=9)),
    ("stopped", "process 5000", "kill -CONT 5000", root(thread_states="ST")),
    ("leader-ended", "process 5000", "main thread", root(state="Z", thread_states="SZ")),
    ("namespace", "another mnt namespace", "container", root(namespaces=["cgroup", "mnt"])),
    ("session-outside", "process 5000", "setsid", root(sid=0)),
    ("limits-unreadable", "process 5000 (nginx), which runs as user 33", "CAP_SYS_RESOURCE",
     lambda case: case.process["obstacles"].append(
         obstacle("limits-unreadable", pid=5000, comm="nginx", user=33))),
    ("terminal", "descriptor 9 of process 5000 is the terminal /dev/pts/3", "setsid",
     blocked("terminal", path="/dev/pts/3")),
    ("foreign-mount", "/data", "inherited", blocked("foreign-mount", path="/data")),
    ("descriptor", "io_uring", "io_uring", blocked("descriptor", what="anon_inode:[io_uring]")),
    ("device", "/dev/kvm", "device", blocked("device", path="/dev/kvm")),
    ("pipe-outside", "process 7 (cat)", "file",
     blocked("pipe-outside", path="pipe:[5]", other="process 7 (cat)")),
    ("unix-outside", "process 7 (dbus) at /run/dbus", "close",
     blocked("unix-outside", other="process 7 (dbus) at /run/dbus")),
    ("shared-socket", "process 7 (nginx)", "both", blocked("shared-socket",
     other="process 7 (nginx)")),
    ("deleted-file", "/tmp/x, which is deleted", "64 MiB",
     blocked("deleted-file", path="/tmp/x", mebibytes=100)),
    ("unlinked-file", "/tmp/x", "Link", blocked("unlinked-file", path="/tmp/x")),
    ("replaced-file", "/usr/lib/libc.so.6", "restart", blocked("replaced-file",
     path="/usr/lib/libc.so.6")),
    ("shared-mapping", "/var/db", "NFS", blocked("shared-mapping", path="/var/db")),
    ("sysv-memory", "/SYSV0", "POSIX", blocked("sysv-memory", what="/SYSV00000000")),
    ("mapping", "/dev/fb0", "without", blocked("mapping", what="/dev/fb0")),
    ("mptcp", "0.0.0.0:80", "GODEBUG=multipathtcp=0", blocked("mptcp", name="0.0.0.0:80")),
    ("kernel-tls", "1.2.3.4:443", "OpenSSL", blocked("kernel-tls", name="1.2.3.4:443")),
    ("tcp-md5", "port 179", "BGP", blocked("tcp-md5", port=179)),
    ("tcp-ao", "1.2.3.4:179", "anew", blocked("tcp-ao", name="1.2.3.4:179")),
    ("zero-copy", "1.2.3.4:80", "MSG_ZEROCOPY", blocked("zero-copy", name="1.2.3.4:80")),
    ("raw-socket", "descriptor 9 of process 5000", "anew", blocked("raw-socket")),
    ("packet-socket", "descriptor 9 of process 5000", "anew", blocked("packet-socket")),
    ("socket", "SCTP", "close", blocked("socket", what="SCTP socket")),
    ("state-unsupported",
     "connection 10.77.0.100:6379 - 10.77.0.14:40000 is in SYN_RECV and cannot move yet", "Wait",
     connected("10.77.0.100", "10.77.0.14", state=uapi.TCP_SYN_RECV)),
    ("loopback-peer", "127.0.0.1:6379 - 127.0.0.1:40000", "another host",
     connected("127.0.0.1", "127.0.0.1")),
    ("peer-local", "10.77.0.12:40000 is on dst", "third hosts", connected("10.77.0.100",
     "10.77.0.12")),
    ("bound-address", "UDP socket bound to 10.77.0.100:514", "0.0.0.0",
     lambda case: case.process["bound"].append(bound("10.77.0.100"))),
    ("address-absent", "10.77.0.101 (connection 10.77.0.101:6379 - 10.77.0.13:40000)",
     "ip address add",
     connected("10.77.0.101", "10.77.0.13")),
    ("address-not-movable",
     "10.77.0.11 (connection 10.77.0.11:6379 - 10.77.0.13:40000) cannot leave "
     "src: src was reached by it", "an address of its own", connected("10.77.0.11", "10.77.0.13")),
    ("address-shared", "process 77 (sshd)", "address of its own",
     lambda case: case.process["others"].append(other("10.77.0.100"))),
    ("address-taken", "dst already has 10.77.0.100", "ip address del 10.77.0.100/24 dev eth0",
     lambda case: case.destination["addresses"].append(address("10.77.0.100"))),
    ("address-no-device", "dst has no device in the network of 10.77.0.100, 10.77.0.0/24",
     "network",
     held("dst", "10.77.0.12", address="10.78.0.12")),
    ("pid-taken", "PID 5001 is taken on dst by process 4999 (java)", "ns_last_pid",
     lambda case: case.found["taken"].append({"pid": 5001, "owner": 4999, "comm": "java"})),
    ("rsync", "on dst: it is not installed", "Install rsync",
     lambda case: case.bring("/srv/data", rsync="it is not installed")),
    ("sync-path", "/srv/data cannot be brought along: there is no such file on src", "--sync",
     lambda case: case.bring("/srv/data", kind="missing")),
    ("file-missing", "/usr/bin/redis (program of process 5000) is missing on dst",
     "--sync /usr/bin/redis", file("missing")),
    ("file-different", "not the same on dst: no", "same version", file("different")),
    ("port-taken",
     "TCP port [::]:80 cannot be bound on dst: Address already in use (process 9, nginx)",
     "Stop", port()),
    ("unix-name-taken", "/run/redis.sock", "Stop",
     lambda case: case.found["unix_names"].append("/run/redis.sock")),
    ("process-capabilities", "process 5000 (redis-server) has CAP_SYS_RESOURCE", "setpriv",
     lambda case: (root(capabilities=1 << 24)(case), host("dst", capabilities=0)(case))),
    ("limit-too-low", "'Max open files' at unlimited, dst allows 1024", "limits.conf",
     lambda case: case.found["limits"].append(
         {"pid": 5000, "limit": "Max open files", "needed": -1, "offered": 1024})),
    ("option-missing", "dst cannot give a TCP socket the option TCP_CONGESTION", "modprobe",
     lambda case: case.found["missing_options"].append(
         {"option": "TCP_CONGESTION", "reason": "there is no congestion control 'dctcp'"})),
    ("descriptor-limit", "the agent on src needs 258 descriptors for 2 sockets", "ulimit",
     host("src", descriptors=200)),
    ("memory-short", "dst has 32 MiB of memory left, 80 MiB are needed", "Free memory",
     host("dst", memory_available=32 << 20)),
    ("images-on-disk", "/run on dst is no tmpfs", "--images-dir",
     images("dst", tmpfs=False)),
    ("images-room", "/run on src has 1 MiB of room, 24 MiB are needed", "Free room",
     images("src", free=1 << 20)),
]  # fmt: skip


@pytest.mark.parametrize(("code", "message", "hint", "spoil"), CASES, ids=[one[0] for one in CASES])
def test_refusal(code: str, message: str, hint: str, spoil: Spoil) -> None:
    case = Case()
    spoil(case)
    first, *more = refused(case)
    assert first.code == code
    assert message in first.message
    assert hint in first.hint
    assert not more
    assert "{" not in first.message + first.hint


def test_going_without_options() -> None:
    case = Case(options=Options(missing_options=True))
    case.found["missing_options"].append({"option": "SO_MARK", "reason": "it is not permitted"})
    made = case.judge()
    assert isinstance(made, Plan) and made.missing_options


def test_what_comes_back_may_come_onto_a_cordoned_host() -> None:
    case = Case()
    case.destination["cordon"] = {"since": 0, "reason": ""}
    refused = case.judge()
    assert isinstance(refused, list) and "dst is cordoned:" in refused[0].message
    case.options = replace(case.options, returns=True)
    assert isinstance(case.judge(), Plan)


def test_every_code_has_a_case() -> None:
    assert {one[0] for one in CASES} == set(TABLE)


def test_words_are_tidy() -> None:
    for code, words in TABLE.items():
        assert set(code) <= set(string.ascii_lowercase + string.digits + "-"), code
        assert not words.message.endswith("."), code
        assert words.hint.endswith((".", "`.")), code


def test_plan() -> None:
    case = Case()
    case.process["processes"].append(info(5010))
    case.process["listeners"].append(listener("::", 6380, v6only=True))
    case.process["shell_job"] = True
    case.options = Options(
        max_blackout=3, images_dir="/run/x", replay=False, link_hosts=("10.77.0.12",)
    )
    plan = planned(case)
    assert plan.pid == 5000
    assert plan.tree == (5000, 5010)
    assert plan.addresses == (Address("10.77.0.100", 24, 4, "eth0", "eth0"),)
    assert plan.listeners == (Listener("10.77.0.100", 6379, 4), Listener("::", 6380, 6, True))
    assert plan.memory == 8 << 20
    assert (plan.shell_job, plan.replay, plan.boundary) == (True, False, True)
    assert (plan.max_blackout, plan.images_dir) == (3, "/run/x")
    assert plan.link_hosts == ("10.77.0.12",)


MANY, FEW = 64 << 20, (64 << 20) - 1  # bytes of memory: worth to be sent ahead, or not


@pytest.mark.parametrize(("asked", "memory", "userfault", "tmpfs", "mode"), [
    ("auto", MANY, None, True, PRE_COPY),
    ("auto", FEW, None, True, STOP),
    ("auto", MANY, "Operation not permitted", True, STOP),
    ("auto", MANY, None, False, STOP),  # ext4 has no file as large as addresses are
    ("stop", MANY, None, True, STOP),
    ("stop", MANY, "Operation not permitted", True, STOP),
    ("pre-copy", FEW, None, True, PRE_COPY),
    ("pre-copy", MANY, None, False, PRE_COPY),
])  # fmt: skip
def test_how_the_memory_goes(
    asked: str, memory: int, userfault: str | None, tmpfs: bool, mode: str
) -> None:
    """Only DST gives it to the process lazily: what SRC can counts for nothing."""
    case = Case(options=Options(memory_mode=asked, max_rounds=5, images_dir="/var/images"))
    case.process["memory"] = memory
    case.source.update(userfault="Function not implemented")
    case.destination.update(userfault=userfault)
    images("dst", tmpfs=tmpfs)(case)
    plan = planned(case)
    assert (plan.memory_mode, plan.max_rounds) == (mode, 5)


@pytest.mark.parametrize("over", [{"memory_mode": "mid-copy"}, {"max_rounds": -1}])
def test_a_plan_that_an_agent_would_refuse_is_none(over: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        Case(options=Options(**over)).judge()


def test_the_facts_of_a_plan_stay_as_they_are() -> None:
    case = Case()
    planned(case)
    assert case == Case()


def test_most_fundamental_first_and_all_told() -> None:
    case = Case()
    for _, _, _, spoil in reversed(CASES):
        spoil(case)
    codes = [one.code for one in refused(case)]
    assert codes[:3] == ["same-machine", "capabilities-missing", "architecture"]
    assert codes == sorted(codes, key=list(TABLE).index)


def test_many_of_one_kind_are_summed_up() -> None:
    case = Case()
    for number in range(SHOWN + 5):
        connected("10.77.0.100", "10.77.0.14", remote_port=number + 1, state=3)(case)
    found = refused(case)
    assert len(found) == SHOWN
    assert "(and 5 more like this)" in found[-1].message


@pytest.mark.parametrize(
    ("version", "kernel", "words"),
    [
        ([3, 17, 1], "6.18.4", "cannot start there"),
        ([4, 0], "6.12.0-amd64", "4.2 is the first"),
        ([4, 1, 1], "6.18.4", "SO_PASSCRED"),
        ([4, 1], "6.12.3", "4.2 is the first"),
        ([4, 1], "strange", "4.2 is the first"),
    ],
)
def test_old_criu_in_words(version: list[int], kernel: str, words: str) -> None:
    case = Case()
    case.source["criu"]["version"] = version
    case.source["kernel"] = kernel
    (only,) = refused(case)
    assert only.code == "criu-too-old"
    assert words in only.message


@pytest.mark.parametrize("version", [[4, 2], [4, 2, 1], [4, 10], [5]])
def test_new_criu(version: list[int]) -> None:
    case = Case()
    case.source["criu"]["version"] = version
    planned(case)


def test_check_hosts_alone() -> None:
    case = Case()
    assert check_hosts("src", "dst", case.source, case.destination) == []
    case.destination["criu"]["path"] = None
    (only,) = check_hosts("src", "dst", case.source, case.destination)
    assert only.code == "criu-missing"


def test_streams_inside_the_tree_may_move() -> None:
    case = Case()
    connected("127.0.0.1", "127.0.0.1", port=9000, remote_port=40001)(case)
    connected("127.0.0.1", "127.0.0.1", port=40001, remote_port=9000)(case)
    connected("10.77.0.100", "10.77.0.100", port=6379, remote_port=40002)(case)
    connected("10.77.0.100", "10.77.0.100", port=40002, remote_port=6379)(case)
    planned(case)


def test_a_peer_on_the_source() -> None:
    case = Case()
    connected("10.77.0.100", "10.77.0.11")(case)
    (only,) = refused(case)
    assert only.code == "peer-local"
    assert "on src itself" in only.message


def test_bound_sockets_that_can_be() -> None:
    case = Case()
    case.process["listeners"].append(listener("fd77::100", 6379))
    case.process["bound"] += [bound("0.0.0.0"), bound("127.0.0.1"), bound("::"), bound("fd77::100")]
    planned(case)
    case.process["bound"].append(bound("fd77::11"))
    (only,) = refused(case)
    assert only.code == "bound-address"


def test_an_obstacle_of_a_later_agent() -> None:
    for odd in (obstacle("unheard-of"), obstacle("terminal"), {"code": "terminal", "fields": {}}):
        case = Case()
        case.process["obstacles"].append(odd)  # type: ignore[arg-type]
        with pytest.raises(ProtocolError, match="not known"):
            case.judge()


def _drop(name: str) -> Spoil:
    return lambda case: case.process.pop(name)  # type: ignore[misc]


@pytest.mark.parametrize(
    "spoil",
    [
        _drop("memory"),
        lambda case: case.process.update(pid="5000"),  # type: ignore[call-overload]
        lambda case: case.process.update(pid=5001),
        lambda case: case.process.update(processes=[]),
        lambda case: case.process.update(extra=1),  # type: ignore[call-arg]
        lambda case: case.process["connections"].append([4, "a", 1, "b"]),  # type: ignore[arg-type]
        lambda case: case.process["connections"].append([4, "a", True, "b", 1, 1]),  # type: ignore
        connected("10.77.0.100.1", "10.77.0.13"),
        connected("10.77.0.100", "nowhere"),
        lambda case: case.process["listeners"].append(listener("10.77.0.100", 70000)),
        lambda case: case.source["gateways"].append(["x", "eth0"]),
        held("dst", "10.77.0.12", prefixlen=40),
        root(pid=1 << 30),
        criu("src", version=["4"]),
        host("src", named=[None]),
    ],
)
def test_malformed_facts(spoil: Spoil) -> None:
    case = Case()
    spoil(case)
    if not case.process["processes"] or case.process["processes"][0]["pid"] == 1 << 30:
        case.process["pid"] = 1 << 30
    with pytest.raises(ProtocolError):
        case.judge()


@pytest.mark.parametrize(
    "options",
    [
        {"max_blackout": 0},
        {"max_blackout": float("nan")},
        {"max_blackout": 1e6},
        {"images_dir": "run"},
        {"images_dir": "/run/../x"},
        {"images_dir": "/"},
        {"address": ("10.77.0.100/24",)},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem):
        Options(**options)


def test_memory_counts_the_images_where_they_are_in_memory() -> None:
    case = Case()
    case.process["memory"] = GIB
    case.destination["memory_available"] = 2 * GIB
    (only,) = refused(case)
    assert only.code == "memory-short"
    case.destination["images"]["tmpfs"] = False
    case.options = Options(images_dir="/var/tmp/images")
    planned(case)


@pytest.mark.parametrize("host", ["source", "destination"])
def test_memory_goes_to_a_disk_only_when_told_so(host: str) -> None:
    case = Case()
    getattr(case, host)["images"]["tmpfs"] = False
    (only,) = refused(case)
    assert only.code == "images-on-disk" and "--images-dir" in only.hint
    case.options = Options(images_dir="/var/tmp/images")
    planned(case)
