"""The bounds of option values: what an image may ask the kernel for."""

from __future__ import annotations

import pytest

from agent.tcp.option_table import BY_NAME, TABLE, Option
from agent.tcp.options import valid
from tests.support.options import CASES

_BY_NAME = pytest.mark.parametrize("option", TABLE, ids=lambda one: one.name)


@_BY_NAME
def test_what_a_socket_can_have(option: Option) -> None:
    assert valid(option.level, option.number, CASES[option.name].value)


@_BY_NAME
def test_what_is_out_of_bounds(option: Option) -> None:
    if option.size:
        wrong = [0, "", None, bytes(option.size + 1), bytearray(1)]
        if option.lengths:
            wrong += [bytes(length - 1) for length in option.lengths]
    else:
        wrong = [option.least - 1, option.most + 1, b"\1\0\0\0", 0.5, True, None]
    for value in wrong:
        assert not valid(option.level, option.number, value), value


@_BY_NAME
def test_the_ends_of_the_bounds(option: Option) -> None:
    if option.size:
        values: list[object] = [bytes(length) for length in option.lengths or (option.size,)]
    else:
        values = [option.least, option.most]
    for value in values:
        assert valid(option.level, option.number, value)


def test_not_of_the_table() -> None:
    numbers = {(one.level, one.number) for one in TABLE}
    for level in (0, 1, 6, 41, 0xFC00):
        for number in range(200):
            if (level, number) not in numbers:
                assert not valid(level, number, 1)


def test_a_congestion_control_fits() -> None:
    assert BY_NAME["TCP_CONGESTION"].size == 16  # TCP_CA_NAME_MAX, include/net/tcp.h
