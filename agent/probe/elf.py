"""The build-id of an ELF file, read from its notes (elf(5)); a few small reads, all bounded."""

from __future__ import annotations

import os
import struct

_MAGIC = b"\x7fELF"
_PT_NOTE = 4
_NT_GNU_BUILD_ID = 3
_GNU = b"GNU\0"
_MAX_SEGMENTS = 256
_MAX_NOTES = 64 << 10
_MAX_ID = 64

# class -> format and place of e_phoff, place of e_phentsize and e_phnum
_HEADER = {1: ("I", 28, 42), 2: ("Q", 32, 54)}


def is_elf(start: bytes) -> bool:
    return start[:4] == _MAGIC and len(start) >= 52 and start[4] in _HEADER


def build_id(fd: int) -> bytes | None:
    """The GNU build-id of the open file: b"" for an ELF file without one, None for others.

    Raises `OSError`.
    """
    header = os.pread(fd, 64, 0)
    if not is_elf(header):
        return None
    order = "<" if header[5] == 1 else ">"
    word, offset_at, size_at = _HEADER[header[4]]
    try:
        (table,) = struct.unpack_from(order + word, header, offset_at)
        entry, count = struct.unpack_from(order + "HH", header, size_at)
        count = min(count, _MAX_SEGMENTS)
        segments = os.pread(fd, entry * count, table)
        for index in range(count):
            kind, offset, length, align = _segment(segments, index * entry, header[4], order)
            if kind == _PT_NOTE:
                notes = os.pread(fd, min(length, _MAX_NOTES), offset)
                found = _find(notes, order, 8 if align == 8 else 4)
                if found:
                    return found
    except (struct.error, OverflowError):
        pass  # cut short, or nonsense: no build-id
    return b""


def _segment(table: bytes, at: int, elf_class: int, order: str) -> tuple[int, int, int, int]:
    """(p_type, p_offset, p_filesz, p_align)"""
    if elf_class == 2:
        kind, _, offset, _, _, length, _, align = struct.unpack_from(order + "IIQQQQQQ", table, at)
    else:
        kind, offset, _, _, length, _, _, align = struct.unpack_from(order + "8I", table, at)
    return kind, offset, length, align


def _find(notes: bytes, order: str, align: int) -> bytes:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from(order + "III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        start = at + -(-(12 + name_size) // align) * align
        if kind == _NT_GNU_BUILD_ID and name == _GNU and 0 < size <= _MAX_ID:
            return notes[start : start + size]
        at = start + -(-size // align) * align
    return b""
