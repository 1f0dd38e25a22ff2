"""Maps of pages: what is near what comes later comes later, too, where there is much of it."""

from __future__ import annotations

import random

import pytest

from agent.memory.layout import PAGE
from agent.memory.pagemaps import LATER, NONE, SENT, near, runs, sent

BASE = 0x10_0000_0000
BLOCK = 16  # pages


def test_few_pieces_stay_as_they_are() -> None:
    pages = bytes([SENT, LATER, SENT, NONE]) * 60
    assert near(pages) == pages


@pytest.mark.parametrize("length", [5000, 5001, 4999, 16 * 300])
@pytest.mark.parametrize("seed", range(4))
def test_many_take_what_is_near_with_them(length: int, seed: int) -> None:
    numbers = random.Random(f"{length} {seed}")
    pages = bytearray(numbers.choices([NONE, SENT], [seed, 4], k=length))
    for number in range(0, length // 2, 20):  # nothing in the second half
        pages[number] = LATER
    expected = bytearray(pages)
    for begin in range(0, length, BLOCK):
        block = pages[begin : begin + BLOCK]
        if LATER in block:
            expected[begin : begin + BLOCK] = block.replace(b"%c" % SENT, b"%c" % LATER)
    assert near(bytes(pages)) == expected != pages


def test_what_comes_later_as_ranges() -> None:
    pages = bytes([LATER, SENT, LATER, LATER, NONE, LATER])
    expected = [(0, 1), (2, 4), (5, 6)]
    assert runs(BASE, pages) == [(BASE + a * PAGE, BASE + b * PAGE) for a, b in expected]
    assert sent(pages) == bytes([SENT, SENT, SENT, SENT, NONE, SENT])
    assert runs(BASE, sent(pages)) == []
