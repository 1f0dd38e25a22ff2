"""Sockets taken out of CRIU's images, on small ones made by hand, field by field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.criu import sockets
from agent.image.records import ImageError
from tests.unit.test_criu_images import (
    FDINFO,
    FILES,
    FOWN,
    INETSK,
    REG,
    descriptor,
    entries,
    image,
    message,
    regular,
    socket,
    varint,
)

EPOLL = 7  # enum fd_types
IDS = 0x54432030  # criu/include/magic.h


def ids(files_id: int) -> bytes:
    return image(IDS, message((1, 3), (2, files_id), (3, 5)))


def watched(epoll_id: int, fd: int, inode: int) -> bytes:
    data = (1 << 63) | fd
    return message((1, epoll_id), (2, fd), (3, 0x2019), (4, data), (5, 9), (6, inode), (7, 0))


def epoll(file_id: int, *rows: bytes) -> bytes:
    body = message((1, file_id), (2, 2), (3, FOWN), *((4, row) for row in rows))
    return message((1, EPOLL), (2, file_id), (9, body))


def content() -> dict[str, bytes]:
    """A process with two sockets of ours, one of them twice, and its child, which shares one."""
    rows = [watched(300, 6, 70_000), watched(300, 3, 9), watched(300, 400, 70_001)]
    return {
        "files.img": image(
            FILES, regular(1, b"/bin/server"), socket(200, 70_000), socket(201, 70_001),
            socket(202, 70_002), epoll(300, *rows), epoll(301, watched(301, 6, 70_002)),
        ),
        "fdinfo-2.img": image(
            FDINFO, descriptor(1, 0, REG), descriptor(200, 6, INETSK), descriptor(300, 7, EPOLL),
            message((1, 201), (2, 0), (3, INETSK), (4, 400)), descriptor(200, 500, INETSK),
        ),
        "fdinfo-3.img": image(FDINFO, descriptor(202, 6, INETSK), descriptor(201, 8, INETSK)),
        "fdinfo-4.img": image(FDINFO, descriptor(1, 0, REG)),
        "ids-4711.img": ids(2),
        "ids-4710.img": ids(2),  # shares its descriptors with the one before
        "ids-4712.img": ids(3),
        "ids-4713.img": ids(4),
        "core-4711.img": b"anything",
    }  # fmt: skip


def test_sockets_of_ours_are_gone_and_nothing_else() -> None:
    images = content()
    before = dict(images)
    gone = sockets.remove(images, [70_000, 70_001])
    assert gone == {
        4710: [(6, 70_000, True), (400, 70_001, False), (500, 70_000, True)],
        4712: [(8, 70_001, True)],
    }
    assert list(entries(images["files.img"])) == [
        regular(1, b"/bin/server"),
        socket(202, 70_002),
        epoll(300, watched(300, 3, 9)),
        epoll(301, watched(301, 6, 70_002)),  # the number is of another socket there
    ]
    assert list(entries(images["fdinfo-2.img"])) == [
        descriptor(1, 0, REG),
        descriptor(300, 7, EPOLL),
    ]
    assert list(entries(images["fdinfo-3.img"])) == [descriptor(202, 6, INETSK)]
    same = {"fdinfo-4.img", "ids-4711.img", "ids-4712.img", "core-4711.img"}
    assert all(images[name] == before[name] for name in same)


def test_without_sockets_of_ours_the_images_are_the_same() -> None:
    images = content()
    assert sockets.remove(images, []) == {}
    assert images == content()


def test_a_socket_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ImageError, match="1 sockets are not in CRIU's images"):
        sockets.remove(content(), [70_000, 5])


def test_descriptors_of_no_process_are_an_error() -> None:
    images = content()
    del images["ids-4712.img"]
    with pytest.raises(ImageError, match="fdinfo-3.img belongs to no process"):
        sockets.remove(images, [70_001])


def test_an_epoll_set_of_another_form_is_an_error() -> None:
    images = content()
    broken = message((1, EPOLL), (2, 300), (9, b"\x55\x55"))
    images["files.img"] = image(FILES, socket(200, 70_000), broken)
    with pytest.raises(ImageError, match="epoll set"):
        sockets.remove(images, [70_000])


@given(st.integers(min_value=0, max_value=(1 << 64) - 1))
def test_numbers_are_read_as_they_are_written(value: int) -> None:
    assert sockets.varint(value) == varint(value)
    assert sockets.number(varint(value)) == value
