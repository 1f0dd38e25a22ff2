"""Build a socket from a `Stream`, in repair mode, behind the network lock.

The part that was sent is queued in repair mode, so the kernel takes it for sent. The unsent part
is queued with repair mode off, while the lock swallows what the kernel tries to send: it stays
unsent, and goes out with the first acknowledgement after the unlock instead of after a
retransmission timeout. Buffers are forced large for that moment, or the write would block.
"""

from __future__ import annotations

import errno
import functools
import socket

from agent.kernel import uapi
from agent.tcp import opening, options, rtt
from agent.tcp.closing import close_again
from agent.tcp.fins import acked_fin
from agent.tcp.queues import write
from agent.tcp.segment import Inject
from agent.tcp.stream import Stream, StreamError
from agent.tcp.verify import verify
from agent.tcp.window import window

_TCP = socket.IPPROTO_TCP
_SOL = socket.SOL_SOCKET
_MASK = 0xFFFFFFFF
_HEADROOM = 1 << 20
_FITS_ALWAYS = 1 << 10  # bytes, in the buffers of a fresh socket
_MIN_MSS, _MAX_MSS = 88, 32767  # as TCP_MAXSEG takes it
_FIRST_PORT, _LAST_PORT = 1, 1 << 16  # of a peer that is none
_MAX_UNSCALED = 0xFFFF  # bytes of a window without RFC 7323
_MAX_FORCE = (1 << 30) - 1  # the kernel doubles the value into an int


def new_socket(family: int) -> socket.socket:
    """A socket to restore onto, in repair mode; it may be made before the stream is known.

    Raises `OSError`.
    """
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _make_ready(sock)
    except OSError:
        sock.close()
        raise
    return sock


def _make_ready(sock: socket.socket) -> None:
    # Before repair mode: inside it, bind beside a listener fails with EADDRINUSE.
    sock.setsockopt(_SOL, uapi.SO_REUSEADDR, 1)
    # The address is not ours yet; this also lets IPv4 route from it (FLOWI_FLAG_ANYSRC).
    sock.setsockopt(socket.IPPROTO_IP, uapi.IP_TRANSPARENT, 1)  # IPV6_TRANSPARENT is the same
    sock.setsockopt(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_ON)
    sock.setsockopt(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_RECV_QUEUE)  # `restore` begins with it


def restore(
    stream: Stream,
    sock: socket.socket | None = None,
    *,
    boundary: bool = True,
    ready: bool = True,
) -> socket.socket:
    """Restore `stream` onto `sock` (by default of `new_socket`), leaving it in repair mode.

    The connection must be locked (see `agent.netlock`). With `boundary` false the unsent part is
    restored as if it had been sent: for measuring only. With `ready` false `sock` is one that
    `new_socket` has not made. Raises `StreamError`, also where the kernel's view of the socket
    differs from `stream` in the end; then `sock` is for the caller to `abandon`.
    """
    made = None
    try:
        if sock is None:
            sock = made = new_socket(stream.family)
        elif not ready:
            _make_ready(sock)
        options.restore(sock, stream.options)
        if stream.state == uapi.TCP_LISTEN:
            _restore_listener(stream, sock)
        elif stream.state == uapi.TCP_SYN_SENT:
            _restore_opening(stream, sock)
        elif stream.state == uapi.TCP_CLOSE:
            _restore_closed(stream, sock)
        else:
            _restore_connection(stream, sock, boundary)
    except OSError as error:
        if made is not None:
            abandon(made)
        raise StreamError(stream=stream.name, detail=f"restoring it failed: {error}") from error
    return sock


def _socket_address(stream: Stream, host: str, port: int) -> tuple[str | int, ...]:
    if stream.family == socket.AF_INET6:
        # The device of a link-local address is among the options, by its name; its index may be
        # another one here.
        return (host, port, 0, 0 if options.device(stream.options) else stream.scope)
    return (host, port)


def _restore_listener(stream: Stream, sock: socket.socket) -> None:
    sock.setsockopt(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_OFF_NO_WP)
    sock.setsockopt(_SOL, uapi.SO_REUSEADDR, 1)  # which that has cleared
    _restore_buffers(stream, sock)
    if stream.mss:
        sock.setsockopt(_TCP, uapi.TCP_MAXSEG, stream.mss)
    opening.bind(sock, _socket_address(stream, *stream.local))
    sock.listen(stream.backlog)
    if stream.nonblocking:  # as it is made, it is not
        sock.setblocking(False)
    sock.setsockopt(_SOL, uapi.SO_REUSEADDR, 0)  # as leaving repair mode does for a connection
    options.restore_late(sock, stream.options)


def _restore_opening(stream: Stream, sock: socket.socket) -> None:
    sock.setsockopt(_SOL, uapi.SO_RCVBUFFORCE, _MAX_FORCE)
    local, remote = (_socket_address(stream, *end) for end in (stream.local, stream.remote))
    opening.restore(sock, stream, local, remote)
    _restore_buffers(stream, sock)
    if stream.nonblocking:  # as it is made, it is not
        sock.setblocking(False)


def _restore_closed(stream: Stream, sock: socket.socket) -> None:
    """Connected to the loopback address for as long as it takes, until `settle` ends it."""
    room = 4 * len(stream.receive_queue) + _HEADROOM
    sock.setsockopt(_SOL, uapi.SO_RCVBUFFORCE, min(room, _MAX_FORCE))
    sock.setsockopt(_TCP, uapi.TCP_QUEUE_SEQ, _signed(stream.receive_seq))
    opening.bind(sock, _socket_address(stream, *stream.local))
    if options.device(stream.options):  # which does not reach that address; `settle` sets it again
        sock.setsockopt(_SOL, uapi.SO_BINDTODEVICE, b"")
    host = opening.loopback(stream)
    for port in range(_FIRST_PORT, _LAST_PORT):
        try:
            sock.connect((host, port))
            break
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL or port == _LAST_PORT - 1:
                raise
    if stream.receive_queue:
        write(sock, stream.receive_queue)
    _restore_buffers(stream, sock)
    if stream.nonblocking:  # as it is made, it is not
        sock.setblocking(False)


def _restore_connection(stream: Stream, sock: socket.socket, boundary: bool) -> None:
    set_option = sock.setsockopt
    sent = stream.send_queue
    unsent = b""
    if boundary and stream.unsent:
        sent, unsent = sent[: -stream.unsent], sent[-stream.unsent :]
    early = rtt.early(stream)
    received = stream.receive_queue
    if stream.urgent:
        received = received[: stream.urgent - 1]  # what is behind it has to follow it
    queued = max(len(stream.send_queue), len(stream.receive_queue))
    if queued > _FITS_ALWAYS:
        room = 4 * queued + _HEADROOM
        set_option(_SOL, uapi.SO_SNDBUFFORCE, min(max(room, stream.send_buffer // 2), _MAX_FORCE))
        set_option(
            _SOL, uapi.SO_RCVBUFFORCE, min(max(room, stream.receive_buffer // 2), _MAX_FORCE)
        )

    set_option(_TCP, uapi.TCP_QUEUE_SEQ, _signed(stream.receive_seq))
    set_option(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_SEND_QUEUE)
    first = (stream.send_seq - acked_fin(stream.state) - early) & _MASK
    set_option(_TCP, uapi.TCP_QUEUE_SEQ, _signed(first))
    opening.bind(sock, _socket_address(stream, *stream.local))
    # The size of our segments is found in connect() and nowhere later; without a hint from the
    # peer's MSS option it is the least that every host takes (tcp_connect_init()).
    set_option(_TCP, uapi.TCP_MAXSEG, min(max(stream.mss, _MIN_MSS), _MAX_MSS))
    if not stream.negotiated & uapi.TCPI_OPT_WSCALE:
        # Else connect() chooses a scale for our windows, which the peer knows nothing of.
        set_option(_TCP, uapi.TCP_WINDOW_CLAMP, _MAX_UNSCALED)
    sock.connect(_socket_address(stream, *stream.remote))
    set_option(_TCP, uapi.TCP_MAXSEG, 0)
    negotiated = stream.negotiated
    scales = stream.send_scale | stream.receive_scale << 16
    set_option(_TCP, uapi.TCP_REPAIR_OPTIONS, _repair_options(stream.mss, negotiated, scales))
    if negotiated & uapi.TCPI_OPT_TIMESTAMPS:
        set_option(_TCP, uapi.TCP_TIMESTAMP, _signed(stream.clock))

    if received:
        set_option(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_RECV_QUEUE)
        write(sock, received)
        set_option(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_SEND_QUEUE)
    windows = uapi.REPAIR_WINDOW.pack(*window(stream, len(received)))
    set_option(_TCP, uapi.TCP_REPAIR_WINDOW, windows)
    if sent:
        if early:
            write(sock, b"\0")  # a segment of its own
        write(sock, sent)
    if unsent:
        low_water = sock.getsockopt(_TCP, uapi.TCP_NOTSENT_LOWAT)
        set_option(_TCP, uapi.TCP_NOTSENT_LOWAT, -1)  # no bound: it holds back writes, too
        set_option(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_OFF_NO_WP)
        write(sock, unsent)
        set_option(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_ON)
        set_option(_TCP, uapi.TCP_REPAIR_QUEUE, uapi.TCP_SEND_QUEUE)
        set_option(_TCP, uapi.TCP_NOTSENT_LOWAT, low_water)
        # What the lock swallowed has moved the window we believe we advertised.
        set_option(_TCP, uapi.TCP_REPAIR_WINDOW, windows)
    # Raising the clamp also raises rcv_ssthresh to the restored window (tcp_set_window_clamp).
    set_option(_TCP, uapi.TCP_WINDOW_CLAMP, stream.window_clamp)
    _restore_buffers(stream, sock)
    if stream.read_shut:
        sock.shutdown(socket.SHUT_RD)
    if stream.nonblocking:  # as it is made, it is not
        sock.setblocking(False)
    verify(sock, stream, windows, len(received), len(unsent))


@functools.lru_cache(maxsize=1024)
def _repair_options(mss: int, negotiated: int, scales: int) -> bytes:
    pack = uapi.REPAIR_OPT.pack
    rows = [pack(uapi.TCPOPT_MSS, mss)]
    if negotiated & uapi.TCPI_OPT_WSCALE:
        rows.append(pack(uapi.TCPOPT_WINDOW, scales))
    if negotiated & uapi.TCPI_OPT_SACK:
        rows.append(pack(uapi.TCPOPT_SACK_PERM, 0))
    if negotiated & uapi.TCPI_OPT_TIMESTAMPS:
        rows.append(pack(uapi.TCPOPT_TIMESTAMP, 0))
    return b"".join(rows)


def _restore_buffers(stream: Stream, sock: socket.socket) -> None:
    set_option = sock.setsockopt
    set_option(_SOL, uapi.SO_SNDBUFFORCE, stream.send_buffer // 2)
    set_option(_SOL, uapi.SO_RCVBUFFORCE, stream.receive_buffer // 2)
    set_option(_SOL, uapi.SO_BUF_LOCK, stream.buffer_locks)


def _signed(number: int) -> int:
    """The int that has the same 32 bits, as setsockopt takes it."""
    return number - (1 << 32) if number & 0x80000000 else number


def release(
    sock: socket.socket, stream: Stream, inject: Inject | None = None, *, quiet: bool = False
) -> None:
    """Leave repair mode: the kernel sends a window probe, and the peer is awake again.

    `quiet`: without a probe, which `probe_again` sends then.

    Only after the unlock, with the local address in place. A connection that was restored into a
    closing state (see `agent.tcp.closing`) needs `inject` to get back there; one that was dumped
    and not restored is still in it. Raises `OSError`.
    """
    off = uapi.TCP_REPAIR_OFF_NO_WP if quiet else uapi.TCP_REPAIR_OFF
    sock.setsockopt(_TCP, uapi.TCP_REPAIR, off)
    if inject is not None:
        close_again(sock, stream, inject)
    options.restore_late(sock, stream.options)


def leave_repair(sock: socket.socket) -> None:
    """Out of repair mode, where a socket is in it; its options are not known. Raises `OSError`."""
    if sock.getsockopt(_TCP, uapi.TCP_REPAIR):
        sock.setsockopt(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_OFF)


def probe_again(sock: socket.socket, stream: Stream) -> None:
    """Send one more window probe, as the first may have been lost. Raises `OSError`.

    The process runs by now, so repair mode must not be entered: its calls would fail. To leave it
    once more sends a probe all the same (do_tcp_setsockopt(), since 3.5).
    """
    sock.setsockopt(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_OFF)
    options.restore_cleared(sock, stream.options)


def abandon(sock: socket.socket) -> None:
    """Close a connection without a word to the peer (a close in repair mode is silent)."""
    try:
        if sock.getsockopt(_SOL, uapi.SO_ACCEPTCONN) == 0:
            sock.setsockopt(_TCP, uapi.TCP_REPAIR, uapi.TCP_REPAIR_ON)
    except OSError:
        pass  # it was never connected: its close says nothing, either
    sock.close()
