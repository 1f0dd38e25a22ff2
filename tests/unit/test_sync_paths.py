"""What may be brought, and what of the destination is written for it."""

from __future__ import annotations

import pytest

from agent.sync import paths


@pytest.mark.parametrize(
    "path",
    ["/srv", "/srv/data", "/opt/app/bin", "/home/me/x y", "/var/lib/redis", "/usr/local/bin/app",
     "/run/app/state", "/etc/app", "/usr/lib/app", "/development", "/runs"],
)  # fmt: skip
def test_these_may(path: str) -> None:
    assert paths.why_not(path) is None


@pytest.mark.parametrize(
    "path",
    ["", "/", "srv", "./srv", "/srv/", "/srv/../etc", "/srv/./x", "//srv", "/srv//x", "/srv/x\0y",
     "/srv/a\nb", "/srv/\udcff", "/proc", "/proc/1/mem", "/sys/kernel", "/dev", "/dev/shm/x",
     "/run", "/run/systemd/x", "/run/streamferry", "/run/streamferry/x", "/etc", "/usr", "/usr/lib",
     "/var", "/var/lib", "/var/lib/streamferry/journal", "/tmp", "/bin", "/" + "x" * 4000],
)  # fmt: skip
def test_these_may_not(path: str) -> None:
    assert paths.why_not(path)


def test_a_file_needs_a_directory_that_may_be_written_to() -> None:
    assert paths.why_not_file("/srv/file") is None
    assert paths.why_not_file("/file")


def test_what_the_distribution_has_is_not_replaced_unasked() -> None:
    assert not paths.may_replace("/usr/lib/x86_64-linux-gnu/libc.so.6")
    assert not paths.may_replace("/etc/app.conf")
    assert paths.may_replace("/usr/local/lib/libapp.so")
    assert paths.may_replace("/srv/app/libapp.so")


def test_is_in() -> None:
    assert paths.is_in("/srv/data", ["/srv/data"]) and paths.is_in("/srv/data/x", ["/srv/data"])
    assert not paths.is_in("/srv/data2", ["/srv/data"]) and not paths.is_in("/srv", ["/srv/data"])
    assert paths.is_in("/anything", ["/"]) and not paths.is_in("/srv", [])


def test_where_is_written() -> None:
    dirs = ["/srv/a", "/srv/a/b", "/opt/x"]
    files = ["/srv/a/file", "/etc/app/conf", "/etc/app/other"]
    assert paths.writable(dirs, files) == ["/etc/app", "/opt/x", "/srv/a"]
    assert paths.outermost(["/a/b", "/a", "/ab"]) == ["/a", "/ab"]


def test_ancestors() -> None:
    assert paths.ancestors("/srv/a/b") == ["/srv", "/srv/a"]
    assert paths.ancestors("/srv") == []
