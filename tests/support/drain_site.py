"""A place for whole drains: the table of `tests.support.drains`, journals and records on a disk."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orchestrator.draining import beginning, wellness
from orchestrator.draining import journal as journals
from orchestrator.draining.conductor import Conductor
from orchestrator.draining.outcome import exit_status
from tests.support.drains import Json, Told, World, asked, mover, records

HEALTH = {"health": {"command": "ping", "within": "50ms"}}
SIX = [4101, 4102, 4103, 4104, 4105, 4106]


class Site:
    """A world, and drains in it."""

    def __init__(self, directory: Path) -> None:
        self.world = World()
        self.told = Told(self.world)
        self.records = records(directory)
        self.moves = mover(self.world)
        self.ended: list[Json] = []  # results that were to be counted
        self.conductor = self.fresh()

    def fresh(self) -> Conductor:
        return Conductor(
            None, self.told, self.records, lambda _: self.world, self.moves, ended=self.ended.append
        )

    async def drain(self, dry_run: bool = False, hosts: Any = None, **drain: Any) -> Json:
        async with asyncio.timeout(10):
            return await self.conductor.drain(asked(hosts, **drain), dry_run)

    async def resume(self, drain: str) -> Json:
        self.conductor = self.fresh()
        async with asyncio.timeout(10):
            return await self.conductor.resume(drain)

    def status(self, result: Json) -> int:
        return exit_status([result], self.conductor.errors)

    def where(self, *pids: int) -> list[str]:
        return [host for pid in pids for host in self.world.where(pid)]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(journals, "drains", lambda: tmp_path / "drains")
    monkeypatch.setattr(wellness, "_SHORT", 0.001)
    monkeypatch.setattr(beginning, "_LOOK", 0.001)
    return Site(tmp_path)


def ones(*pids: int, **over: Any) -> list[Json]:
    """A workload for each process."""
    return [{"name": f"w{pid}", "select": {"command": f"^program{pid} "}, **over} for pid in pids]


def found(result: Json) -> dict[str, str]:
    return {one["key"]: one["state"] for one in result["workloads"]}


def row(result: Json, key: str) -> Json:
    (one,) = (one for one in result["workloads"] if one["key"] == key)
    return dict(one)
