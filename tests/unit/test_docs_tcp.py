"""The page of the TCP engine says what the tables say, and names tests that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent.tcp.option_stays import STAYS
from agent.tcp.option_table import (
    ANCILLARY,
    BY_NAME,
    BY_NUMBER,
    COUNTERS,
    READINGS,
    TABLE,
    level_of,
)

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tcp-engine.md"
_HEADERS = {
    "/usr/include/linux/tcp.h": "TCP",
    "/usr/include/asm-generic/socket.h": "SO",
    "/usr/include/linux/in.h": "IP",
    "/usr/include/linux/in6.h": "IPV6",
}
# Of the same prefix, and no options: sizes, values, what repair mode and netfilter have
_OTHERS = re.compile(
    r"TCP_(MSS_\w+|REPAIR_(ON|OFF\w*)|AO_(MAX|KEYF|CRYPTO)\w+|MD5SIG_\w{4,}|CM_INQ|RECEIVE_ZEROCOPY\w+|ULP_\w+)$|"
    r"IP_(PMTUDISC|MSFILTER_)\w+$|IPV6_(PMTUDISC|PRIORITY|FL|TLV|PREFER)_\w+$|IPV6_USE_MIN_MTU$"
)


def test_the_page_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs" / "make_tcp_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`(tests/\S+)::(\w+)`", PAGE.read_text()))
    assert len(named) > 10
    for path, name in named:
        text = (ROOT / path).read_text() if (ROOT / path).exists() else ""
        assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{path}::{name}"


def test_every_option_is_on_the_page() -> None:
    text = PAGE.read_text()
    for name in [*BY_NAME, *(one.name for one in STAYS)]:
        shown = "O_ASYNC" if name == "F_SETFL" else name
        assert re.search(rf"\b{shown}\b", text), name


def test_the_tables_agree_with_themselves() -> None:
    assert len(BY_NAME) == len(BY_NUMBER) == len(TABLE)
    both = {(one.level, one.number) for one in TABLE} & {
        (level_of(one.name), one.number) for one in STAYS if one.name not in READINGS
    }
    assert not both
    known = {*BY_NAME, *READINGS, *COUNTERS}
    assert ANCILLARY <= known
    for one in TABLE:
        assert set(one.seen_by) <= known, one.name
        assert one.least <= one.most


@pytest.mark.parametrize("path", _HEADERS)
def test_every_number_of_the_headers(path: str) -> None:
    """Each option that user space can name is moved, or said why not."""
    if not Path(path).exists():
        pytest.skip(f"no {path} (Debian: linux-libc-dev)")
    prefix = _HEADERS[path]
    wanted = dict(
        re.findall(rf"^#\s*define\s+({prefix}_\w+)\s+(\d+)\b", Path(path).read_text(), re.M)
    )
    ours = {(level_of(one.name), one.name): one.number for one in (*TABLE, *STAYS)}
    numbers = {(level, number): name for (level, name), number in ours.items()}
    checked = 0
    for name, number in wanted.items():
        if _OTHERS.match(name):
            continue
        plain = name.removesuffix("_OLD")
        assert numbers.get((level_of(name), int(number))) is not None, f"{name} = {number}"
        if (found := ours.get((level_of(name), plain))) is not None:
            assert found == int(number), name
            checked += 1
    assert checked > 20
