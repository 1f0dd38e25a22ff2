"""CRIU's images rewritten, on small ones made by hand, field by field."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.criu import messages
from agent.criu.images import inherit_key, page_ranges, rewrite_fdinfo, rewrite_files
from agent.image.records import ImageError

COMMON, FILES, FDINFO, PAGEMAP, MM = (
    0x54564319,
    0x56303138,
    0x56213732,
    0x56084025,
    0x57492820,
)  # criu/include/magic.h
REG, INETSK, UNIX = 1, 4, 5  # enum fd_types, images/fdinfo.proto


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """Protobuf, made by its specification and not by the library under test."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def image(magic: int, *entries: bytes) -> bytes:
    head = struct.pack("=II", COMMON, magic)
    return head + b"".join(struct.pack("=I", len(one)) + one for one in entries)


def entries(data: bytes) -> Iterator[bytes]:
    offset = 8
    while offset < len(data):
        (size,) = struct.unpack_from("=I", data, offset)
        yield data[offset + 4 : offset + 4 + size]
        offset += 4 + size


FOWN = message((1, 0), (2, 4711), (3, 1), (4, 29), (5, 0))


def socket(file_id: int, inode: int, flags: int = 0o4002) -> bytes:
    """A file entry with an inet_sk_entry as CRIU writes it, also with fields we do not know."""
    inet = message(
        (1, file_id), (2, inode), (3, 2), (4, 1), (5, 6), (6, 7), (7, 6379), (8, 40000),
        (9, flags), (10, 0), (13, FOWN), (17, b"eth0"),
    )  # fmt: skip
    return message((1, INETSK), (2, file_id), (4, inet))


def regular(file_id: int, name: bytes) -> bytes:
    reg = message((1, file_id), (2, 0), (3, 0), (5, FOWN), (6, name), (9, 0o100644))
    return message((1, REG), (2, file_id), (3, reg))


def descriptor(file_id: int, fd: int, kind: int) -> bytes:
    return message((1, file_id), (2, 1), (3, kind), (4, fd), (5, 77))  # field 5: not ours


def test_our_sockets_become_files_and_nothing_else_changes() -> None:
    others = [
        regular(1, b"/usr/bin/redis-server"),
        socket(3, 900),  # one that CRIU keeps, as a listener on UDP
        message((1, UNIX), (2, 4), (19, b"unknown to us")),
    ]
    before = image(FILES, others[0], socket(2, 800), others[1], socket(5, 801), others[2])
    after, ids, found = rewrite_files(before, {800, 801, 802})
    assert (ids, found) == ({2, 5}, {800, 801})
    assert after[:8] == before[:8]
    first, one, second, two, third = entries(after)
    assert [first, second, third] == others, "the others are the same to the byte"
    for entry, file_id, inode in ((one, 2, 800), (two, 5, 801)):
        name = f"/tcp-{inode}".encode()
        reg = message((1, file_id), (2, 0o4002), (3, 0), (5, FOWN), (6, name))
        assert entry == message((1, REG), (2, file_id), (3, reg))
        assert name == b"/" + inherit_key(inode).encode()


def test_a_socket_keeps_its_flags_and_owner() -> None:
    after, _, _ = rewrite_files(image(FILES, socket(2, 800, flags=0o2000002)), [800])
    file = messages.File.FromString(next(entries(after)))
    assert (file.type, file.id, file.reg.flags) == (REG, 2, 0o2000002)
    assert file.reg.fown == FOWN and not file.HasField("isk")


def test_without_sockets_of_ours_the_image_is_the_same() -> None:
    before = image(FILES, regular(1, b"/x"), socket(2, 800))
    assert rewrite_files(before, []) == (before, set(), set())
    assert rewrite_files(image(FILES), [800]) == (image(FILES), set(), set())


def test_the_descriptors_of_changed_files_are_regular_ones() -> None:
    before = image(
        FDINFO, descriptor(1, 0, REG), descriptor(2, 6, INETSK), descriptor(3, 7, INETSK),
        descriptor(2, 8, INETSK),
    )  # fmt: skip
    after = list(entries(rewrite_fdinfo(before, {2})))
    assert after[0] == descriptor(1, 0, REG) and after[2] == descriptor(3, 7, INETSK)
    for entry, fd in ((after[1], 6), (after[3], 8)):
        info = messages.FdInfo.FromString(entry)
        assert (info.id, info.flags, info.type, info.fd) == (2, 1, REG, fd)
        assert len(entry) == len(descriptor(2, fd, REG)), "what we do not know is kept"
    assert rewrite_fdinfo(before, []) == before


def test_an_image_of_another_kind_is_refused() -> None:
    with pytest.raises(ImageError, match="files.img"):
        rewrite_files(image(FDINFO), [])
    with pytest.raises(ImageError, match="fdinfo.img"):
        rewrite_fdinfo(image(FILES), [])
    with pytest.raises(ImageError):
        rewrite_files(b"\0\0\0\0" + image(FILES)[4:], [])


def test_an_image_cut_off_anywhere_is_refused() -> None:
    whole = image(FILES, regular(1, b"/x"), socket(2, 800))
    ends = {8, 8 + 4 + len(regular(1, b"/x")), len(whole)}  # between entries it is a shorter image
    for length in range(len(whole)):
        if length not in ends:
            with pytest.raises(ImageError):
                rewrite_files(whole[:length], [800])


def test_a_size_beyond_the_end_is_refused() -> None:
    with pytest.raises(ImageError, match="inside an entry"):
        rewrite_fdinfo(image(FDINFO) + b"\xff\xff\xff\xff" + bytes(50), [])


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 1 << 20), st.integers(1, (1 << 32) - 1)),
        max_size=8,
        unique_by=lambda one: one[1],
    )
)
def test_any_mix_of_files(files: list[tuple[bool, int, int]]) -> None:
    made = [socket(number, inode) if is_ours else regular(number, b"/f%d" % number)
            for is_ours, number, inode in files]  # fmt: skip
    inodes = {inode for is_ours, _, inode in files if is_ours}
    after, ids, found = rewrite_files(image(FILES, *made), inodes)
    assert found == inodes
    assert ids == {number for is_ours, number, _ in files if is_ours}
    kinds = [messages.File.FromString(one).type for one in entries(after)]
    assert kinds == [REG] * len(files)
    again = rewrite_files(after, inodes)
    assert again == (after, set(), set()), "what is rewritten once stays"


HEAD = message((1, 7))  # pages_id
PARENT, LAZY, PRESENT = 1, 2, 4  # flags, criu/include/pagemap.h


def test_what_is_left_to_be_restored_lazily() -> None:
    data = image(
        PAGEMAP, HEAD,
        message((1, 0x7000_0000_0000), (4, LAZY | PRESENT), (5, 3)),
        message((1, 0x5000), (4, PRESENT), (5, 9)),  # is in the images
        message((1, 0x2000), (2, 2), (4, LAZY)),  # counted as CRIU did before 4.0
        message((1, 0x9000), (2, 1), (3, 1), (4, PARENT), (5, 1)),
        message((1, 0x8000), (5, 1)),  # no flags at all
        message((1, 0x4000), (4, LAZY), (5, 1), (9, b"what is not known")),
    )  # fmt: skip
    assert page_ranges(data)[0] == [
        (0x2000, 0x4000), (0x4000, 0x5000), (0x7000_0000_0000, 0x7000_0000_3000),
    ]  # fmt: skip


def test_more_pages_than_a_number_of_32_bits_counts() -> None:
    data = image(PAGEMAP, HEAD, message((1, 0x1000), (4, LAZY), (5, 1 << 33)))
    assert page_ranges(data)[0] == [(0x1000, 0x1000 + (1 << 45))]


def test_no_memory_at_all() -> None:
    assert page_ranges(image(PAGEMAP))[0] == []
    assert page_ranges(image(PAGEMAP, HEAD))[0] == []


def test_another_image_is_no_pagemap() -> None:
    with pytest.raises(ImageError, match="pagemap.img"):
        page_ranges(image(FILES, HEAD))


def test_a_pagemap_cut_off_anywhere_is_refused() -> None:
    lazy = message((1, 0x1000), (4, LAZY), (5, 1))
    whole = image(PAGEMAP, HEAD, lazy)
    ends = {8, len(image(PAGEMAP, HEAD))}
    for length in set(range(len(whole))) - ends:
        with pytest.raises(ImageError):
            page_ranges(whole[:length])
