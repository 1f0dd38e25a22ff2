"""Rewrite CRIU's images so that its restore takes our sockets as inherited descriptors.

Each socket we carry is an INETSK entry of files.img; it becomes a regular file named
"/tcp-INODE", which CRIU looks up among the descriptors it inherits (--inherit-fd) before it would
open a path. No I/O: bytes in, bytes out.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import Any

from agent.criu import messages
from agent.image.records import ImageError
from agent.memory.layout import PAGE
from agent.memory.ranges import Range

# criu/include/magic.h
_IMG_COMMON_MAGIC = 0x54564319
_FILES_MAGIC = 0x56303138
_FDINFO_MAGIC = 0x56213732
_PAGEMAP_MAGIC = 0x56084025
_IDS_MAGIC = 0x54432030
_MM_MAGIC = 0x57492820
# criu/include/vma.h, vma_entry_can_be_lazy(): MAP_PRIVATE and MAP_ANONYMOUS, but not MAP_LOCKED and
# MAP_HUGETLB; VMA_AREA_VSYSCALL, _VDSO, _VVAR
_WANTED, _UNWANTED, _SPECIAL = 0x02 | 0x20, 0x2000 | 0x40000, 1 << 2 | 1 << 3 | 1 << 12
_MAGICS = struct.Struct("=II")
_SIZE = struct.Struct("=I")


FILES_HEAD = _MAGICS.pack(_IMG_COMMON_MAGIC, _FILES_MAGIC)
FDINFO_HEAD = _MAGICS.pack(_IMG_COMMON_MAGIC, _FDINFO_MAGIC)


def inherit_key(inode: int) -> str:
    """The name under which a socket is handed to CRIU."""
    return f"tcp-{inode}"


def entries(image: bytes, head: bytes, name: str) -> Iterator[bytes]:
    """The messages in an image that begins with `head`. Raises `ImageError`."""
    if image[: _MAGICS.size] != head:
        raise ImageError(detail=f"{name} does not begin as CRIU's {name} does")
    offset = _MAGICS.size
    while offset < len(image):
        if offset + _SIZE.size > len(image):
            raise ImageError(detail=f"{name} ends inside an entry")
        (size,) = _SIZE.unpack_from(image, offset)
        offset += _SIZE.size
        if offset + size > len(image):
            raise ImageError(detail=f"{name} ends inside an entry")
        yield image[offset : offset + size]
        offset += size


def page_ranges(image: bytes) -> tuple[list[Range], list[Range]]:
    """Start and end of what a pagemap-N.img leaves to be restored lazily, and of what CRIU restores
    itself, both by address.

    Raises `ImageError`.
    """
    lazy: list[Range] = []
    restored: list[Range] = []
    rows = entries(image, _MAGICS.pack(_IMG_COMMON_MAGIC, _PAGEMAP_MAGIC), "pagemap.img")
    next(rows, None)  # the head
    for data in rows:
        entry = messages.PagemapEntry.FromString(data)
        pages = entry.nr_pages or entry.compat_nr_pages
        found = lazy if entry.flags & messages.PE_LAZY else restored
        found.append((entry.vaddr, entry.vaddr + pages * PAGE))
    return sorted(lazy), sorted(restored)


def lazy_mappings(image: bytes) -> list[Range]:
    """The mappings of an mm-PID.img in which CRIU leaves pages to whoever serves them, by address.

    Raises `ImageError`.
    """
    return sorted((one.start, one.end) for one in _mappings(image) if _is_lazy(one))


def _is_lazy(one: Any) -> bool:
    flags = one.flags
    return flags & _WANTED == _WANTED and not flags & _UNWANTED and not one.status & _SPECIAL


def _mappings(image: bytes) -> list[Any]:
    """The mappings of a process, of an mm-PID.img. Raises `ImageError`."""
    for data in entries(image, _MAGICS.pack(_IMG_COMMON_MAGIC, _MM_MAGIC), "mm.img"):
        return list(messages.Mm.FromString(data).vmas)
    raise ImageError(detail="mm.img is empty")


def files_id(image: bytes) -> int:
    """Which fdinfo-N.img has the descriptors of the process of an ids-PID.img.

    Raises `ImageError`.
    """
    for data in entries(image, _MAGICS.pack(_IMG_COMMON_MAGIC, _IDS_MAGIC), "ids.img"):
        return int(messages.Ids.FromString(data).files_id)
    raise ImageError(detail="ids.img is empty")


def rewrite_files(image: bytes, inodes: Collection[int]) -> tuple[bytes, set[int], set[int]]:
    """files.img with the sockets of `inodes` as inherited files.

    Returns the image, the file ids that were changed and the inodes that were found.
    """
    out = [FILES_HEAD]
    ids: set[int] = set()
    found: set[int] = set()
    for entry in entries(image, FILES_HEAD, "files.img"):
        file = messages.File.FromString(entry)
        if file.type == messages.FD_INETSK and file.isk.ino in inodes:
            socket = file.isk
            ids.add(file.id)
            found.add(socket.ino)
            inherited = messages.File(type=messages.FD_REG, id=file.id)
            inherited.reg.id = file.id
            inherited.reg.flags = socket.flags
            inherited.reg.pos = 0
            inherited.reg.fown = socket.fown
            inherited.reg.name = "/" + inherit_key(socket.ino)
            entry = inherited.SerializeToString()
        out += (_SIZE.pack(len(entry)), entry)
    return b"".join(out), ids, found


def rewrite_fdinfo(image: bytes, ids: Collection[int]) -> bytes:
    """fdinfo-N.img with the descriptors of the changed files as regular ones."""
    out = [FDINFO_HEAD]
    for entry in entries(image, FDINFO_HEAD, "fdinfo.img"):
        info = messages.FdInfo.FromString(entry)
        if info.id in ids:
            info.type = messages.FD_REG
            entry = info.SerializeToString()
        out += (_SIZE.pack(len(entry)), entry)
    return b"".join(out)
