"""What is beside or above TCP: told apart on real sockets, by the check and by the library.

Each of kTLS, TCP-AO and SMC has a case where this kernel has it; what is said of one is in
tests/unit/test_probe_sockets.py for every kernel.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable

import pytest

from agent import tcp
from agent.kernel import uapi
from agent.tcp.steal import socket_descriptors, steal
from tests.support.netns import Host
from tests.support.processes import look, processes
from tests.support.tcp import AF, Pair, connected, echo_works, state

_TCP = socket.IPPROTO_TCP
_AF_SMC = 43
# struct tcp_ao_add (linux/tcp.h): address, algorithm, ifindex, flags, prefix, ids, key
_AO_ADD = struct.pack(
    "=H2sI120x64siIHBBBBBB80s",
    socket.AF_INET, b"", 0x0100007F, b"hmac(sha1)", 0, 0, 0, 32, 1, 1, 12, 0, 4, b"test",
)  # fmt: skip
LISTENING = "s = {}; {}; s.bind(('127.0.0.1', 0)); s.listen()"
AO = f"s.setsockopt(6, 38, bytes.fromhex('{_AO_ADD.hex()}'))"
TLS = (
    "l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen();"
    "s = socket.create_connection(l.getsockname()); s.setsockopt(6, 31, b'tls')"
)


def _has(act: Callable[[socket.socket], object]) -> bool:
    with contextlib.suppress(OSError), socket.socket() as sock:
        try:
            act(sock)
        except OSError as error:
            # A ULP is for connected sockets: the kernel that has it says so
            return error.errno == 107
        return True
    return False


def _smc(sock: socket.socket) -> None:
    socket.socket(_AF_SMC, socket.SOCK_STREAM, 0).close()


REAL = {
    "mptcp": (True, LISTENING.format("socket.socket(2, 1, 262)", "pass")),
    "kernel-tls": (_has(lambda sock: sock.setsockopt(_TCP, uapi.TCP_ULP, b"tls")), TLS),
    "tcp-ao": (
        _has(lambda sock: sock.setsockopt(_TCP, 38, _AO_ADD)),
        LISTENING.format("socket.socket()", AO),
    ),
    "socket": (_has(_smc), LISTENING.format("socket.socket(43, 1, 0)", "pass")),
}


@pytest.mark.parametrize("code", [code for code, (here, _) in REAL.items() if here])
def test_the_check_refuses(code: str) -> None:
    with processes() as start:
        facts = look(start(REAL[code][1]))
    assert [one["code"] for one in facts["obstacles"]] == [code]


def accepted(server: Host, client: Host, family: int, protocol: int) -> Pair:
    """From an MPTCP listener, which is gone; the client speaks `protocol`."""
    with server.socket(AF[family], socket.SOCK_STREAM, uapi.IPPROTO_MPTCP) as listener:
        listener.bind((server.address(family), 0))
        listener.listen()
        peer = client.socket(AF[family], socket.SOCK_STREAM, protocol)
        peer.settimeout(10)
        peer.connect(listener.getsockname()[:2])
        ours, _ = listener.accept()
    # Python takes the protocol of the listener for it; the kernel knows better
    return Pair(socket.socket(fileno=ours.detach()), peer)


def test_plain_tcp_accepted_from_an_mptcp_listener(pair: tuple[Host, Host], family: int) -> None:
    """It is told apart, and moves."""
    held = accepted(*pair, family, _TCP)
    assert held.server.proto == _TCP
    pidfd = os.pidfd_open(os.getpid())
    stolen = steal({os.getpid(): pidfd}, socket_descriptors([os.getpid()]))
    os.close(pidfd)
    assert os.fstat(held.server.fileno()).st_ino in stolen
    for one in stolen.values():
        one.close()
    stream = tcp.Stream.from_bytes(pair[0].run(tcp.dump, held.server).to_bytes())
    tcp.abandon(held.server)
    held.server = pair[0].run(tcp.restore, stream)
    pair[0].run(tcp.release, held.server)
    held.server.settimeout(10)
    assert state(held.server) == uapi.TCP_ESTABLISHED
    echo_works(held)
    held.server.close()
    held.client.close()


def test_the_check_tells_it_apart() -> None:
    """The listener is refused, and the plain connection that it gave is not."""
    code = """
    l = socket.socket(2, 1, 262); l.bind(('127.0.0.1', 0)); l.listen()
    c = socket.socket(2, 1, PROTOCOL); c.connect(l.getsockname()); s, _ = l.accept()
    """
    with processes() as start:
        plain = look(start(code.replace("PROTOCOL", "6")))
        real = look(start(code.replace("PROTOCOL", "262")))
    assert [one["code"] for one in plain["obstacles"]] == ["mptcp"]
    assert len(plain["connections"]) == 2
    assert [one["code"] for one in real["obstacles"]] == ["mptcp"] * 3
    assert real["connections"] == []


def test_mptcp_is_refused_by_the_library(pair: tuple[Host, Host], family: int) -> None:
    held = accepted(*pair, family, uapi.IPPROTO_MPTCP)
    for host, sock in zip(pair, (held.server, held.client), strict=True):
        assert sock.proto == uapi.IPPROTO_MPTCP
        with pytest.raises(tcp.StreamError, match="MPTCP"):
            host.run(tcp.dump, sock)
    held.server.settimeout(10)
    echo_works(held)
    held.server.close()
    held.client.close()


@pytest.mark.parametrize("what", ["tls", "TCP-AO"])
def test_layers_are_refused_by_the_library(
    pair: tuple[Host, Host], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really, where this kernel has it; else as the kernel would tell of it."""
    with connected(*pair, 4) as held:
        if what == "tls" and REAL["kernel-tls"][0]:
            held.server.setsockopt(_TCP, uapi.TCP_ULP, b"tls")
        elif what == "tls":
            monkeypatch.setattr(uapi, "TCP_ULP", uapi.TCP_CONGESTION)
            what = held.server.getsockopt(_TCP, uapi.TCP_CONGESTION, 16).rstrip(b"\0").decode()
        else:
            monkeypatch.setattr("agent.tcp.library.has_ao", lambda fd: True)
        with pytest.raises(tcp.StreamError, match=what):
            tcp.dump(held.server)
        echo_works(held)
