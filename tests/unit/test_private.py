"""Directories of images and journals that another user has a hand in are not used."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import private
from agent.custody import _Doorway
from agent.image.store import ImagesDirectory, ImageStore
from agent.journal import Journal, JournalError, JournalExposed, open_directory, read
from agent.protocol import SOURCE

ID = "20261125-120000-abcdef"
OTHER = 65534


def journals(directory: Path) -> None:
    os.close(open_directory(directory))


def journal(directory: Path) -> None:
    Journal.create(ID, SOURCE, directory).remove()


def doorway(directory: Path) -> None:
    with _Doorway(directory):
        pass


def images(directory: Path) -> None:
    ImageStore(str(directory), ID, 1000).remove()


EACH: list[tuple[Callable[[Path], None], type[Exception]]] = [
    (journals, JournalError), (journal, JournalError), (doorway, JournalError),
    (images, ImagesDirectory),
]  # fmt: skip


@pytest.fixture(params=EACH, ids=lambda param: param[0].__name__)
def use(request: pytest.FixtureRequest) -> tuple[Callable[[Path], None], type[Exception]]:
    pair: tuple[Callable[[Path], None], type[Exception]] = request.param
    return pair


def refused(
    use: tuple[Callable[[Path], None], type[Exception]], directory: Path, words: str
) -> None:
    function, error = use
    with pytest.raises(error, match=words):
        function(directory)
    assert not list(directory.rglob(f"{ID}*"))


Use = tuple[Callable[[Path], None], type[Exception]]


def test_one_that_is_made_is_hidden_with_those_above_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private.make(tmp_path / "lib" / "streamferry" / "journal")
    finally:
        os.umask(before)
    for name in ("lib", "lib/streamferry", "lib/streamferry/journal"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700
    private.make(tmp_path / "lib" / "streamferry" / "journal")


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722, 0o1777])
def test_one_that_others_may_write_to(tmp_path: Path, use: Use, mode: int) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(mode)
    refused(use, tmp_path / "x", "chmod 700")


def test_one_that_others_may_look_into(tmp_path: Path) -> None:
    """That is no matter for images, which have a hidden directory of their own inside it."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(0o755)
    for use in EACH[:-1]:
        refused(use, tmp_path / "x", "chmod 700")
    ImageStore(str(tmp_path / "x"), ID, 1000).remove()


@pytest.mark.parametrize("inside", [False, True])
def test_a_link_in_its_place(tmp_path: Path, use: Use, inside: bool) -> None:
    (tmp_path / "target").mkdir(0o700)
    if inside:
        (tmp_path / "target" / "kept").write_bytes(b"x")
    (tmp_path / "x").symlink_to(tmp_path / "target")
    refused(use, tmp_path / "x", "not a directory")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["kept"] * inside


def test_a_link_to_nowhere_and_a_file(tmp_path: Path, use: Use) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"x")
    function, error = use
    for name in ("x", "file"):
        with pytest.raises(error):
            function(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "file").read_bytes() == b"x"


def test_one_in_a_directory_where_others_could_exchange_it(tmp_path: Path, use: Use) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    refused(use, tmp_path / "open" / "x", "others may write to")
    (tmp_path / "open").chmod(0o1777)  # as /tmp: only the owner may rename what is in it
    use[0](tmp_path / "open" / "x")


def test_a_journal_that_others_may_have_written(tmp_path: Path) -> None:
    made = Journal.create(ID, SOURCE, tmp_path / "x")
    made.close()
    made.path.chmod(0o666)
    for look in (
        lambda: Journal.open(ID, SOURCE, tmp_path / "x"),
        lambda: read(made.path, ID, SOURCE),
    ):
        with pytest.raises(JournalExposed, match="mode 666") as refused:
            look()
        assert f"chmod 600 {made.path}" in refused.value.hint
        assert "Do not remove it" in refused.value.hint


needs_root = pytest.mark.root


@needs_root
def test_one_of_another_user(tmp_path: Path, use: Use) -> None:
    (tmp_path / "x").mkdir(0o700)
    os.chown(tmp_path / "x", OTHER, OTHER)
    refused(use, tmp_path / "x", f"belongs to user {OTHER}")


@needs_root
def test_one_below_another_users(tmp_path: Path, use: Use) -> None:
    (tmp_path / "theirs" / "x").mkdir(0o700, parents=True)
    os.chown(tmp_path / "theirs", OTHER, OTHER)
    refused(use, tmp_path / "theirs" / "x", f"belongs to user {OTHER}")
    refused(use, tmp_path / "theirs" / "new", f"belongs to user {OTHER}")
    assert not (tmp_path / "theirs" / "new").exists()


@needs_root
def test_one_behind_another_users_link(tmp_path: Path, use: Use) -> None:
    """What it points to is all right now, and may be something else later."""
    (tmp_path / "ours").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "ours")
    os.chown(tmp_path / "link", OTHER, OTHER, follow_symlinks=False)
    refused(use, tmp_path / "link" / "x", f"belongs to user {OTHER}")


@needs_root
def test_a_journal_of_another_user(tmp_path: Path) -> None:
    made = Journal.create(ID, SOURCE, tmp_path / "x")
    made.close()
    os.chown(made.path, OTHER, OTHER)
    with pytest.raises(JournalError, match=f"belongs to user {OTHER}"):
        Journal.open(ID, SOURCE, tmp_path / "x")
