"""Whole drains, over hosts and migrations that are no more than a table."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import AgentError
from orchestrator.draining import beginning
from orchestrator.draining import journal as journals
from tests.support.drain_site import HEALTH, SIX, Site, found, ones, row, site
from tests.support.drains import Json

__all__ = ["site"]


# --- the way it should go


async def test_a_host_is_emptied_over_two_and_a_second_run_finds_nothing(site: Site) -> None:
    for pid in SIX:
        site.world.start(pid)
    result = await site.drain(max_parallel=2, reason="kernel")
    assert (result["outcome"], site.status(result), result["error"]) == ("drained", 0, None)
    assert set(found(result).values()) == {"moved"} and len(found(result)) == 6
    assert site.world.hosts["src"] == {} and result["cordoned"]
    assert {len(site.world.hosts[name]) for name in ("dst", "spare")} == {3}
    assert all(one["blackout_ms"] == one["stall_ms"] == 40.0 for one in result["workloads"])
    assert site.world.cordons["src"]["reason"] == "kernel"
    at_once = most = 0
    for event, _ in site.world.timeline:
        at_once += {"begin": 1, "end": -1}.get(event, 0)
        most = max(most, at_once)
    assert most == 2
    again = await site.drain(max_parallel=2)
    assert (again["outcome"], site.status(again), again["workloads"]) == ("nothing-to-do", 0, [])
    assert journals.unfinished() == []


async def test_the_node_is_cordoned_before_anything_moves(site: Site) -> None:
    site.world.start(4101)
    await site.drain()
    events = [event for event, _ in site.world.timeline]
    assert events.index("cordon") < events.index("begin")


async def test_a_budget_is_kept_and_the_order(site: Site) -> None:
    for pid in SIX:
        site.world.start(pid)
    workloads = [*ones(*SIX[:3], group="cache"), *ones(*SIX[3:])]
    workloads[3]["after"] = [f"w{SIX[2]}"]
    budget = [{"group": "cache", "at_most": 1}]
    result = await site.drain(max_parallel=3, workloads=workloads, budgets=budget)
    assert result["outcome"] == "drained"
    away: set[str] = set()
    done: list[str] = []
    for event, key in site.world.timeline:
        if event == "moving":
            away.add(key)
            assert len(away & {f"w{pid}" for pid in SIX[:3]}) <= 1
            assert key != f"w{SIX[3]}" or f"w{SIX[2]}" in done
        elif event == "moved":
            away.discard(key)
            done.append(key)
    assert len(done) == 6


async def test_without_a_playbook_what_has_a_service_address_is_found(site: Site) -> None:
    site.world.start(4101)
    site.world.start(4102, addresses=[], listening=[])  # no connection: it has to be selected
    site.world.start(4103, addresses=["10.77.0.11"], listening=[])  # the host's own
    site.world.start(4104, ppid=4101, sid=4101)  # a child goes with its parent
    result = await site.drain()
    assert list(found(result)) == ["program4101@4101"]
    hosts = {"src": {"service_network": ["10.99.0.0/24"]}, "dst": {}, "spare": {}}
    assert (await site.drain(hosts=hosts))["outcome"] == "nothing-to-do"
    result = await site.drain(workloads=ones(4102))
    assert found(result) == {"w4102": "moved"} and site.where(4102, 4103) != ["src", "src"]


async def test_a_dry_run_touches_nothing(site: Site) -> None:
    site.world.start(4101)
    result = await site.drain(dry_run=True)
    assert (result["outcome"], result["dry_run"], site.status(result)) == ("ready", True, 0)
    assert row(result, "program4101@4101")["destination"] in ("dst", "spare")
    assert site.world.cordons == {} and site.where(4101) == ["src"] and not site.world.moves


async def test_no_cordon_where_none_is_wanted(site: Site) -> None:
    site.world.start(4101)
    result = await site.drain(cordon=False, workloads=ones(4101))
    assert result["outcome"] == "drained" and not result["cordoned"] and not site.world.cordons


async def test_labels_capacity_and_policies_of_the_inventory(site: Site) -> None:
    for pid in SIX:
        site.world.start(pid)
    hosts = {"src": {"labels": {"zone": "b"}},
             "dst": {"labels": {"zone": "b"}, "capacity": {"workloads": 2}},
             "spare": {"labels": {"zone": "b"}, "policies": {"max_incoming": 1}}}  # fmt: skip
    result = await site.drain(hosts=hosts, to=["zone=b"], max_parallel=6)
    assert result["outcome"] == "drained"
    assert [len(site.world.hosts[name]) for name in ("dst", "spare")] == [2, 4]


# --- what cannot move is found before anything moves


async def test_one_that_cannot_move_is_reported_and_the_others_move(site: Site) -> None:
    for pid in SIX[:3]:
        site.world.start(pid)
    site.world.obstacles[4102] = "process 7 (sh)"
    result = await site.drain(workloads=ones(*SIX[:3]))
    assert found(result) == {"w4101": "moved", "w4102": "immovable", "w4103": "moved"}
    assert (result["outcome"], site.status(result)) == ("incomplete", 1)
    assert row(result, "w4102")["error"]["code"] == "pipe-outside"
    assert "w4102: " in result["error"]["message"] and site.where(4102) == ["src"]
    events = [one for one in site.world.timeline if one[0] in ("immovable", "begin")]
    assert events[0] == ("immovable", "w4102")


async def test_where_nothing_can_move_nothing_is_touched(site: Site) -> None:
    site.world.start(4101)
    site.world.obstacles[4101] = "process 7 (sh)"
    result = await site.drain(workloads=ones(4101))
    assert (result["outcome"], site.status(result)) == ("refused", 3)
    assert site.world.cordons == {} and not site.world.moves
    dry = await site.drain(dry_run=True, workloads=ones(4101))
    assert (dry["outcome"], site.status(dry)) == ("refused", 3)


async def test_a_file_that_is_brought_along_stands_against_nothing(site: Site) -> None:
    site.world.start(4101)
    site.world.differs[4101] = "/srv/data/a.db"
    result = await site.drain(dry_run=True, workloads=ones(4101))
    assert (result["outcome"], result["error"]["code"]) == ("refused", "file-missing")
    for migrate in ({"sync": ["/srv/data/a.db"]}, {"sync_open": True}):
        result = await site.drain(dry_run=True, workloads=ones(4101, migrate=migrate))
        assert result["outcome"] == "ready", (migrate, result)


async def test_the_reason_that_is_told_is_the_one_that_holds_everywhere(site: Site) -> None:
    site.world.start(4101)
    site.world.obstacles[4101] = "process 7 (sh)"
    site.world.cordons["spare"] = {"since": 1, "reason": ""}
    result = await site.drain(workloads=ones(4101), to=["spare", "dst"])
    assert result["error"]["code"] == "pipe-outside"


async def test_a_pid_that_is_taken_leaves_the_other_host(site: Site) -> None:
    site.world.start(4101)
    site.world.taken["dst"] = [4101]
    result = await site.drain(workloads=ones(4101))
    assert row(result, "w4101")["destination"] == "spare" and site.where(4101) == ["spare"]
    site.world.start(4102)
    site.world.taken["spare"] = [4102]
    site.world.memory["dst"] = 1
    result = await site.drain(workloads=ones(4102))
    said = row(result, "w4102")["error"]
    assert said["code"] == "no-destination"
    assert "dst: dst has 0 MiB" in said["message"] and "spare: " in said["message"]


async def test_a_cordoned_destination_is_refused_with_a_word_and_a_hint(site: Site) -> None:
    site.world.start(4101)
    site.world.cordons["dst"] = {"since": 1, "reason": "broken fan"}
    result = await site.drain(workloads=ones(4101), to=["dst"])
    assert (result["outcome"], site.status(result)) == ("refused", 3)
    assert result["error"]["code"] == "cordoned"
    assert "dst is cordoned (broken fan)" in result["error"]["message"]
    assert "migrate uncordon dst" in result["error"]["hint"]
    result = await site.drain(workloads=ones(4101))
    assert site.where(4101) == ["spare"]


async def test_a_destination_that_is_not_reached_is_left_out(site: Site) -> None:
    site.world.start(4101)
    site.world.unreachable = {"dst"}
    result = await site.drain(workloads=ones(4101))
    assert result["outcome"] == "drained" and site.where(4101) == ["spare"]
    assert any("dst is left out" in note for note in site.told.notes)
    site.world.unreachable = {"src"}
    result = await site.drain(workloads=ones(4101))
    assert (result["outcome"], result["error"]["code"]) == ("refused", "unreachable")
    assert site.status(result) == 3


async def test_an_empty_selection_is_one_message_and_nothing_is_touched(site: Site) -> None:
    site.world.start(4101)
    workloads = [*ones(4101), {"name": "web", "select": {"pid_file": "/run/web.pid", "port": 80}}]
    result = await site.drain(workloads=workloads)
    assert (result["outcome"], result["error"]["code"]) == ("refused", "nothing-selected")
    assert "/run/web.pid: No such file" in result["error"]["message"] and site.status(result) == 3
    assert not site.world.cordons and site.where(4101) == ["src"]
    workloads[1]["optional"] = True
    assert (await site.drain(workloads=workloads))["outcome"] == "drained"
    del workloads[1]["optional"]  # the node is cordoned now: they may have been moved before
    assert (await site.drain(workloads=workloads))["outcome"] == "nothing-to-do"
    assert [note for note in site.told.notes if "/run/web.pid" in note and "earlier" in note]


@pytest.mark.parametrize(
    ("select", "hits"),
    [
        ({"pid_file": "/run/a.pid"}, [4101]),
        ({"command": "rogram410[12] "}, [4101, 4102]),
        ({"port": 7000}, [4102]),
        ({"address": "10.77.0.3"}, [4102]),
        ({"unit": "web"}, [4103]),
        ({"unit": "web.service"}, [4103]),
        ({"label": "app=web"}, [4103, 4105]),
        ({"label": "app=web", "command": "4105"}, [4105]),
    ],
)
async def test_selectors(site: Site, select: Json, hits: list[int]) -> None:
    site.world.pid_files["/run/a.pid"] = 4101
    site.world.start(4101)
    site.world.start(4102, listening=[("10.77.0.3", 7000)], addresses=["10.77.0.3"])
    site.world.start(4103, unit="web.service", labels={"app": "web"})
    site.world.start(4104, ppid=4103, sid=4103, labels={"app": "web"}, addresses=[])
    site.world.start(4105, labels={"app": "web"})
    site.world.start(4106, labels={"app": "db"})
    result = await site.drain(dry_run=True, workloads=[{"name": "it", "select": select}])
    assert [one["pid"] for one in result["workloads"]] == hits
    keys = ["it"] if len(hits) == 1 else [f"it@{pid}" for pid in hits]
    assert list(found(result)) == keys


async def test_a_child_stands_for_the_top_of_its_session(site: Site) -> None:
    site.world.start(4101, addresses=[], listening=[])
    site.world.start(4102, ppid=4101, sid=4101)
    site.world.start(4103, ppid=4102, sid=4103, addresses=[], listening=[])  # its own session
    result = await site.drain(dry_run=True, workloads=ones(4102))
    assert [one["pid"] for one in result["workloads"]] == [4101]


# --- when something goes wrong


async def test_one_failure_does_not_cancel_the_rest(site: Site) -> None:
    for pid in SIX[:3]:
        site.world.start(pid)
    site.world.endings[4101] = [AgentError(detail="the link broke")]
    result = await site.drain(workloads=ones(*SIX[:3]))
    assert found(result) == {"w4101": "failed", "w4102": "moved", "w4103": "moved"}
    assert (result["outcome"], site.status(result)) == ("incomplete", 1)
    assert "the link broke" in result["error"]["message"]
    assert journals.unfinished() == []


async def test_unless_it_is_told_to(site: Site) -> None:
    for pid in SIX[:3]:
        site.world.start(pid)
    site.world.endings[4101] = [AgentError(detail="the link broke")]
    result = await site.drain(workloads=ones(*SIX[:3]), on_failure="stop")
    assert found(result) == {"w4101": "failed", "w4102": "waiting", "w4103": "waiting"}
    assert row(result, "w4102")["error"]["code"] == "not-begun"
    result = await site.resume(result["id"])  # what was not begun
    assert found(result) == {"w4101": "failed", "w4102": "moved", "w4103": "moved"}


@pytest.mark.parametrize("ending", ["in-doubt", "lost"])
async def test_worse_endings(site: Site, ending: str) -> None:
    for pid in SIX[:3]:
        site.world.start(pid)
    site.world.endings[4101] = [ending]
    budget = [{"group": "g", "at_most": 1}]
    workloads = [*ones(4101, 4102, group="g"), *ones(4103)]
    result = await site.drain(workloads=workloads, budgets=budget)
    assert found(result) == {"w4101": ending, "w4102": "waiting", "w4103": "moved"}
    assert "may be unavailable" in row(result, "w4102")["error"]["message"]
    assert site.status(result) == (4 if ending == "in-doubt" else 1)


async def test_a_health_check_is_asked_at_the_destination(site: Site) -> None:
    site.world.start(4101)
    site.world.start(4102)
    workloads = [*ones(4101, to=["dst"], **HEALTH),
                 *ones(4102, to=["spare"], health={"tcp": {"port": 80}})]  # fmt: skip
    assert (await site.drain(workloads=workloads))["outcome"] == "drained"
    assert site.world.asked == ["dst: command ping", "spare: tcp 10.77.0.102 80"]


async def test_one_that_is_not_well_goes_back(site: Site) -> None:
    site.world.start(4101)
    site.world.start(4102)
    site.world.unwell["dst"] = {"ping"}
    workloads = [*ones(4101, to=["dst"], **HEALTH), *ones(4102)]
    result = await site.drain(workloads=workloads)
    assert found(result) == {"w4101": "returned", "w4102": "moved"}
    assert site.where(4101) == ["src"] and site.status(result) == 1
    said = row(result, "w4101")["error"]
    assert said["code"] == "unwell" and "on dst within 50ms: it is ill" in said["message"]
    assert said["message"].endswith("; it was moved back to src") and "there" not in said["hint"]
    assert "moved back to src" in result["error"]["message"]
    back = site.world.moves[1 if site.world.moves[1].request.pid == 4101 else 2].request
    assert (back.source, back.destination, back.options.returns) == ("dst", "src", True)
    assert "src: command ping" in site.world.asked


@pytest.mark.parametrize("then", ["go-on", "stop"])
async def test_or_stays_and_the_others_go_on_or_not(site: Site, then: str) -> None:
    site.world.start(4101)
    site.world.start(4102)
    site.world.unwell["dst"] = {"ping"}
    workloads = [*ones(4101, to=["dst"], on_unhealthy=then, **HEALTH), *ones(4102)]
    result = await site.drain(workloads=workloads)
    rest = "moved" if then == "go-on" else "waiting"
    assert found(result) == {"w4101": "unwell", "w4102": rest}
    assert site.where(4101) == ["dst"]


async def test_one_that_cannot_go_back_is_told(site: Site) -> None:
    site.world.start(4101)
    site.world.unwell["dst"] = {"ping"}
    site.world.endings[4101] = ["migrated", AgentError(detail="no way back")]
    result = await site.drain(workloads=ones(4101, to=["dst"], **HEALTH))
    assert found(result) == {"w4101": "unwell"} and site.where(4101) == ["dst"]
    assert any("no way back" in note for note in site.told.notes)


async def test_a_migration_under_way_onto_the_node_is_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.world.start(4101)
    monkeypatch.setattr(beginning, "_ARRIVALS", 0.02)
    site.world.journals["src"] = [
        {"id": "one", "role": "destination", "state": "locked"},
        {"id": "two", "role": "destination", "state": "migrated"},
        {"id": "three", "role": "source", "state": "locked"},
    ]
    result = await site.drain()
    assert result["error"]["code"] == "node-busy" and "one is still" in result["error"]["message"]
    assert site.status(result) == 3 and not site.world.moves
    del site.world.journals["src"][0]
    assert (await site.drain())["outcome"] == "drained"


async def test_what_comes_meanwhile_is_drained_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.world.start(4101)
    put = beginning.cordon

    async def late(*arguments: Any) -> str:
        site.world.start(4102)
        return await put(*arguments)

    monkeypatch.setattr(beginning, "cordon", late)
    result = await site.drain()
    assert set(found(result)) == {"program4101@4101", "program4102@4102"}
    assert site.world.hosts["src"] == {}
