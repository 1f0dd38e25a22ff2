"""A drain that has a window begins nothing that would not end in it; and its last command."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orchestrator.draining import conductor as conductors
from orchestrator.draining import journal as journals
from orchestrator.draining.conductor import Conductor
from orchestrator.draining.window import Window
from tests.support.drain_site import Site, found, ones, site
from tests.support.drains import asked
from tests.support.polling import until

__all__ = ["site"]

PIDS = [4101, 4102, 4103]


class Hand:
    """A clock that is put by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def within(site: Site, clock: Hand, end: float) -> Conductor:
    window = Window(end, clock)
    made = Conductor(None, site.told, site.records, lambda _: site.world, site.moves, window)
    site.conductor = made
    return made


async def gated(site: Site, clock: Hand, end: float, takes: float) -> Any:
    """A drain of three, one after the other, of which the first takes so long."""
    for pid in PIDS:
        site.world.start(pid)
    site.world.gates[PIDS[0]] = asyncio.Event()
    within(site, clock, end)
    running = asyncio.create_task(site.drain(workloads=ones(*PIDS)))
    await until(lambda: ("begin", "4101") in site.world.timeline)
    clock.now += takes
    site.world.gates[PIDS[0]].set()
    return await running


async def test_nothing_begins_after_the_window_and_what_is_on_the_move_ends(site: Site) -> None:
    result = await gated(site, Hand(), 1060.0, 61.0)
    assert result["outcome"] == "incomplete"
    assert found(result) == {"w4101": "moved", "w4102": "waiting", "w4103": "waiting"}
    assert "its window ended at 1970-01-01T" in result["error"]["message"]
    assert journals.unfinished() == [result["id"]]
    again = await site.resume(result["id"])
    assert again["outcome"] == "drained"


async def test_nor_what_would_not_end_in_it_by_the_longest_so_far(site: Site) -> None:
    result = await gated(site, Hand(), 1100.0, 51.0)
    assert found(result) == {"w4101": "moved", "w4102": "waiting", "w4103": "waiting"}
    assert "and one took 51.0 s" in result["error"]["message"]


async def test_all_that_fits_is_moved(site: Site) -> None:
    result = await gated(site, Hand(), 1100.0, 49.0)
    assert result["outcome"] == "drained"


async def test_a_node_is_not_restarted_after_the_window(site: Site, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    clock = Hand()
    site.world.start(4101)
    site.world.gates[4101] = asyncio.Event()
    within(site, clock, 1060.0)
    then = {"run": ["touch", str(ran)]}
    running = asyncio.create_task(site.drain(when_empty=then))
    await until(lambda: ("begin", "4101") in site.world.timeline)
    clock.now += 100
    site.world.gates[4101].set()
    result = await running
    assert (result["outcome"], result["error"]["code"]) == ("incomplete", "window-over")
    assert not ran.exists()
    again = await site.resume(result["id"])
    assert again["outcome"] == "drained" and ran.exists()
    ran.unlink()
    assert (await site.resume(result["id"]))["outcome"] == "drained" and not ran.exists()


async def test_a_command_that_was_about_to_be_run_is_not_run_again(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    site.world.start(4101)

    async def killed(*_: Any, **__: Any) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(conductors, "_command", killed)
        result = await site.drain(when_empty={"run": ["touch", str(ran)]})
    assert result["error"]["code"] == "interrupted"
    (drain,) = journals.unfinished()
    result = await site.resume(drain)
    assert (result["outcome"], result["error"]["code"]) == ("incomplete", "command-failed")
    assert "see whether it was" in result["error"]["message"] and not ran.exists()


async def test_a_node_that_was_restarting_is_waited_for_and_restarted_no_more(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conductors, "_LOOK", 0.001)
    ran = tmp_path / "ran"
    site.world.start(4101)
    then = {"run": ["sh", "-c", f"echo once >> {ran}"], "back_within": "1m"}
    running = asyncio.create_task(site.drain(when_empty=then))
    await until(ran.exists)
    site.conductor.interrupt()
    result = await running
    assert (result["outcome"], result["error"]["code"]) == ("incomplete", "interrupted")
    site.world.restarted.add("src")
    result = await site.resume(result["id"])
    assert (result["outcome"], result["cordoned"]) == ("drained", False)
    assert ran.read_text() == "once\n" and site.world.cordons == {}


async def test_a_drain_has_the_id_that_it_is_given(site: Site) -> None:
    site.world.start(4101)
    name = "20260101-000000-abcdef"
    result = await site.conductor.drain(asked(), False, name)
    assert result["id"] == name and (await site.resume(name))["outcome"] == "drained"
