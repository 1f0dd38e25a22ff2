"""Have another process make a system call: what only works on the caller's own memory.

The main thread is stopped by ptrace(2) for the time of a call, some tens of microseconds, with all
signals blocked; registers and mask are as before when it goes on, and a call that it was in is
restarted by the kernel as after any stop. No byte of the process is changed: the instruction is
one of its vDSO's. Numbers are from include/uapi/linux/ptrace.h and arch/x86/include/uapi/asm.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
from collections.abc import Iterator

from agent.kernel import proc

_GETREGSET, _SETREGSET = 0x4204, 0x4205
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_CONT, _SINGLESTEP, _DETACH = 7, 9, 17
_EVENT_STOP = 128
_SUSPEND_SECCOMP = 1 << 21  # PTRACE_O_SUSPEND_SECCOMP
_NT_PRSTATUS = 1
_WALL = 0x40000000  # __WALL
_ALL_SIGNALS = (1 << 64) - 1

# struct user_regs_struct of x86-64, in eights of a byte
_REGISTERS = struct.Struct("=27Q")
_R10, _R9, _R8, _RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP = 7, 8, 9, 10, 12, 13, 14, 15, 16
_ARGUMENTS = (_RDI, _RSI, _RDX, _R10, _R8, _R9)
_SYSCALL = b"\x0f\x05"  # the instruction
_MOST_STOPS = 100  # signals that come first

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class CannotInject(OSError):
    """The process cannot be had to make calls; nothing of it has changed."""


def _ptrace(request: int, pid: int, address: int = 0, data: object = None) -> int:
    result = int(_libc.ptrace(request, pid, address, data))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace: {os.strerror(code)}")
    return result


class Calls:
    """The calls of one process while it is held; see `held`."""

    def __init__(self, pid: int, instruction: int) -> None:
        self._pid = pid
        self._instruction = instruction

    def call(self, number: int, *arguments: int) -> int:
        """The result of one system call. Raises `OSError` with its error."""
        before = self._registers()
        after = list(before)
        after[_RAX], after[_ORIG_RAX], after[_RIP] = number, _ALL_SIGNALS, self._instruction
        for place, value in zip(_ARGUMENTS, arguments, strict=False):
            after[place] = value & _ALL_SIGNALS
        self._set(after)
        try:
            _ptrace(_SINGLESTEP, self._pid)
            stopped = _await_stop(self._pid)
            result = ctypes.c_long(self._registers()[_RAX]).value
            if stopped != signal.SIGTRAP:
                raise CannotInject(errno.EINTR, f"signal {stopped} came first")
        finally:
            self._set(before)
        if -4096 < result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def _registers(self) -> list[int]:
        buffer = ctypes.create_string_buffer(_REGISTERS.size)
        vector = _Vector(ctypes.addressof(buffer), _REGISTERS.size)
        _ptrace(_GETREGSET, self._pid, _NT_PRSTATUS, ctypes.addressof(vector))
        return list(_REGISTERS.unpack(buffer.raw))

    def _set(self, registers: list[int]) -> None:
        buffer = ctypes.create_string_buffer(_REGISTERS.pack(*registers), _REGISTERS.size)
        vector = _Vector(ctypes.addressof(buffer), _REGISTERS.size)
        _ptrace(_SETREGSET, self._pid, _NT_PRSTATUS, ctypes.addressof(vector))


def _await_stop(pid: int) -> int:
    """The signal with which it has stopped. Raises `CannotInject` where it ended."""
    _, status = os.waitpid(pid, _WALL)
    if not os.WIFSTOPPED(status):
        raise CannotInject(errno.ESRCH, "the process has ended")
    return os.WSTOPSIG(status) if status >> 16 != _EVENT_STOP else 0


@contextlib.contextmanager
def held(pid: int, *, stopped: bool = False) -> Iterator[Calls]:
    """Hold a process, to have it make calls. Raises `CannotInject`.

    It is running, or `stopped` by a signal, and then so again afterwards; nobody else traces it.
    """
    if platform.machine() != "x86_64":
        raise CannotInject(errno.ENOSYS, f"not known how on {platform.machine()}")
    try:
        instruction = _instruction(pid)
        filtered = proc.status(pid).get("Seccomp", "0") != "0"
        _ptrace(_SEIZE, pid, 0, _SUSPEND_SECCOMP if filtered else 0)
    except OSError as error:
        raise CannotInject(error.errno, error.strerror) from None
    try:
        if not stopped:  # else it shows itself
            _ptrace(_INTERRUPT, pid)
        _until_stopped(pid)
        mask = ctypes.c_uint64()
        size = ctypes.sizeof(mask)
        _ptrace(_GETSIGMASK, pid, size, ctypes.addressof(mask))
        every = ctypes.c_uint64(_ALL_SIGNALS)
        _ptrace(_SETSIGMASK, pid, size, ctypes.addressof(every))
        try:
            yield Calls(pid, instruction)
        finally:
            _ptrace(_SETSIGMASK, pid, size, ctypes.addressof(mask))
    finally:
        with contextlib.suppress(OSError):  # it has ended
            _ptrace(_DETACH, pid)


@contextlib.contextmanager
def still(pid: int) -> Iterator[None]:
    """Hold every thread of a process, so that its mappings stay as they are.

    By ptrace(2), which its parent does not see; calls that wait are restarted as after any stop.
    Raises `OSError` where somebody else traces it, or it has ended.
    """
    known: set[int] = set()
    seized: list[int] = []
    try:
        while fresh := [tid for tid in proc.threads(pid) if tid not in known]:
            known.update(fresh)
            before = len(seized)
            for tid in fresh:
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    _ptrace(_SEIZE, tid)
                    seized.append(tid)
                    _ptrace(_INTERRUPT, tid)
            for tid in seized[before:]:
                with contextlib.suppress(CannotInject):  # it has ended
                    _until_stopped(tid)
        yield
    finally:
        for tid in seized:
            with contextlib.suppress(OSError):  # it has ended
                _ptrace(_DETACH, tid)


def _until_stopped(tid: int) -> None:
    for _ in range(_MOST_STOPS):
        number = _await_stop(tid)
        if number == 0:
            return
        _ptrace(_CONT, tid, 0, number)  # a signal that was on its way: it is to have it
    raise CannotInject(errno.EBUSY, "it gets signals all the time")


def _instruction(pid: int) -> int:
    """Where in its vDSO the instruction is. Raises `OSError`."""
    for one in proc.maps(pid):
        if one.path == "[vdso]":
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                code = os.pread(memory.fileno(), one.end - one.start, one.start)
            at = code.find(_SYSCALL)
            if at >= 0:
                return one.start + at
    raise CannotInject(errno.ENOEXEC, "its vDSO has no system call")
