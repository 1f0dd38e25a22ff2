"""Which way the memory goes where nobody has asked for one, and how that is told."""

from __future__ import annotations

from typing import Any

import pytest

from agent.plan import POST_COPY, PRE_COPY, STOP
from orchestrator.memory import AUTO, Choice, choose, told
from tests.support.facts import Case

MANY, FEW = 64 << 20, (64 << 20) - 1
ROUND = {"bytes": 300 << 20, "ms": 4000.0}


@pytest.mark.parametrize(("memory", "userfault", "tmpfs", "mode", "words"), [
    (FEW, None, True, STOP, "64 MiB are sent soonest at once"),
    (MANY, "Operation not permitted", True, STOP, "dst cannot take it ahead: Operation not per"),
    (MANY, None, False, STOP, "no tmpfs"),
    (MANY, None, True, PRE_COPY, "64 MiB go ahead"),
])  # fmt: skip
def test_the_choice_has_a_reason(
    memory: int, userfault: str | None, tmpfs: bool, mode: str, words: str
) -> None:
    facts: Any = Case().destination
    facts.update(userfault=userfault)
    facts["images"]["tmpfs"] = tmpfs
    choice = choose(AUTO, memory, "dst", facts)
    assert choice.mode == mode and words in choice.why
    assert choice.may_follow is (mode == PRE_COPY)


@pytest.mark.parametrize("asked", [STOP, PRE_COPY, POST_COPY])
def test_what_was_asked_for_stays(asked: str) -> None:
    facts: Any = Case().destination
    assert choose(asked, MANY, "dst", facts) == Choice(asked, "asked for", may_follow=False)


def test_what_became_of_it_is_told_with_the_round_that_decided() -> None:
    choice = Choice(PRE_COPY, "64 MiB go ahead while it runs", may_follow=True)
    kept = {"mode": PRE_COPY, "why": choice.why}
    assert told(choice, PRE_COPY, [ROUND, ROUND], 2.0) == kept
    assert told(choice, STOP, [], 2.0)["mode"] == STOP
    changed = told(choice, POST_COPY, [ROUND, ROUND], 2.0)
    assert changed["mode"] == POST_COPY
    assert "300 MiB" in changed["why"] and "2 s" in changed["why"]
