"""What the probe says of sockets that have more than TCP, also where this kernel has no such."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, cast

import pytest

from agent.kernel import uapi
from agent.probe import sockets
from agent.probe.descriptors import Descriptor
from agent.probe.obstacles import Obstacles
from orchestrator.refusals import refusal

_TCP, _SOL = socket.IPPROTO_TCP, socket.SOL_SOCKET
_ESTABLISHED = bytes([uapi.TCP_ESTABLISHED]).ljust(uapi.TCP_INFO_SIZE, b"\0")
Answers = dict[tuple[int, int], Any]


class Fake:
    """A connected socket that answers getsockopt(2) as the kernel would."""

    def __init__(self, answers: Answers, *, family: int = 2, kind: int = 1, proto: int = 6) -> None:
        self.family, self.type, self.proto = family, kind, proto
        self._answers = {(_TCP, uapi.TCP_INFO): _ESTABLISHED, **answers}

    def getsockopt(self, level: int, number: int, size: int = 0) -> Any:
        if (level, number) not in self._answers:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        value = self._answers[level, number]
        return value[:size] if size else value

    def getsockname(self) -> tuple[str, int]:
        return ("10.0.0.1", 443)

    def getpeername(self) -> tuple[str, int]:
        return ("10.0.0.2", 5000)

    def fileno(self) -> int:
        return -1


def ulp(name: bytes) -> Answers:
    return {(_TCP, uapi.TCP_ULP): name.ljust(16, b"\0")}


NAME = "10.0.0.1:443 - 10.0.0.2:5000"


@pytest.mark.parametrize(
    ("sock", "ao", "code", "words"),
    [
        (Fake(ulp(b"")), False, None, ""),
        (Fake({}), False, None, ""),
        (Fake({(_SOL, sockets.SO_ZEROCOPY): 0}), False, None, ""),
        (Fake(ulp(b"tls")), False, "kernel-tls", "SSL_OP_ENABLE_KTLS"),
        (Fake(ulp(b"smc")), False, "socket", "upper layer protocol smc"),
        (Fake(ulp(b"mptcp")), False, "socket", "upper layer protocol mptcp"),
        (Fake({}), True, "tcp-ao", "TCP-AO"),
        (Fake({(_SOL, sockets.SO_ZEROCOPY): 1}), False, "zero-copy", "MSG_ZEROCOPY"),
        (Fake({}, proto=uapi.IPPROTO_MPTCP), False, "mptcp", "GODEBUG=multipathtcp=0"),
        (Fake({}, proto=sockets.IPPROTO_SMC), False, "socket", "SMC socket"),
        (Fake({}, family=43, proto=0), False, "socket", "SMC socket"),
    ],
    ids=[
        "no layer", "no ULP known", "no zero-copy", "kTLS", "ULP smc", "ULP mptcp", "AO",
        "zero-copy", "MPTCP", "SMC", "AF_SMC",
    ],
)  # fmt: skip
def test_what_is_said(
    monkeypatch: pytest.MonkeyPatch, sock: Fake, ao: bool, code: str | None, words: str
) -> None:
    monkeypatch.setattr(sockets, "has_ao", lambda fd: ao)
    monkeypatch.setattr(sockets.options, "dump", lambda *_: [])
    obstacles = Obstacles()
    found = sockets.Sockets(obstacles)
    found._sort(1, Descriptor(7, 3), cast(socket.socket, sock))
    if code is None:
        assert not obstacles.found
        assert [one[4] for one in found.connections] == [5000]
        return
    (one,) = obstacles.found
    assert one["code"] == code
    said = refusal(code, **one["fields"])
    assert words in f"{said.message} {said.hint}"
    if code != "socket":
        assert NAME in said.message
