"""Take the sockets that are ours out of CRIU's images, where they are many.

CRIU looks each inherited descriptor up from the first on, and so does the kernel, in the queue in
which CRIU keeps them: quadratic. So CRIU restores the tree without them, and they are put into
their places afterwards (`agent.tcp.placing`). For that their descriptors go from fdinfo-N.img,
they themselves and what epoll sets watch of them from files.img. The protobuf library of some
hosts is plain Python, so the few fields that are needed are found by pattern. No I/O.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Mapping

from agent.criu import images
from agent.image.records import ImageError

Row = tuple[int, int, bool]  # descriptor, inode, close-on-exec

_FDINFO = re.compile(r"fdinfo-(\d+)\.img")
_IDS = re.compile(r"ids-(\d+)\.img")
_VARINT = rb"([\x80-\xff]*[\x00-\x7f])"
# images/fdinfo.proto: file_entry with isk (sk-inet.proto: id, ino), fdinfo_entry; the tags of
# numbers 1 to 4, which CRIU writes in their order
_SOCKET = re.compile(rb"\x08\x04\x10%b\x22%b\x08%b\x10%b" % ((_VARINT,) * 4), re.S)
_DESCRIPTOR = re.compile(rb"\x08%b\x10%b\x18%b\x20%b" % ((_VARINT,) * 4), re.S)
_EPOLL = re.compile(rb"\x08\x07\x10%b\x4a%b" % ((_VARINT,) * 2), re.S)  # 9: epfd
_EPOLL_FIELD = re.compile(rb"(?:[\x08\x10]%b|([\x1a\x22])%b)" % ((_VARINT,) * 2), re.S)
# eventpoll.proto, eventpoll_tfd_entry: id, tfd, events, data, dev, inode
_WATCHED = re.compile(rb"\x08%b\x10%b\x18%b\x20%b(?:\x28%b)?\x30%b" % ((_VARINT,) * 6), re.S)
_TFD_TAG = b"\x22"
_SIZE = struct.Struct("=I")
_CLOEXEC = 1  # FD_CLOEXEC, fcntl.h


def number(varint: bytes) -> int:
    """The number in a varint of protobuf."""
    if len(varint) == 1:
        return varint[0]
    value = 0
    for byte in reversed(varint):
        value = value << 7 | byte & 0x7F
    return value


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def remove(content: dict[str, bytes], inodes: Collection[int]) -> dict[int, list[Row]]:
    """Change images (content by name); the descriptors that are gone, by PID.

    Of processes that share their descriptors only one is told. Raises `ImageError`.
    """
    keys = {varint(inode): inode for inode in inodes}  # so that none has to be decoded
    content["files.img"], ids = _files(content["files.img"], keys)
    if len(ids) != len(inodes):
        raise ImageError(detail=f"{len(inodes) - len(ids)} sockets are not in CRIU's images")
    rows: dict[int, list[Row]] = {}
    for name, data in content.items():
        if match := _FDINFO.fullmatch(name):
            content[name], rows[int(match[1])] = _descriptors(data, ids)
    owners: dict[int, int] = {}
    for name, data in content.items():
        if match := _IDS.fullmatch(name):
            table = images.files_id(data)
            owners[table] = min(int(match[1]), owners.get(table, int(match[1])))
    if lost := [table for table, found in rows.items() if found and table not in owners]:
        raise ImageError(detail=f"fdinfo-{lost[0]}.img belongs to no process")
    return {owners[table]: found for table, found in rows.items() if found}


def _files(image: bytes, keys: Mapping[bytes, int]) -> tuple[bytes, dict[bytes, int]]:
    out = [images.FILES_HEAD]
    ids: dict[bytes, int] = {}
    for entry in images.entries(image, images.FILES_HEAD, "files.img"):
        if (match := _SOCKET.match(entry)) and match[4] in keys:
            ids[match[1]] = keys[match[4]]
            continue
        if match := _EPOLL.match(entry):
            entry = _unwatched(entry, match, keys)
        out += (_SIZE.pack(len(entry)), entry)
    return b"".join(out), ids


def _descriptors(image: bytes, ids: Mapping[bytes, int]) -> tuple[bytes, list[Row]]:
    out, rows = [images.FDINFO_HEAD], []
    for entry in images.entries(image, images.FDINFO_HEAD, "fdinfo.img"):
        if (match := _DESCRIPTOR.match(entry)) and match[1] in ids:
            rows.append((number(match[4]), ids[match[1]], bool(number(match[2]) & _CLOEXEC)))
        else:
            out += (_SIZE.pack(len(entry)), entry)
    return b"".join(out), rows


def _unwatched(entry: bytes, match: re.Match[bytes], gone: Collection[bytes]) -> bytes:
    """An epoll set's entry without the files of the inodes that are `gone`."""
    body, kept = entry[match.end() :], []
    at = 0
    while at < len(body):
        field = _EPOLL_FIELD.match(body, at)
        if field is None:
            raise ImageError(detail="files.img has an epoll set of another form")
        end = field.end() + (number(field[3]) if field[2] else 0)
        watched = _WATCHED.match(body, field.end(), end) if field[2] == _TFD_TAG else None
        if watched is None or watched[6] not in gone:
            kept.append(body[at:end])
        at = end
    rest = b"".join(kept)
    return b"\x08\x07\x10%b\x4a%b%b" % (match[1], varint(len(rest)), rest)
