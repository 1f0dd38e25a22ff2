"""Write the tables in docs/tcp-engine.md from those of agent.tcp: `... [--check]`.

What the other two do was read in their sources: CRIU 4.2 (soccr/soccr.c; criu/sk-tcp.c, sk-inet.c,
sockets.c) and passt of March 2026 (tcp.c, flow.c).
"""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent.tcp.option_stays import STAYS  # noqa: E402
from agent.tcp.option_table import LISTENING, OPENING, TABLE, Option  # noqa: E402
from docs.generated import renew  # noqa: E402

TARGET = Path(__file__).with_name("tcp-engine.md")
MARK = "<!-- generated below by docs/make_tcp_table.py -->\n"
KERNEL = "tests/kernel/test_tcp_"


class Row(NamedTuple):
    """A state or a shape, what each of the three does with it, and the test that shows ours."""

    what: str
    ours: str
    libsoccr: str
    passt: str
    test: str  # behind "tests/kernel/test_tcp_", or the whole path


STATES = (
    Row("ESTABLISHED", "yes", "yes", "yes", "move.py::test_every_byte_and_number"),
    Row("SYN_SENT",
        "yes, with its sequence number; an answer from the blackout counts",
        "yes, with its sequence number",
        "no", "opening.py::test_the_answer_comes_in_the_blackout"),
    Row("SYN_RECV",
        "waited for; the peer's SYN comes again",
        "no", "no", "steal.py::test_half_open_connections"),
    Row("accept queue",
        "waited for, with new SYNs held off; refused with a count where nobody accepts",
        "refused, or dropped with an option",
        "no", "steal.py::test_an_accept_queue_that_is_stuck"),
    Row("LISTEN", "yes, with its backlog", "by CRIU", "opened anew by its configuration",
        "listen.py::test_a_listener"),
    Row("FIN_WAIT1", "yes", "yes", "yes", "closing.py::test_state_bytes_and_end"),
    Row("FIN_WAIT2", "yes", "yes", "as FIN_WAIT1, silently",
        "closing.py::test_state_bytes_and_end"),
    Row("CLOSE_WAIT", "yes", "yes", "without the peer's FIN",
        "closing.py::test_state_bytes_and_end"),
    Row("CLOSING", "yes", "yes", "no", "closing.py::test_state_bytes_and_end"),
    Row("LAST_ACK", "yes", "yes", "no", "closing.py::test_state_bytes_and_end"),
    Row("CLOSE with unread data", "yes, and its error",
        "the library knows it; CRIU makes an empty socket", "no",
        "closed.py::test_data_and_end"),
    Row("TIME_WAIT", "yes, a late FIN is answered", "no", "no", "time_wait.py::test_a_late_fin"),
    Row("closed by the process, not yet delivered", "waited for, or refused", "left behind", "no",
        "orphans.py::test_a_closed_connection_is_waited_for"),
    Row("data sent and not acknowledged", "yes", "yes", "yes, to 64 MiB",
        "move.py::test_every_byte_and_number"),
    Row("data received and not read", "yes", "yes", "yes, to 64 MiB",
        "move.py::test_every_byte_and_number"),
    Row("what was sent and lost comes again, what arrived does not", "yes", "yes", "yes",
        "segments.py::test_sent_and_lost"),
    Row("the round-trip time, for the timers", "yes, with timestamps", "no: 1 to 4 s",
        "no: 1 to 4 s",
        "segments.py::test_the_timers_go_by_the_round_trip_time_of_before"),
    Row("link-local addresses", "yes, the scope by its device's name", "by CRIU, the same way",
        "of its one outer device", "device.py::test_a_link_local_address_has_its_scope_by_name"),
    Row("IPv4-mapped IPv6 addresses", "yes", "yes", "as IPv4",
        "closing.py::test_state_bytes_and_end"),
    Row("unsent boundary", "yes, behind the lock", "yes", "yes, after the release",
        "boundary.py::test_unsent_data_goes_out_with_the_first_acknowledgement"),
    Row("FIN behind unsent data", "yes", "yes", "yes", "closing.py::test_fin_behind_unsent_data"),
    Row("out-of-order data", "left behind: the peer sends it again", "the same", "the same",
        "property.py::test_every_byte_once_and_in_order"),
    Row("urgent data", "yes, with its mark", "no", "no",
        "urgent.py::test_unread"),
    Row("zero window", "yes, both ways", "yes", "yes", "move.py::test_every_byte_and_number"),
    Row("windows without scaling", "yes", "yes", "scaled by 0",
        "closing.py::test_windows_keep_their_scale"),
    Row("TCP_MAXSEG before there is a connection", "yes", "no", "no",
        "opening.py::test_the_segment_size_that_was_asked_for"),
    Row("buffers, locked or tuned", "yes", "by CRIU", "set to the most",
        "options.py::test_buffers_and_their_locks"),
    Row("what is sent after the move, packet by packet", "the window probe, asserted", "the same",
        "the same", "segments.py::test_nothing_was_to_do"),
    Row("onto the same socket (AF_UNSPEC)", "yes", "no", "no",
        "move.py::test_every_byte_and_number"),
    Row("O_NONBLOCK", "yes", "by CRIU", "always", "options.py::test_blocking_mode"),
    Row("the peer's answer to the release", "asked for again until it comes", "asked for once",
        "asked for once", "wake.py::test_lost_probes_are_sent_again"),
    Row("rollback at the source", "yes", "yes", "before the sockets are closed",
        "rollback.py::test_dump_and_release"),
)  # fmt: skip

# What CRIU sets, around its library: SkOptsEntry, TcpOptsEntry, IpOptsEntry, FownEntry
BY_CRIU = frozenset(
    """
    SO_PRIORITY SO_RCVLOWAT SO_MARK SO_DONTROUTE SO_OOBINLINE SO_LINGER SO_KEEPALIVE SO_SNDTIMEO
    SO_RCVTIMEO SO_REUSEADDR SO_REUSEPORT SO_BINDTODEVICE SO_ATTACH_FILTER IP_FREEBIND IP_TOS
    IP_TTL IP_PKTINFO IPV6_RECVPKTINFO IPV6_V6ONLY TCP_NODELAY TCP_CORK TCP_KEEPCNT TCP_KEEPIDLE
    TCP_KEEPINTVL F_SETSIG F_SETOWN_EX F_SETFL
    """.split()
)
BY_PASST = {"TCP_NODELAY": "always on", "SO_REUSEADDR": "always on", "SO_PEEK_OFF": "its own"}
SHOWN_NAMES = {"F_SETFL": "O_ASYNC", "F_SETOWN_EX": "F_SETOWN, F_SETOWN_EX"}
NOT_BY_CRIU_V6 = {"IP_FREEBIND": "by CRIU (IPv6 too)", "IP_TOS": "by CRIU (IPv4 sockets)",
                  "IP_TTL": "by CRIU (IPv4 sockets)"}  # fmt: skip
ESTABLISHED = "tests/kernel/test_tcp_options.py::test_option_of_a_connection"
OPENED = "tests/kernel/test_tcp_options.py::test_option_of_an_opening_connection"
LISTENER = "tests/kernel/test_tcp_options.py::test_option_of_a_listener"


def _path(test: str) -> str:
    return test if test.startswith("tests/") else KERNEL + test


def states() -> list[str]:
    lines = ["| state or data | Streamferry | libsoccr | passt | shown by |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    lines += [
        f"| {row.what} | {row.ours} | {row.libsoccr} | {row.passt} | `{_path(row.test)}` |"
        for row in STATES
    ]
    return lines


def ours(option: Option) -> str:
    """Of which sockets the option moves."""
    if option.name == "TCP_WINDOW_CLAMP":
        return "yes, of connections a field"
    if option.of == LISTENING:
        return "yes, of listeners"
    if option.of == OPENING:
        return "yes, before there is a connection"
    return "yes; of connections with control messages" if option.rare else "yes"


def options() -> list[str]:
    lines = ["| option | Streamferry | libsoccr | passt | shown by |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for one in sorted(TABLE, key=lambda one: (one.level, SHOWN_NAMES.get(one.name, one.name))):
        name = SHOWN_NAMES.get(one.name, one.name)
        criu = NOT_BY_CRIU_V6.get(one.name, "by CRIU") if one.name in BY_CRIU else "no"
        test = (ESTABLISHED, OPENED, LISTENER)[one.of]
        lines.append(
            f"| {name} | {ours(one)} | {criu} | {BY_PASST.get(one.name, 'no')} | `{test}` |"
        )
    return lines


def stays() -> list[str]:
    lines = ["| why | options |", "| --- | --- |"]
    by_reason = sorted(STAYS, key=lambda one: one.why)
    for why, group in groupby(by_reason, key=lambda one: one.why):
        lines.append(f"| it {why} | {', '.join(one.name for one in group)} |")
    return lines


def generated() -> str:
    """What stands below the mark."""
    parts = (
        ["## States and data", "", *states()],
        ["## Options", "",
         f"There are {len(TABLE)}. The three tests have a case for each, over IPv4, IPv6 and "
         "mapped addresses.", "", *options()],
        ["## Options that stay", "",
         "These and the ones above are all that the kernel's headers know.", "", *stays()],
    )  # fmt: skip
    return "".join("\n" + "\n".join(part) + "\n" for part in parts)


if __name__ == "__main__":
    renew(TARGET, MARK, generated)
