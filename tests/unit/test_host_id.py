"""Who a host is to a migration: made once, beside the journals, and lost with them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from agent import host_id
from agent.errors import ProtocolError


def test_it_is_made_once_and_stays(tmp_path: Path) -> None:
    assert host_id.own(tmp_path) == ""
    made = host_id.ensure(tmp_path)
    assert host_id.checked(made) == host_id.own(tmp_path) == host_id.ensure(tmp_path) == made
    assert os.listdir(tmp_path) == [host_id.FILE]
    assert (tmp_path / host_id.FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("at", ["write", "fsync"])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(host_id.os, at, full)
        with pytest.raises(OSError, match="No space left"):
            host_id.ensure(tmp_path)
    assert os.listdir(tmp_path) == []
    assert host_id.ensure(tmp_path)


def test_each_host_has_its_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert host_id.ensure(tmp_path / "a") != host_id.ensure(tmp_path / "b")


@pytest.mark.parametrize("text", [b"", b"x\n", b"\xff" * 32, b"0" * 31])
def test_a_file_that_holds_none_is_made_anew(tmp_path: Path, text: bytes) -> None:
    """A torn write of ours: nobody was told such an id."""
    (tmp_path / host_id.FILE).write_bytes(text)
    assert host_id.own(tmp_path) == ""
    assert host_id.ensure(tmp_path) == host_id.own(tmp_path) != ""


def test_what_others_may_write_is_not_believed(tmp_path: Path) -> None:
    host_id.ensure(tmp_path)
    (tmp_path / host_id.FILE).chmod(0o666)
    with pytest.raises(PermissionError):
        host_id.own(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / host_id.FILE).symlink_to("/etc/hostname")
    with pytest.raises(OSError):
        host_id.own(tmp_path)


@pytest.mark.parametrize("value", [None, 5, "", "0" * 31, "0" * 33, "../" + "0" * 29, "G" * 32])
def test_what_came_from_elsewhere_is_checked(value: object) -> None:
    with pytest.raises(ProtocolError):
        host_id.checked(value)
