"""How the two agents come to a connection of their own: by an SSH login, once.

The destination listens once, on an ephemeral port, for one client whose key it was told, with a
host key the source was told; both keys live only in memory. In the session each end tells the other
the key with which it is going to seal its records. Then both leave SSH and go on over the same TCP
connection (`agent.carrier`): asyncssh would cost the link half of its throughput. So that neither
takes the one for the other, the source sends its key as its last word in SSH, the destination
answers with its own as its last word, and then the source speaks first.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import asyncssh

from agent.carrier import Carrier
from agent.errors import ProtocolError, shown
from agent.image.seal import KEY_SIZE, new_key
from agent.image.squeeze import zstd
from agent.link import Link

USER = "streamferry"
MAX_STRANGERS = 16  # connections at once of which none is admitted yet
LOGIN_TIMEOUT = 10.0  # seconds for each of them
CONNECT_TIMEOUT = 3.0  # seconds, for each address of the destination
_CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"]
_MAX_ADDRESSES = 256  # of the destination


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


class _Session(asyncssh.SSHServerSession[bytes], asyncssh.SSHClientSession[bytes]):
    """The one SSH session; the same on both ends."""

    def __init__(self, on_key: Callable[[_Session], None]) -> None:
        self._on_key = on_key
        self._channel: Any = None
        self.sending = new_key()
        self.receiving = b""
        self.over = asyncio.Event()  # the other's key is there, or will not come

    def connection_made(self, channel: Any) -> None:
        self._channel = channel

    def shell_requested(self) -> bool:
        return True

    def data_received(self, data: bytes, datatype: object) -> None:
        self.receiving += data
        if len(self.receiving) > KEY_SIZE:
            self._channel.get_extra_info("connection").abort()
        elif self.complete:
            self._on_key(self)
            self.over.set()

    def connection_lost(self, error: BaseException | None) -> None:
        self.over.set()

    @property
    def complete(self) -> bool:
        return len(self.receiving) == KEY_SIZE

    def say_key(self) -> None:
        self._channel.write(self.sending)

    def leave(self) -> socket.socket:
        """End SSH without a word; the connection below it."""
        connection = self._channel.get_extra_info("connection")
        below: socket.socket = connection.get_extra_info("socket").dup()
        connection.abort()
        return below


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
        self._taking: asyncio.Task[None] | None = None

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
            login_timeout=LOGIN_TIMEOUT,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            gss_auth=False,
            gss_kex=False,
            allow_pty=False,
            backlog=MAX_STRANGERS,
            line_editor=False,
            agent_forwarding=False,
            x11_forwarding=False,
        )
        return {
            "addresses": [host],
            "port": self._listener.get_port(),
            "host_key": self._host_key.export_public_key().decode(),
            "zstd": zstd is not None,
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
        return _Session(self._go_on)

    def _go_on(self, session: _Session) -> None:
        session.say_key()
        carrier = Carrier(self._link, session.sending, session.receiving, first=False)
        self._taking = asyncio.ensure_future(carrier.take(session.leave()))

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
        )
        try:
            session = _Session(lambda _: None)
            await connection.create_session(lambda: session, encoding=None)
            session.say_key()
            await session.over.wait()
            if not session.complete:
                raise ConnectionError("the other end has not told its key")
            carrier = Carrier(self._link, session.sending, session.receiving, first=True)
            await carrier.take(session.leave())
        finally:
            connection.abort()

    def close(self) -> None:
        """End the link; what was sent before still arrives."""
        self._link.close()
