"""The file that cordons a host, and the call that heeds it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agent import cordon
from agent.cordon import Cordoned, CordonFailed
from agent.errors import ProtocolError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path / "streamferry" / "cordon"


def test_put_and_lifted(file: Path) -> None:
    assert cordon.look(file) is None and not cordon.lift(file)
    made = cordon.put("kernel update", file)
    assert cordon.look(file) == made and made["reason"] == "kernel update" and made["since"] > 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(file.parent) == ["cordon"]
    with pytest.raises(Cordoned, match=r"web1 is cordoned \(kernel update\)"):
        cordon.check("web1", file)
    assert cordon.lift(file) and cordon.look(file) is None
    cordon.check("web1", file)


def test_the_first_cordon_holds(file: Path) -> None:
    first = cordon.put("first", file)
    assert cordon.put("second", file) == first == cordon.look(file)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"since": "x", "reason": ""}'])
def test_what_cannot_be_read_cordons_too(file: Path, content: bytes) -> None:
    cordon.put("", file)
    file.write_bytes(content)
    found = cordon.look(file)
    assert found is not None and "does not say why" in found["reason"]
    assert cordon.lift(file)


def test_a_link_is_not_followed(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(json.dumps({"since": 1, "reason": "x"}))
    file.parent.mkdir(mode=0o700)
    file.symlink_to(other)
    found = cordon.look(file)
    assert found is not None and "cannot be read" in found["reason"]
    assert cordon.lift(file) and other.exists()


@pytest.mark.parametrize("reason", [None, "x" * 201, "two\nlines", "\x1b[31m"])
def test_no_reasons(file: Path, reason: object) -> None:
    with pytest.raises(ProtocolError):
        cordon.put(reason, file)  # type: ignore[arg-type]
    assert cordon.look(file) is None


def test_a_directory_that_others_may_write_to(file: Path) -> None:
    file.parent.mkdir()
    file.parent.chmod(0o777)
    with pytest.raises(CordonFailed, match="others may"):
        cordon.put("", file)
