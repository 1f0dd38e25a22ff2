"""The lab's fixtures, and its marker."""

from __future__ import annotations

import pytest

from tests.support.lab_fixtures import lab, lab_of_the_session, redis, three

__all__ = ["lab", "lab_of_the_session", "redis", "three"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lab/" in str(item.path):
            item.add_marker(pytest.mark.lab)
