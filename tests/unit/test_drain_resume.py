"""Drains that were interrupted or killed go on, from whatever is on disk; and what follows them."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import AgentError
from orchestrator.draining import journal as journals
from orchestrator.draining import wellness
from orchestrator.draining.journal import DrainBusy, DrainDamaged, Journal, UnknownDrain
from orchestrator.recovering import Report
from orchestrator.recovery import Named, Recovered
from tests.support.drain_site import HEALTH, SIX, Site, found, ones, row, site
from tests.support.drains import Json
from tests.support.polling import until

__all__ = ["site"]


# --- interrupted


async def test_an_interrupt_undoes_what_moves_and_a_resume_goes_on(site: Site) -> None:
    for pid in SIX[:4]:
        site.world.start(pid)
    site.world.gates[4102] = asyncio.Event()
    running = asyncio.create_task(site.drain(workloads=ones(*SIX[:4])))
    await until(lambda: ("begin", "4102") in site.world.timeline)
    site.conductor.interrupt()
    site.conductor.interrupt()
    result = await running
    assert (result["outcome"], site.status(result)) == ("interrupted", 1)
    assert found(result) == {
        "w4101": "moved", "w4102": "waiting", "w4103": "waiting", "w4104": "waiting",
    }  # fmt: skip
    assert journals.unfinished() == [result["id"]]
    del site.world.hosts["src"][4104]  # it has ended meanwhile
    site.world.gates.clear()
    result = await site.resume(result["id"])
    assert (result["outcome"], site.status(result)) == ("drained", 0)
    assert row(result, "w4104")["state"] == "gone"
    assert site.world.hosts["src"] == {} and journals.unfinished() == []
    again = await site.resume(result["id"])
    assert again["outcome"] == "drained" and len(site.world.moves) == 4


async def test_an_interrupt_before_anything_was_begun(site: Site) -> None:
    site.world.start(4101)
    running = asyncio.create_task(site.drain())
    await asyncio.sleep(0)
    site.conductor.interrupt()
    result = await running
    assert (result["outcome"], result["error"]["code"]) == ("refused", "interrupted")
    assert site.where(4101) == ["src"]


async def test_an_interrupt_while_it_is_not_well_yet(site: Site) -> None:
    site.world.start(4101)
    site.world.unwell["dst"] = {"ping"}
    health = {"command": "ping", "within": "1h"}
    running = asyncio.create_task(site.drain(workloads=ones(4101, to=["dst"], health=health)))
    await until(lambda: site.world.asked)
    site.conductor.interrupt()
    result = await running
    assert found(result) == {"w4101": "checking"} and result["outcome"] == "interrupted"
    site.world.unwell.clear()
    result = await site.resume(result["id"])
    assert result["outcome"] == "drained" and site.where(4101) == ["dst"]


# --- killed: from whatever is on disk


def killed_at(site: Site, drain: str, lines: int) -> None:
    """The journal as it was when only so many lines were on disk."""
    path = journals.drains() / f"{drain}.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:lines]) + whole[lines][:17])


async def test_from_every_prefix_of_the_journal_it_comes_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after each line: every process moved once, or not; the resume must not ask twice."""
    monkeypatch.setattr(wellness, "_SHORT", 0.001)
    for count in itertools.count(2):
        where = tmp_path / str(count)
        where.mkdir(mode=0o700)
        monkeypatch.setattr(journals, "drains", lambda w=where: w / "drains")
        site = Site(where)
        for pid in SIX[:3]:
            site.world.start(pid)
        site.world.unwell["spare"] = {"ping"}
        workloads = [*ones(4101), *ones(4102, to=["dst"], **HEALTH),
                     *ones(4103, to=["spare"], **HEALTH)]  # fmt: skip
        full = await site.drain(workloads=workloads, max_parallel=2)
        assert found(full) == {"w4101": "moved", "w4102": "moved", "w4103": "returned"}
        path = journals.drains() / f"{full['id']}.jsonl"
        lines = path.read_bytes().splitlines()
        if count >= len(lines):
            assert count > 12
            break
        killed_at(site, full["id"], count)
        for pid in SIX[:3]:  # back to where it was then
            site.world.hosts["src"][pid] = site.world.hosts[site.world.where(pid)[0]].pop(pid)
        known: dict[str, None] = {}
        for line in lines[:count]:
            known |= dict.fromkeys(one["migration"] for one in json.loads(line).get("items", []))
        for record in site.records.all():
            if record["id"] not in known:  # its plan is on disk before it begins
                site.records._file(record["id"]).unlink()
        for migration in filter(None, known):
            there = site.records.get(migration)
            assert there is not None
            at = site.world.hosts[there["source"]].pop(there["pid"])
            site.world.hosts[there["destination"]][there["pid"]] = at
        result = await site.resume(full["id"])
        assert result["outcome"] == "incomplete", (count, result)
        states_found = found(result)
        assert states_found["w4101"] == states_found["w4102"] == "moved", (count, result)
        assert states_found["w4103"] == "returned", (count, result)
        assert site.where(4103) == ["src"] and "src" not in site.where(4101, 4102), count


@pytest.mark.parametrize("outcome", ["migrated", "rolled-back", "in-doubt"])
async def test_what_was_on_the_move_is_recovered_first(
    site: Site, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.world.start(4101)
    site.world.start(4102)
    site.world.gates[4101] = asyncio.Event()
    running = asyncio.create_task(site.drain(workloads=ones(4101, 4102)))
    await until(lambda: ("begin", "4101") in site.world.timeline)
    running.cancel()  # as by SIGKILL: nothing is written down any more
    site.conductor._task and site.conductor._task.cancel()
    await asyncio.gather(running, return_exceptions=True)
    (drain,) = journals.unfinished()
    if outcome == "migrated":
        site.world.hosts["dst"][4101] = site.world.hosts["src"].pop(4101)
    recovered: list[str] = []

    async def recover(self: Any, migration: str) -> list[Report]:
        recovered.append(migration)
        side: Any = {"role": "source", "found": "", "state": "over", "word": None, "living": [1],
                     "lost": False, "host_id": ""}  # fmt: skip
        if outcome == "in-doubt":
            side = AgentError(detail="not reached")
        report = Report(Named(migration, "src", "dst", 4101), Recovered(outcome, side, side))
        assert self._remember(report)
        return [report]

    monkeypatch.setattr("orchestrator.recovering.Recoverer.recover", recover)
    site.world.gates.clear()
    result = await site.resume(drain)
    first = {"migrated": "moved", "rolled-back": "moved", "in-doubt": "in-doubt"}[outcome]
    assert found(result) == {"w4101": first, "w4102": "moved"} and len(recovered) == 1
    assert site.status(result) == (4 if outcome == "in-doubt" else 0)
    assert site.where(4101) == (["src"] if outcome == "in-doubt" else ["dst"])
    counted = [one["outcome"] for one in site.ended if one["id"] in recovered]
    assert counted == ([] if outcome == "in-doubt" else [outcome])
    await site.resume(drain)
    assert [one["id"] for one in site.ended].count(recovered[0]) == len(counted)
    if outcome == "in-doubt":
        assert journals.unfinished() == [drain]


async def test_journals_that_cannot_be_gone_by(site: Site) -> None:
    for name in ("none", "20261126-070000-abcdef", "../../etc/passwd"):
        with pytest.raises(UnknownDrain, match="no drain"):
            Journal.open(name)
    site.world.start(4101)
    result = await site.drain()
    path = journals.drains() / f"{result['id']}.jsonl"
    held = Journal.open(result["id"])
    with pytest.raises(DrainBusy, match="under way"):
        Journal.open(result["id"])
    held.close()
    content = path.read_bytes()
    for bad in (b"", b"{}\n", b"[]\n", b"5\n" + content, b"\xff\n",
                content.replace(b"src", b"\xff"),
                content.replace(b'"moved"', b'"flown"'), b"[" * 9999 + b"\n"):  # fmt: skip
        path.write_bytes(bad)
        with pytest.raises(DrainDamaged):
            Journal.open(result["id"])
    path.write_bytes(content)
    Journal.open(result["id"]).close()


async def test_a_journal_that_cannot_be_written_ends_the_drain(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid in SIX[:3]:
        site.world.start(pid)
    write: Callable[..., None] = Journal._append
    calls = itertools.count()

    def failing(self: Journal, entry: Json) -> None:
        if next(calls) > 4:
            raise OSError(28, "No space left on device")
        write(self, entry)

    monkeypatch.setattr(Journal, "_append", failing)
    result = await site.drain(workloads=ones(*SIX[:3]))
    assert result["error"]["code"] == "drain-unwritten" and "No space" in result["error"]["message"]
    assert len(site.world.moves) <= 2 and site.where(4103) == ["src"]
    monkeypatch.setattr(Journal, "_append", write)
    result = await site.resume(result["id"])
    assert set(found(result).values()) == {"moved"} and site.world.hosts["src"] == {}


# --- once it is empty


async def test_a_command_once_the_node_is_empty(site: Site, tmp_path: Path) -> None:
    site.world.start(4101)
    then = {"run": ["sh", "-c", f"echo $STREAMFERRY_NODE > {tmp_path}/said"]}
    result = await site.drain(when_empty=then)
    assert result["outcome"] == "drained" and (tmp_path / "said").read_text() == "src\n"
    result = await site.drain(when_empty={"run": ["sh", "-c", "echo no; echo why >&2; exit 3"]})
    assert result["error"]["code"] == "command-failed" and site.status(result) == 1
    assert "ended with status 3: why" in result["error"]["message"]
    result = await site.drain(when_empty={"run": ["/none"]})
    assert "cannot be run" in result["error"]["message"]


async def test_a_host_that_restarts_is_waited_for_and_opened(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support import drains

    monkeypatch.setattr("orchestrator.draining.conductor._LOOK", 0.001)
    then = {"run": ["true"], "back_within": "50ms"}
    result = await site.drain(when_empty=then)
    assert result["error"]["code"] == "not-back" and "src" in site.world.cordons
    look, looks = drains._Client.probe_host, itertools.count()

    async def restarted(self: Any, images_dir: str) -> Json:
        facts = await look(self, images_dir)
        if next(looks) > 8:
            facts["identity"] = "another boot"
        return facts

    monkeypatch.setattr(drains._Client, "probe_host", restarted)
    result = await site.drain(when_empty={"run": ["true"], "back_within": "10s"})
    assert result["outcome"] == "nothing-to-do" and not result["cordoned"]
    assert site.world.cordons == {}
