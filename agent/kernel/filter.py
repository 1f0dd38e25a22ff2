"""Classic BPF filters of sockets (Documentation/networking/filter.rst): read back and attached.

The kernel counts a filter in instructions, also where it is told the room for one. What is too
small for that is written beyond its end, so socket.getsockopt() must not be used for it.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct

from agent.kernel import uapi

_getsockopt = ctypes.CDLL(None, use_errno=True).getsockopt
_getsockopt.restype = ctypes.c_int
_getsockopt.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 2
# struct sock_fprog { unsigned short len; struct sock_filter *filter; }
_FPROG = struct.Struct("@HP")


def get_filter(fd: int) -> bytes:
    """The instructions of the attached filter, b"" for none.

    Raises `PermissionError` for an eBPF program, which has none, and `OSError`.
    """
    count = ctypes.c_uint(uapi.BPF_MAXINSNS)
    room = ctypes.create_string_buffer(uapi.BPF_MAXINSNS * uapi.SOCK_FILTER_SIZE)
    level, number = socket.SOL_SOCKET, uapi.SO_ATTACH_FILTER
    if _getsockopt(fd, level, number, ctypes.addressof(room), ctypes.addressof(count)):
        code = ctypes.get_errno()
        raise OSError(code, f"SO_GET_FILTER: {os.strerror(code)}")
    return room.raw[: count.value * uapi.SOCK_FILTER_SIZE]


def attach_filter(sock: socket.socket, instructions: bytes) -> None:
    """Raises `OSError`."""
    room = ctypes.create_string_buffer(instructions, len(instructions))
    count = len(instructions) // uapi.SOCK_FILTER_SIZE
    program = _FPROG.pack(count, ctypes.addressof(room))
    sock.setsockopt(socket.SOL_SOCKET, uapi.SO_ATTACH_FILTER, program)
