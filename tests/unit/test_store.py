"""The directory of images: only for its owner, only plain names, only so many bytes, then gone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.image import store as module
from agent.image.records import ImageError, ImageTooLarge
from agent.image.store import ImagesDirectory, ImagesFull, ImageStore

NAME = "20261123-134501-7f3a9c"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    made = ImageStore(str(tmp_path / "streamferry"), NAME, 1000)
    yield made
    made.remove()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_pieces_become_files(store: ImageStore) -> None:
    for name, data in (("pages-1.img", b"one"), ("core-7.img", b""), ("pages-1.img", b"two")):
        store.write(name, data)
    store.finish()
    assert {path.name: path.read_bytes() for path in store.path.iterdir()} == {
        "pages-1.img": b"onetwo",
        "core-7.img": b"",
    }


def test_nobody_else_may_read_them_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = ImageStore(str(tmp_path / "streamferry"), NAME, 10)
        store.write("core-1.img", b"x")
    finally:
        os.umask(before)
    assert mode(store.path.parent) == mode(store.path) == 0o700
    assert mode(store.path / "core-1.img") == 0o600
    store.remove()


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".img",
        "/etc/x.img",
        "../x.img",
        "a/b.img",
        "..",
        "core-1.txt",
        "core-1.img/",
        "core-1.img\n",
        "core\0.img",
        "größe.img",
        "a" * 101 + ".img",
        "pages 1.img",
    ],
    ids=repr,
)
def test_a_name_that_is_no_image_is_refused(store: ImageStore, name: str) -> None:
    with pytest.raises(ImageError):
        store.write(name, b"x")
    assert list(store.path.iterdir()) == []
    store.write("core-1.img", b"still works")


def test_not_through_a_link_nor_into_a_file_that_is_there(store: ImageStore) -> None:
    elsewhere = store.path.parent / "elsewhere"
    elsewhere.write_bytes(b"untouched")
    (store.path / "link.img").symlink_to(elsewhere)
    (store.path / "there.img").write_bytes(b"")
    for name in ("link.img", "there.img"):
        with pytest.raises(ImagesDirectory):
            store.write(name, b"x")
    assert elsewhere.read_bytes() == b"untouched"
    elsewhere.unlink()


def test_too_many_bytes_are_refused(store: ImageStore) -> None:
    store.write("a.img", bytes(600))
    store.write("b.img", bytes(400))
    with pytest.raises(ImageTooLarge) as raised:
        store.write("b.img", b"x")
    assert raised.value.fields == {"length": 1001, "limit": 1000}


def test_too_many_files_are_refused(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_FILES", 2)
    store.write("a.img", b"")
    store.write("b.img", b"")
    store.write("a.img", b"x")
    with pytest.raises(ImageError):
        store.write("c.img", b"")


def full(*_: Any) -> int:
    raise OSError(28, "No space left on device")


def broken(*_: Any) -> int:
    raise OSError(5, "Input/output error")


def test_no_room_has_its_own_error(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ImagesFull, match=NAME):
        store.write("a.img", b"x")
    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(ImagesDirectory, match="Input/output error"):
        store.write("a.img", b"x")


def test_a_write_in_parts_is_completed(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    store.write("a.img", bytes(range(100)))
    assert (store.path / "a.img").read_bytes() == bytes(range(100))


def test_when_removed_nothing_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    store = ImageStore(str(tmp_path / "streamferry"), NAME, 10)
    store.write("a.img", b"x")
    (store.path / "deep").mkdir()
    store.remove()
    store.remove()
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_parent_stays_where_another_migration_uses_it(tmp_path: Path) -> None:
    one = ImageStore(str(tmp_path / "streamferry"), "one", 10)
    two = ImageStore(str(tmp_path / "streamferry"), "two", 10)
    one.remove()
    two.write("a.img", b"x")
    two.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_there_already_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "mine").write_bytes(b"x")
    with pytest.raises(ImagesDirectory, match="File exists"):
        ImageStore(str(tmp_path), NAME, 10)
    assert (tmp_path / NAME / "mine").exists()


def test_a_parent_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for parent in (tmp_path / "file", tmp_path / "no" / "such"):
        with pytest.raises(ImagesDirectory, match="--images-dir|cannot be used"):
            ImageStore(str(parent), NAME, 10)
