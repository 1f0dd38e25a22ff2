"""The link between the two agents: records over a one-time SSH connection, or relayed.

The destination listens once, on an ephemeral port, for one client whose key it was told, with a
host key the source was told; both keys live only in memory. Where the source cannot reach that
port, the same bytes travel as events through the orchestrator.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import asyncssh

from agent.errors import AgentError, PeerLost, ProtocolError, shown
from agent.fault import CORRUPT, CUT, HANG, damage, seconds_of
from agent.image.records import Record, RecordDecoder, RecordEncoder

USER = "streamferry"
MAX_STRANGERS = 16  # connections at once of which none is admitted yet
LOGIN_TIMEOUT = 10.0  # seconds for each of them
CONNECT_TIMEOUT = 3.0  # seconds, for each address of the destination
_WINDOW = 64 << 20
_PACKET = 1 << 20
_CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"]
_HIGH_WATER = 8 << 20  # bytes of records received and not yet taken
_RELAY_CHUNK = 1 << 20
_JOIN = 64 << 10
_MAX_ADDRESSES = 256  # of the destination
_MOST_RELAYED = 256 << 20  # bytes of records, as the orchestrator cannot be held up
_FLUSH = 2.0  # seconds for what was sent to leave before the connection is closed


def where(told: object) -> tuple[list[str], int, str]:
    """Addresses, port and host key of the destination's end. Raises `ProtocolError`."""
    match told:
        case {"addresses": [*addresses], "port": int(port), "host_key": str(host_key)} if (
            0 < port < 1 << 16 and all(isinstance(one, str) for one in addresses)
        ):
            return addresses[:_MAX_ADDRESSES], port, host_key
    raise ProtocolError(detail=f"the link's other end is {shown(told)}")


def _public_key(text: object) -> asyncssh.SSHKey:
    try:
        if isinstance(text, str):
            return asyncssh.import_public_key(text)
    except asyncssh.KeyImportError:
        pass
    raise ProtocolError(detail=f"{shown(text)} is no public key")


class Link:
    """Records in both directions, in order. A transport feeds it and carries what it sends."""

    def __init__(self, phase: Callable[[], str]) -> None:
        """`phase` names the phase that an error is to name, when the link breaks."""
        self._phase = phase
        self._encoder = RecordEncoder()
        self._decoder = RecordDecoder()
        self._records: deque[tuple[Record, int]] = deque()
        self._waiting = 0  # bytes of the records that wait
        self._unclaimed = 0  # bytes fed since the last record was complete
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._failure: AgentError | None = None  # nothing more can be received
        self._gone: AgentError | None = None  # nothing more can be sent
        self._write: Callable[[bytes], None] | None = None
        self._close: Callable[[], None] | None = None
        self._end_output: Callable[[], None] = self.close
        self._pause: Callable[[bool], None] | None = None
        self.opened = asyncio.Event()
        self.lost = asyncio.Event()  # nothing more will come than what is queued
        self.relayed = False
        self.faults: dict[str, str] = {}  # by kind of record
        self._spoilt: str | None = None
        self._deaf = False

    # --- for the two drivers

    def send(self, record: Record) -> None:
        """Queue a record. Raises `PeerLost` when the link is gone."""
        if self._gone is not None:
            raise self._gone
        if self.faults:
            self._inject(record["kind"])
        assert self._write is not None, "the link is not open"
        header, body = self._encoder.encode(record)
        if self._spoilt is not None:
            whole = len(body)
            header, body = damage(self._spoilt, header, body)
            self._spoilt = None
            if len(body) < whole:
                self._write(header + body)
                self._end_output()
                return
        try:
            # One write for what is small: each becomes a packet with its own MAC.
            if len(body) < _JOIN:
                self._write(header + body)
            else:
                self._write(header)
                self._write(body)
        except OSError as error:  # the channel is closed, or half of it
            self._gone = self._lost(str(error))
            raise self._gone from error

    def spoil(self, action: str) -> None:
        """Have the next record damaged, as `agent.fault` names it."""
        self._spoilt = action

    def _inject(self, kind: str) -> None:
        """Carry out the fault that is asked for when a record of this kind is sent."""
        action = self.faults.pop(kind, None)
        if action == CUT:
            self.close()
            assert self._gone is not None
            raise self._gone
        if action == HANG:
            self._deaf, self._write = True, lambda _data: None
        elif action == CORRUPT:
            self.spoil(action)
        elif action is not None:
            self._hold(seconds_of(action))

    def _hold(self, seconds: float) -> None:
        """Keep what is sent for a time."""
        kept: list[bytes] = []
        write = self._write
        assert write is not None
        self._write = kept.append

        def let_go() -> None:
            self._write = write
            with contextlib.suppress(OSError):
                for data in kept:
                    write(data)

        asyncio.get_running_loop().call_later(seconds, let_go)

    async def drain(self) -> None:
        """Wait until the transport takes more."""
        await self._writable.wait()
        if self._gone is not None:
            raise self._gone

    async def receive(self) -> Record:
        """The next record. Raises what broke the link, once all records before it are taken."""
        while not self._records:
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            await self._arrived.wait()
        record, size = self._records.popleft()
        self._waiting -= size
        if self._pause is not None and self._waiting < _HIGH_WATER // 2:
            self._pause(False)
        return record

    def close(self) -> None:
        """End the link; what was sent before still arrives."""
        self._failed(self._lost("closed"))
        self._gone = self._gone or self._failure
        if self._close is not None:
            self._close()

    def queued(self, kind: str) -> Record | None:
        """A record of this kind that has come and was not taken yet."""
        return next((record for record, _ in self._records if record["kind"] == kind), None)

    # --- for the transport

    def attach(
        self,
        write: Callable[[bytes], None],
        close: Callable[[], None],
        pause: Callable[[bool], None] | None = None,
        end_output: Callable[[], None] | None = None,
    ) -> None:
        self._write, self._close, self._pause = write, close, pause
        self._end_output = end_output or self.close
        self.opened.set()

    def feed(self, data: bytes) -> None:
        if self._failure is not None or self._deaf:
            return
        self._unclaimed += len(data)
        try:
            for record in self._decoder.feed(data):
                self._records.append((record, self._unclaimed))
                self._waiting += self._unclaimed
                self._unclaimed = 0
                self._arrived.set()
        except AgentError as error:
            self._failed(error)
        if self._pause is None:
            if self._waiting > _MOST_RELAYED:
                self._failed(ProtocolError(detail="more is relayed than can be taken"))
        elif self._waiting > _HIGH_WATER:
            self._pause(True)

    def input_ended(self) -> None:
        """Nothing more will come."""
        try:
            self._decoder.end()
        except AgentError as truncated:
            self._failed(truncated)
        self._failed(self._lost("the other agent ended it"))

    def ended(self, error: BaseException | None) -> None:
        """The transport is gone."""
        try:
            self._decoder.end()
        except AgentError as truncated:
            self._failed(truncated)
        lost = self._lost(str(error) if error else "the other agent has gone")
        self._gone = self._gone or lost
        self._failed(lost)

    def writable(self, yes: bool) -> None:
        if yes:
            self._writable.set()
        else:
            self._writable.clear()

    def _lost(self, detail: str) -> PeerLost:
        return PeerLost(phase=self._phase(), detail=detail)

    def _failed(self, error: AgentError) -> None:
        if self._failure is None:
            self._failure = error
        self.lost.set()
        self._arrived.set()
        self._writable.set()


class _Session(asyncssh.SSHServerSession[bytes], asyncssh.SSHClientSession[bytes]):
    """One SSH session channel that carries a link; the same on both ends."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._channel: Any = None
        self.over = False
        self.on_end: Callable[[], None] = lambda: None

    def connection_made(self, channel: Any) -> None:
        self._channel = channel

    def shell_requested(self) -> bool:
        return True

    def session_started(self) -> None:
        channel = self._channel
        self._link.attach(channel.write, channel.close, self._pause, channel.write_eof)

    def _pause(self, pause: bool) -> None:
        with contextlib.suppress(OSError):
            if pause:
                self._channel.pause_reading()
            else:
                self._channel.resume_reading()

    def data_received(self, data: bytes, datatype: object) -> None:
        self._link.feed(data)

    def eof_received(self) -> bool:
        self._link.input_ended()
        return True  # we may still have to say why it failed

    def pause_writing(self) -> None:
        self._link.writable(False)

    def resume_writing(self) -> None:
        self._link.writable(True)

    def connection_lost(self, error: BaseException | None) -> None:
        self._link.ended(error)
        self.over = True
        self.on_end()


class _OneTimeServer(asyncssh.SSHServer):
    """Admits one client, with the one key."""

    def __init__(self, owner: LinkServer) -> None:
        self._owner = owner
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._owner.accepted(conn)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._connection is not None:
            self._owner.gone(self._connection)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == USER and key.public_data == self._owner.client_key.public_data

    def session_requested(self) -> Any:
        return self._owner.admit(self._connection)


class LinkServer:
    """The destination's end, until the source has connected."""

    def __init__(self, link: Link, client_key: str) -> None:
        """`client_key` is the source's public key, in OpenSSH form. Raises `ProtocolError`."""
        self.client_key = _public_key(client_key)
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._link = link
        self._taken = False
        self._strangers: dict[asyncssh.SSHServerConnection, None] = {}  # the oldest first
        self._listener: asyncssh.SSHAcceptor | None = None

    async def listen(self, host: str) -> dict[str, Any]:
        """Listen on `host`, an address of this machine; returns what the source must know."""
        self._listener = await asyncssh.listen(
            host,
            0,
            server_factory=lambda: _OneTimeServer(self),
            server_host_keys=[self._host_key],
            encryption_algs=_CIPHERS,
            compression_algs=["none"],
            encoding=None,
            window=_WINDOW,
            max_pktsize=_PACKET,
            login_timeout=LOGIN_TIMEOUT,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            gss_auth=False,
            gss_kex=False,
            allow_pty=False,
            backlog=MAX_STRANGERS,
            keepalive_interval=5,
            line_editor=False,
            agent_forwarding=False,
            x11_forwarding=False,
        )
        return {
            "addresses": [host],
            "port": self._listener.get_port(),
            "host_key": self._host_key.export_public_key().decode(),
        }

    def accepted(self, connection: asyncssh.SSHServerConnection) -> None:
        """Somebody has connected; of too many who do, the first makes room."""
        self._strangers[connection] = None
        if self._listener is None:  # it was on its way when the port was closed
            connection.abort()
        elif len(self._strangers) > MAX_STRANGERS:
            next(iter(self._strangers)).abort()

    def gone(self, connection: asyncssh.SSHServerConnection) -> None:
        self._strangers.pop(connection, None)

    def admit(self, connection: asyncssh.SSHServerConnection | None) -> Any:
        if self._taken or connection is None:
            return False
        self._taken = True
        self.gone(connection)
        self.stop_listening()
        return _Session(self._link)

    def stop_listening(self) -> None:
        """Close the port, and every connection but the one that was admitted. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in list(self._strangers):
            connection.abort()


class LinkClient:
    """The source's end."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        self._connection: asyncssh.SSHClientConnection | None = None
        self._session: _Session | None = None

    @property
    def public_key(self) -> str:
        return self._key.export_public_key().decode()

    async def connect(self, addresses: list[str], port: int, host_key: str) -> bool:
        """Connect to the first address that answers; false when none can be reached.

        Raises `ProtocolError` for what is no key.
        """
        trusted = _public_key(host_key)
        for address in addresses:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await self._connect(address, port, trusted)
                return True
            except (OSError, ValueError, TimeoutError, asyncssh.Error):  # ValueError: no address
                continue
        return False

    async def _connect(self, address: str, port: int, trusted: asyncssh.SSHKey) -> None:
        connection = await asyncssh.connect(
            address,
            port,
            config=None,
            username=USER,
            client_keys=[self._key],
            known_hosts=([trusted], [], []),
            server_host_key_algs=["ssh-ed25519"],
            agent_path=None,
            encryption_algs=_CIPHERS,
            compression_algs=["none"],
            keepalive_interval=5,
        )
        session = _Session(self._link)
        try:
            await connection.create_session(
                lambda: session, encoding=None, window=_WINDOW, max_pktsize=_PACKET
            )
        except BaseException:
            connection.close()
            raise
        self._connection, self._session = connection, session

    def close(self) -> None:
        """End the link, and the connection once what was sent has left (or `_FLUSH` is over)."""
        self._link.close()
        connection, self._connection = self._connection, None
        if connection is None or self._session is None:
            return
        if self._session.over:
            connection.close()
        else:
            self._session.on_end = connection.close
            asyncio.get_running_loop().call_later(_FLUSH, connection.close)


class Relay:
    """Carries a link as events of the control channel."""

    def __init__(self, link: Link, send_event: Callable[[str, dict[str, Any]], None]) -> None:
        self._link = link
        self._send_event = send_event

    def open(self) -> None:
        self._link.relayed = True
        self._link.attach(self._write, lambda: self._send_event("relay", {"data": b""}))

    def _write(self, data: bytes) -> None:
        for start in range(0, len(data), _RELAY_CHUNK):
            self._send_event("relay", {"data": data[start : start + _RELAY_CHUNK]})

    def event(self, data: dict[str, Any]) -> None:
        """A "relay" event has come from the orchestrator. Raises `ProtocolError`."""
        piece = data.get("data")
        if not isinstance(piece, bytes):
            raise ProtocolError(detail=f"{shown(piece)} was to be relayed")
        if not self._link.opened.is_set():
            self.open()
        if not self._link.relayed:
            raise ProtocolError(detail="something was relayed beside the link")
        if piece:
            self._link.feed(piece)
        else:
            self._link.ended(None)


def reached_address() -> str | None:
    """The address at which this host's sshd was reached (SSH_CONNECTION, ssh(1))."""
    fields = os.environ.get("SSH_CONNECTION", "").split()
    return fields[2] if len(fields) == 4 else None
