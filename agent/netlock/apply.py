"""Run nft scripts in this process, through libnftables (libnftables(3)).

No process is started, because that would cost milliseconds in the blackout. The library is loaded
at first use: importing this module never fails. One script is one transaction of the kernel.
It is not made for several threads, so that one waits for another.
"""

from __future__ import annotations

import ctypes
import socket
import threading
from typing import Any

from agent.errors import EXIT_REFUSED, AgentError
from agent.netlock import render

_LIBRARY = "libnftables.so.1"
_NETLINK_NETFILTER = 12  # include/uapi/linux/netlink.h
_DETAIL_LIMIT = 400  # characters of nft's message; it repeats the line it is about
_PROBE_ID = "probe"


class LockError(AgentError):
    code = "lock"
    template = "nftables refused the lock: {detail}"
    hint_template = "Run `nft list ruleset` as root on that host; nftables has to work there."


class NftablesMissing(AgentError):
    code = "nftables-missing"
    template = "nftables cannot be used: {detail}"
    hint_template = "Install nftables (libnftables1) there, with a kernel that has nf_tables."
    exit_status = EXIT_REFUSED


class Nftables:
    """A context of libnftables. It works on the network namespace it was made in."""

    def __init__(self) -> None:
        """Raises `NftablesMissing`."""
        library = _load()
        try:
            # The library ends the whole process where it cannot have this socket.
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER).close()
        except OSError as error:
            raise NftablesMissing(detail=f"no netfilter netlink: {error.strerror}") from None
        context = library.nft_ctx_new(0)
        if not context:
            raise NftablesMissing(detail="libnftables gave no context")
        self._library = library
        self._context: int | None = context
        if library.nft_ctx_buffer_output(context) or library.nft_ctx_buffer_error(context):
            self.close()
            raise NftablesMissing(detail="libnftables has no memory for its buffers")

    def run(self, script: str) -> str:
        """Run one script as one transaction; returns what it printed. Raises `LockError`."""
        library, context = self._library, self._context
        with _turn:
            failed = library.nft_run_cmd_from_buffer(context, script.encode())
            # Reading a buffer is also what empties it.
            output = (library.nft_ctx_get_output_buffer(context) or b"").decode(errors="replace")
            message = (library.nft_ctx_get_error_buffer(context) or b"").decode(errors="replace")
        if failed:
            raise LockError(detail=_summary(message))
        return output

    def available(self) -> str | None:
        """Why a lock cannot be made here, or None. Tried for real, with no effect that lasts."""
        # One transaction that makes all a lock needs and removes it again: nobody ever sees it.
        script = render.lock(_PROBE_ID, [], [], stage="full")
        try:
            self.run(f"{script}delete table inet {render.table_name(_PROBE_ID)}\n")
        except LockError as error:
            return str(error.fields["detail"])
        return None

    def tables(self) -> list[str]:
        """The names of all our tables, of any migration. Raises `LockError`."""
        words = [line.split() for line in self.run("list tables inet\n").splitlines()]
        return [
            line[2]
            for line in words
            if len(line) == 3 and line[0] == "table" and line[2].startswith(render.TABLE_PREFIX)
        ]

    def close(self) -> None:
        """Free the context. Idempotent."""
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None


_turn = threading.RLock()
_shared: Nftables | None = None


def _default() -> Nftables:
    global _shared
    with _turn:
        if _shared is None:
            _shared = Nftables()
        return _shared


def warm() -> None:
    """Load the library and make the context, so that `run` is fast. Raises `NftablesMissing`."""
    _default().available()


def run(script: str) -> str:
    """Run one script as one transaction. Raises `LockError`, `NftablesMissing`."""
    return _default().run(script)


def available() -> str | None:
    """Why a lock cannot be made on this host, or None."""
    try:
        return _default().available()
    except NftablesMissing as error:
        return error.message


def tables() -> list[str]:
    """The names of all our tables on this host. Raises `LockError`, `NftablesMissing`."""
    return _default().tables()


def _load() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise NftablesMissing(detail=str(error)) from None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.restype = None
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


def _summary(message: str) -> str:
    """The first line of nft's message, without the line of the script and its underlining."""
    for line in message.splitlines():
        if line.strip():
            return line.strip()[:_DETAIL_LIMIT]
    return "no message"
