"""rsync's command lines, version and errors."""

from __future__ import annotations

import pytest

from agent.sync.errors import SyncFailed, SyncFull
from agent.sync.rsync import Pass, client, failure, server, version_problem

_DEBIAN = """rsync  version 3.2.7  protocol version 31
Capabilities:
    64-bit files, 64-bit inums, socketpairs, symlinks, hardlinks, ACLs,
    xattrs, optional secluded-args, iconv
"""


@pytest.mark.parametrize("one", list(Pass))
def test_both_ends_are_told_the_same(one: Pass) -> None:
    ours, theirs = client("shell", one, ["/but"]), server(one)
    assert set(one.options) <= set(ours) and set(one.options) <= set(theirs)
    assert ours[-3:] == ["--", "/", "streamferry:/"] and theirs[-3:] == ["--", ".", "/"]
    letters = theirs[2].partition("e.")[0]
    assert ("r" in letters) == ("-r" in ours) == (one == Pass.FIRST)
    assert ("I" in letters) == ("-I" in ours) == (one != Pass.FIRST)
    assert all(letter in letters for letter in "lHogtpAXRS")
    assert "--exclude=/but" in ours
    assert "--delete" not in " ".join([*ours, *theirs])


def test_a_pattern_is_of_one_path() -> None:
    told = client("shell", Pass.FIRST, ["/srv/a\\b", "/srv/a*b\\[c]?"])
    assert "--exclude=/srv/a\\b" in told and "--exclude=/srv/a\\*b\\\\\\[c]\\?" in told


def test_what_is_named_to_it_has_room() -> None:
    told = client("shell", Pass.FIRST, (f"/srv/{'x' * 1000}/{number}" for number in range(1000)))
    assert 100_000 < sum(map(len, told)) < 300_000


def test_what_goes_in_the_blackout_is_not_waited_for_on_the_disk() -> None:
    assert ["--fsync" in one.options for one in (Pass.FIRST, Pass.AGAIN, Pass.LAST)] == [
        True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (_DEBIAN, None),
        (_DEBIAN.replace("3.2.7", "v3.4.1"), None),
        (_DEBIAN.replace("3.2.7", "3.10.0"), None),
        (_DEBIAN.replace("3.2.7", "3.2.3"), "version 3.2.3 is older than 3.2.4"),
        (_DEBIAN.replace("ACLs", "no ACLs"), "it was built without ACLs"),
        (_DEBIAN.replace("xattrs", "no xattrs"), "it was built without xattrs"),
        ("openrsync: protocol version 29", "it does not say its version"),
        ("", "it does not say its version"),
    ],
)
def test_version(text: str, problem: str | None) -> None:
    assert version_problem(text) == problem


def test_no_room_is_an_error_of_its_own() -> None:
    for words in ("No space left on device (28)", "Disk quota exceeded (122)"):
        error = failure(11, ["rsync: [sender] noise", f"rsync: [receiver] write failed: {words}"])
        assert isinstance(error, SyncFull) and words in error.message


def test_an_error_says_what_rsync_said() -> None:
    said = [
        'rsync: [sender] send_files failed to open "/srv/x": Permission denied (13)',
        "rsync error: some files/attrs were not transferred (code 23) at main.c(1338)",
    ]
    error = failure(23, said)
    assert isinstance(error, SyncFailed)
    assert 'failed to open "/srv/x": Permission denied' in error.message
    assert "code 23" not in error.message
    assert "status 5" in failure(5, []).message
    assert "code 12" in failure(12, ["rsync error: error in protocol (code 12)"]).message
