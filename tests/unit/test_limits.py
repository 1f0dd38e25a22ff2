"""Limits of this process."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from agent.kernel import limits


@pytest.fixture
def open_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("open_files")
def test_the_limit_of_open_files_is_raised() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    assert limits.descriptors(os.getpid()) == 256
    assert limits.has_room(os.getpid(), 250)
    assert not limits.has_room(os.getpid(), 254)
    most = limits.raise_descriptors()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)
    assert most >= hard
    assert limits.descriptors(os.getpid()) == most
