"""One TCP connection as the transport of a link: sealed records, signs of life, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import socket
import struct
from typing import cast

from agent.errors import PeerLost
from agent.image.seal import Aead
from agent.kernel.uapi import TCP_INFO
from agent.link import ALIVE, Link

_BUFFER = 4 << 20  # bytes written that may wait for the kernel to take them
_BEAT = 5.0  # seconds between signs of life
_MISSED = 4  # of them in a row, and the other end is gone
_MEASURED = 1 << 20  # bytes at least, for the network's rate
# struct tcp_info in include/uapi/linux/tcp.h: tcpi_bytes_acked; tcpi_busy_time,
# tcpi_rwnd_limited, tcpi_sndbuf_limited, in microseconds (4.10)
_ACCOUNTS = struct.Struct("=120xQ40xQQQ")
_FLUSH = 2.0  # seconds for what was sent to leave once the link is closed


class Carrier(asyncio.BufferedProtocol):
    """Carries `link` from `connection_made` on."""

    def __init__(self, link: Link, sending: bytes, receiving: bytes, first: bool) -> None:
        """`sending`, `receiving`: the keys of both directions. `first`: whether this end may speak
        at once, or has to wait for the other's first word.

        Until then the other end may still take what comes for SSH (`agent.login`).
        """
        self._link = link
        self._keys = sending, receiving
        self._kept: list[bytes | memoryview] | None = None if first else []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._missed = 0
        self._accounts = (0, 0, 0, 0)
        self._paused = self._closing = self._output_ended = self._input_ended = False

    async def take(self, connection: socket.socket) -> None:
        """Carry the link over this connection."""
        connection.setblocking(False)
        await self._loop.create_connection(lambda: self, sock=connection)

    # --- for asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_BUFFER)
        self._link.seal(*map(Aead, self._keys))
        self._link.attach(self._write, self._close, self._pause, self._end_output)
        if self._kept is None:
            self._link.send({"kind": ALIVE})
        self._timer = self._loop.call_later(_BEAT, self._beat)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._link.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._missed = 0
        if self._kept is not None:
            for data in self._kept:
                self._transport.write(data)
            self._kept = None
            if self._output_ended:
                self._end_output()
        self._link.took(nbytes)

    def pause_writing(self) -> None:
        self._link.writable(False)

    def resume_writing(self) -> None:
        self._measure()
        self._link.writable(True)

    def eof_received(self) -> bool:
        self._input_ended = True
        self._link.input_ended()
        return not self._closing  # we may still have to say why it failed

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._link.ended(error)

    # --- for the link

    def _write(self, data: bytes | memoryview) -> None:
        if self._output_ended or self._transport.is_closing():
            raise BrokenPipeError("it has been ended here")
        if self._kept is not None:
            self._kept.append(data)
        else:
            self._transport.write(data)

    def _pause(self, pause: bool) -> None:
        if pause != self._paused and not self._closing:
            self._paused = pause
            (self._transport.pause_reading if pause else self._transport.resume_reading)()

    def _end_output(self) -> None:
        self._output_ended = True
        if self._kept is None:
            with contextlib.suppress(OSError):  # the other end may have gone
                self._transport.write_eof()

    def _close(self) -> None:
        """End it once what was sent is taken: closed with data unread, it would reset the other."""
        if self._closing or self._transport.is_closing():
            return
        self._pause(False)
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self._input_ended:
            self._transport.close()
        else:
            self._end_output()
            self._timer = self._loop.call_later(_FLUSH, self._transport.abort)

    def _measure(self) -> None:
        """What the network took of the time since the last look, for each byte."""
        sock = self._transport.get_extra_info("socket")
        accounts = _ACCOUNTS.unpack(sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, _ACCOUNTS.size))
        acked, busy, by_receiver, by_sender = map(operator.sub, accounts, self._accounts)
        if acked >= _MEASURED:
            self._accounts = accounts
            self._link.takes(max(0, busy - by_receiver - by_sender) / 1e6 / acked)

    def _beat(self) -> None:
        self._timer = self._loop.call_later(_BEAT, self._beat)
        self._missed += not self._paused
        if self._missed > _MISSED:
            self._link.ended(TimeoutError("no sign of life"))
            self._transport.abort()
            return
        with contextlib.suppress(PeerLost):
            self._link.send({"kind": ALIVE})
