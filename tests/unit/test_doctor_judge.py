"""What of that which was seen is left over, and whether it is safe to clear."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from agent.leftovers.facts import CLEAR, HAND, KINDS, RECOVER
from agent.leftovers.judge import judge
from agent.leftovers.network import rules
from agent.leftovers.seen import ForeignLock, Leftover, Seen, SeenProcess, SeenTask
from agent.protocol import DESTINATION, SOURCE, TABLES, Found
from tests.support.leftovers import ID, OTHER, SERVICE, TABLE, seen

IMAGES = f"/run/streamferry/{ID}"
ADDRESS = (SERVICE, 24, "eth0")


def task(pid: int = 5000, **over: Any) -> SeenTask:
    fields: dict[str, Any] = {
        "comm": "redis", "stopped": True, "tracer": 0, "parasite": False,
        "connections": ("10.99.0.100:6379 - 10.99.0.3:4000",),
    }  # fmt: skip
    return SeenTask(pid, **{**fields, **over})


def everything(journal: Any = None, **over: Any) -> Seen:
    """All that one interrupted migration can leave."""
    fields: dict[str, Any] = {
        "journals": [journal] if journal else [],
        "tables": [TABLE, f"{TABLE}_time_wait"],
        "images": [IMAGES],
        "tasks": {5000: task()},
        "addresses": [ADDRESS],
    }
    return Seen(**{**fields, **over})


def found(one: Seen) -> dict[str, str]:
    """kind: verdict"""
    leftovers = judge(one).leftovers
    assert {one.kind for one in leftovers} <= set(KINDS)
    for leftover in leftovers:
        assert leftover.clearing and leftover.detail and leftover.name
        assert bool(leftover.command) == (leftover.verdict == HAND), leftover
    verdicts = {one.kind: one.verdict for one in leftovers}
    assert all(verdicts[one.kind] == one.verdict for one in leftovers)
    return verdicts


def only(one: Seen) -> Leftover:
    (leftover,) = judge(one).leftovers
    return leftover


FROZEN = ("process", "sockets", "table", "images")
STATES = [(role, state) for role, table in TABLES.items() for state in table.states]


@pytest.mark.parametrize(("role", "state"), STATES)
def test_every_state_of_both_tables(role: str, state: str) -> None:
    """What the protocol leaves to this host alone is cleared, and nothing else is."""
    verdicts = found(everything(seen(role, state)))
    rule = TABLES[role].states[state].found
    asks = rule in (Found.ASK, Found.WAIT)
    told = role == DESTINATION and state in ("starved", "committed", "migrated")
    assert verdicts["journal"] == (RECOVER if asks or told else CLEAR)
    assert {verdicts["table"], verdicts["images"]} == {RECOVER if asks else CLEAR}
    held = TABLES[role].states[state].copy in ("frozen", "stopped") or state in (
        "running",
        "committed",
    )
    assert verdicts.get("process") == ((RECOVER if asks else CLEAR) if held else None)
    assert verdicts["sockets"] == (HAND if rule is Found.OVER else RECOVER if asks else CLEAR)
    fenced = role == SOURCE and state in ("handed-over", "in-doubt", "committed", "migrated")
    assert verdicts.get("address") == ((RECOVER if asks else CLEAR) if fenced else None)


@pytest.mark.parametrize(("role", "state"), STATES)
def test_nothing_of_a_migration_under_way_is_left_over(role: str, state: str) -> None:
    one = everything(seen(role, state, busy=True), at_work={5000})
    judged = judge(one)
    assert [way["id"] for way in judged.under_way] == [ID]
    if state == "in-doubt":  # its agent waits for a word, which only `migrate recover` has
        assert [(one.kind, one.verdict) for one in judged.leftovers] == [("journal", RECOVER)]
    else:
        assert judged.leftovers == []


@pytest.mark.parametrize(
    ("role", "state", "busy", "verdict"),
    [
        (SOURCE, "handed-over", False, RECOVER),
        (SOURCE, "in-doubt", False, RECOVER),
        (SOURCE, "in-doubt", True, RECOVER),
        (SOURCE, "committed", False, CLEAR),
        (DESTINATION, "taking-over", False, CLEAR),
    ],
)
def test_a_copy_that_somebody_continued_must_not_run(
    role: str, state: str, busy: bool, verdict: str
) -> None:
    tasks = {5000: task(stopped=False, connections=())}
    look = Seen(
        journals=[seen(role, state, busy=busy)], tasks=tasks, at_work={5000} if busy else set()
    )
    one = next(one for one in judge(look).leftovers if one.kind == "process")
    assert (one.verdict, one.migration) == (verdict, ID)
    assert "runs, and must not" in one.detail and "kill -STOP 5000" in one.clearing


@pytest.mark.parametrize(
    ("role", "state"), [(SOURCE, "frozen"), (SOURCE, "rolled-back"), (DESTINATION, "committed")]
)
def test_a_copy_that_may_run_is_not_told_of(role: str, state: str) -> None:
    tasks = {5000: task(stopped=False, connections=())}
    assert "process" not in found(Seen(journals=[seen(role, state)], tasks=tasks))


def test_without_a_journal_tables_and_images_are_orphaned() -> None:
    assert found(everything(tasks={}, addresses=[])) == {"table": CLEAR, "images": CLEAR}


def test_a_process_without_a_journal_is_not_ours_to_end() -> None:
    verdicts = found(Seen(tasks={5000: task()}))
    assert verdicts == {"process": HAND, "sockets": HAND}


def test_who_was_only_stopped_is_not_claimed() -> None:
    assert found(Seen(tasks={5000: task(connections=())})) == {}


def test_crius_code_in_a_stopped_process_is_evidence() -> None:
    one = only(Seen(tasks={5000: task(connections=(), parasite=True)}))
    assert (one.kind, one.verdict) == ("process", HAND) and "CRIU's code" in one.detail


def test_a_program_may_have_sockets_in_repair_mode_and_run() -> None:
    assert found(Seen(tasks={5000: task(stopped=False)})) == {"sockets": HAND}


def test_a_criu_at_work_holds_what_it_holds() -> None:
    criu = SeenProcess(70, 1, 60, ("criu", "dump"), tracees=(5000,))
    locks = [ForeignLock("table inet CRIU-5000", "nft delete table inet CRIU-5000")]
    judged = judge(Seen(tasks={5000: task(tracer=70)}, criu=[criu], locks=locks))
    assert judged.leftovers == []
    assert len(judged.notes) == 2


def test_a_lock_of_criu_without_a_criu_may_be_meant_to_stay() -> None:
    one = only(Seen(locks=[ForeignLock("table inet CRIU-5", "nft delete table inet CRIU-5")]))
    assert (one.kind, one.verdict) == ("criu-lock", HAND)
    assert "restore" in one.clearing and one.command == "nft delete table inet CRIU-5"


def test_a_frozen_cgroup_only_with_a_process_that_is_left_over() -> None:
    verdicts = found(Seen(tasks={5000: task(frozen="/sys/fs/cgroup/freezer/x")}))
    assert verdicts["cgroup"] == HAND
    assert found(Seen(tasks={5000: task(connections=(), frozen="/sys/fs/cgroup/x")})) == {}


@pytest.mark.parametrize(
    ("problem", "verdict"),
    [("empty", CLEAR), ("damaged", HAND), ("newer", HAND), ("unreadable", HAND)],
)
def test_a_journal_that_cannot_be_gone_by(problem: str, verdict: str) -> None:
    journal = seen(SOURCE, "", problem=problem, plan=None, living=())
    assert found(Seen(journals=[journal])) == {"journal": verdict}
    if problem == "empty":  # it had locked, or made images: then there was more of it
        verdict = HAND
    verdicts = found(everything(journal, tasks={}))
    assert verdicts == {"journal": verdict, "table": verdict, "images": verdict}


@pytest.mark.parametrize("signs", [False, True])
def test_a_destinations_without_a_line_is_for_its_source_to_say(signs: bool) -> None:
    """It may have committed: without it, the next question would be answered that it has not."""
    journal = seen(DESTINATION, "", problem="empty", plan=None, living=())
    look = everything(journal, tasks={}) if signs else Seen(journals=[journal])
    assert set(found(look).values()) == {RECOVER}


def test_of_a_journal_that_others_may_have_written_nothing_is_to_be_ended() -> None:
    """What it says may be true: a stopped process may be the copy of a migration in doubt."""
    look = everything(seen(SOURCE, "in-doubt", problem="exposed"))
    assert set(found(look).values()) == {HAND}
    for one in judge(look).leftovers:
        harmless = one.command.startswith(("ls ", "chmod 600 "))
        assert harmless and "kill" not in one.command, one
    journal = next(one for one in judge(look).leftovers if one.kind == "journal")
    assert "in-doubt" in journal.detail and journal.command.startswith("chmod 600 ")
    look.tasks = {5000: task(stopped=False, connections=())}
    one = next(one for one in judge(look).leftovers if one.kind == "process")
    assert one.command == "kill -STOP 5000"


def test_tables_with_odd_names() -> None:
    one = only(Seen(tables=["streamferry_backup"]))
    assert (one.verdict, one.command) == (HAND, "nft delete table inet streamferry_backup")


def agent(**over: Any) -> Seen:
    return Seen(
        agents=[SeenProcess(**{"pid": 70, "born": 5, "parent": 1, "arguments": (), **over})]
    )


def test_agents() -> None:
    assert found(agent()) == {"agent": CLEAR}
    assert found(agent(parent=60)) == {}, "its session lives"
    assert found(agent(migration=ID, role=SOURCE)) == {}, "it takes part in one"
    assert found(agent(migration=ID, role=SOURCE, unlinked=True)) == {"agent": HAND}


def test_an_agent_whose_journal_was_removed_keeps_what_is_its() -> None:
    one = agent(migration=ID, role=SOURCE, unlinked=True)
    one.tables, one.images, one.at_work, one.tasks = [TABLE], [IMAGES], {5000}, {5000: task()}
    assert found(one) == {"agent": HAND}


def test_guardians() -> None:
    guardian = SeenProcess(70, 5, 1, (), ID, SOURCE)
    watching = dataclasses.replace(guardian, watched=True)
    assert found(Seen(guardians=[guardian])) == {"guardian": CLEAR}
    assert found(Seen(guardians=[watching])) == {}
    at_work = Seen(guardians=[guardian], journals=[seen(SOURCE, "frozen", busy=True)])
    assert found(at_work) == {}
    other = dataclasses.replace(guardian, migration=OTHER)
    assert found(Seen(guardians=[other], journals=at_work.journals)) == {"guardian": CLEAR}


def test_workers_of_criu() -> None:
    worker = SeenProcess(70, 5, 1, ("criu", "swrk", "3"))
    assert found(Seen(criu=[worker])) == {"criu": HAND}
    assert found(Seen(criu=[dataclasses.replace(worker, parent=60)])) == {}
    assert found(Seen(criu=[dataclasses.replace(worker, serving=True)])) == {}
    assert found(Seen(criu=[dataclasses.replace(worker, tracees=(5,))])) == {}
    ours = seen(SOURCE, "frozen", worker=(70, 5))
    assert found(Seen(criu=[worker], journals=[ours]))["criu"] == CLEAR
    busy = dataclasses.replace(ours, busy=True)
    assert found(Seen(criu=[worker], journals=[busy])) == {}


def test_findings_are_sorted_by_migration_and_kind() -> None:
    look = judge(everything(seen(SOURCE, "frozen"))).to_wire()
    assert [one["kind"] for one in look["findings"]] == [
        "journal", "process", "sockets", "table", "table", "images",
    ]  # fmt: skip


SAVED = """\
*filter
:INPUT ACCEPT [0:0]
:CRIU - [0:0]
-A INPUT -j CRIU
-A OUTPUT -j CRIU
-A INPUT -s 10.0.0.1/32 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 5 --dport 6 -j DROP
-A INPUT -m mark --mark 0xc1140 -j ACCEPT
-A CRIU -m mark --mark 0xc114 -j ACCEPT
-A CRIU -j DROP
COMMIT
"""


def test_locks_made_with_iptables() -> None:
    chain, rule = rules("iptables", SAVED)
    assert chain.command.split("; ") == [
        "iptables -D INPUT -j CRIU", "iptables -D OUTPUT -j CRIU", "iptables -F CRIU",
        "iptables -X CRIU",
    ]  # fmt: skip
    assert rule.name.startswith("1 rule")
    assert rules("iptables", "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n") == []
