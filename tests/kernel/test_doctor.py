"""Every leftover of a migration made for real, found, and cleared where that is safe."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from agent.freeze import thread_states
from agent.journal import Journal
from agent.kernel import proc
from agent.leftovers import clearing, journals, looking
from agent.leftovers.facts import CLEAR, HAND, RECOVER
from agent.leftovers.seen import Places
from agent.netlock import apply, render
from agent.protocol import DESTINATION, SOURCE
from tests.support.doctor import Doctor, held, repaired, runs, stop
from tests.support.leftovers import ID, OTHER, SERVICE, TABLE, journal, keys
from tests.support.processes import Start


def test_on_a_clean_host_nothing_is_found(doctor: Doctor) -> None:
    assert doctor.look() == {"findings": [], "under_way": [], "notes": []}
    doctor.clears()


def test_who_was_stopped_by_hand_is_left_alone(doctor: Doctor, start: Start) -> None:
    pid = start("")
    doctor.pids.append(pid)
    stop(pid)
    doctor.clears()
    assert set(thread_states(pid).values()) == {"T"}


def test_connections_that_are_well_are_left_alone(doctor: Doctor) -> None:
    with held(doctor, repair=False) as (_, pid):
        stop(pid)
        doctor.clears()


# --- tables and images


def test_tables_without_a_migration(doctor: Doctor) -> None:
    doctor.lock()
    doctor.lock(OTHER)
    doctor.host.run(apply.run, render.time_waits(ID, []))
    doctor.host.command("nft", "add table inet streamferry_backup; add table inet other")
    found = doctor.look()["findings"]
    assert sorted(keys({"findings": found})) == [("table", CLEAR)] * 3 + [("table", HAND)]
    done = doctor.fix()
    assert len(done["cleared"]) == 3
    assert keys(done["left"]) == [("table", HAND)]
    assert doctor.tables().split() == "table inet streamferry_backup table inet other".split()


def test_images_without_a_migration(doctor: Doctor) -> None:
    path = doctor.images()
    outside = doctor.places.journals.parent / "precious"
    outside.mkdir()
    (doctor.places.images / OTHER).symlink_to(outside)
    (doctor.places.images / "lost+found").mkdir()
    doctor.clears("images")
    assert not path.exists() and outside.exists()
    assert (doctor.places.images / "lost+found").exists()


def test_images_elsewhere_are_found_by_the_journal(doctor: Doctor, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / ID).mkdir(parents=True)
    journal(doctor.places.journals, SOURCE, "locked", images_dir=str(elsewhere)).close()
    doctor.clears("journal", "images")
    assert not elsewhere.exists()


# --- by journal


def test_a_source_that_may_decide_alone_goes_on(doctor: Doctor) -> None:
    with held(doctor) as (pair, pid):
        stop(pid)
        doctor.lock()
        path = doctor.images()
        doctor.journal(SOURCE, "frozen", pid=pid).close()
        done = doctor.clears("journal", "process", "sockets", "table", "images")
        assert {one["migration"] for one in done["cleared"]} == {ID}
        assert runs(pid) and not repaired(pair.server)
        assert not path.exists() and TABLE not in doctor.tables()
        assert os.listdir(doctor.places.journals) == []
        pair.client.sendall(b"ping")
        assert pair.server.recv(4) == b"ping"


def test_a_source_in_doubt_waits_for_the_other_host(doctor: Doctor) -> None:
    with held(doctor) as (pair, pid):
        stop(pid)
        doctor.lock()
        path = doctor.images()
        doctor.host.add_address(SERVICE)
        doctor.journal(SOURCE, "handed-over", pid=pid).close()
        kinds = ("journal", "process", "sockets", "table", "images", "address")
        doctor.keeps(*((kind, RECOVER) for kind in kinds))
        assert set(thread_states(pid).values()) == {"T"} and repaired(pair.server)
        assert path.exists() and TABLE in doctor.tables()
        assert SERVICE in doctor.host.ip("address")


def test_a_source_whose_destination_committed_ends_its_copy(doctor: Doctor) -> None:
    with held(doctor) as (pair, pid):
        stop(pid)
        doctor.lock()
        doctor.host.add_address(SERVICE)
        doctor.journal(SOURCE, "committed", pid=pid).close()
        pair.server.close()
        doctor.clears("journal", "process", "sockets", "table", "address")
        assert set(thread_states(pid).values()) <= {"Z"}
        assert SERVICE not in doctor.host.ip("address")


def test_after_a_restart_the_address_is_back(doctor: Doctor) -> None:
    """The copy has ended with its host; the configuration of the host has brought the address."""
    doctor.host.ip("address", "add", f"{SERVICE}/32", "dev", "lo")
    doctor.journal(SOURCE, "committed").close()
    doctor.clears("journal", "address")
    assert SERVICE not in doctor.host.ip("address")


def test_a_destination_that_has_not_committed_leaves_nothing(doctor: Doctor) -> None:
    before = proc.now_in_ticks()
    with held(doctor) as (pair, pid):
        stop(pid)
        doctor.lock()
        doctor.host.add_address(SERVICE)
        doctor.journal(DESTINATION, "taking-over", pid=pid, ticks=before).close()
        pair.server.close()
        doctor.clears("journal", "process", "sockets", "table")
        assert set(thread_states(pid).values()) <= {"Z"}
        assert SERVICE not in doctor.host.ip("address"), "undoing takes it off"


def test_a_destination_that_has_committed_goes_on_and_stays_to_be_asked(doctor: Doctor) -> None:
    before = proc.now_in_ticks()
    with held(doctor) as (pair, pid):
        stop(pid)
        doctor.lock()
        doctor.journal(DESTINATION, "committed", pid=pid, ticks=before).close()
        found = keys(doctor.look())
        assert sorted(found) == [
            ("journal", RECOVER), ("process", CLEAR), ("sockets", CLEAR), ("table", CLEAR),
        ]  # fmt: skip
        done = doctor.fix()
        assert keys(done["left"]) == [("journal", RECOVER)] and len(done["cleared"]) == 3
        assert runs(pid) and not repaired(pair.server) and TABLE not in doctor.tables()
        doctor.keeps(("journal", RECOVER))


@pytest.mark.parametrize("state", ["rolled-back", "migrated"])
def test_a_source_whose_journal_is_over(doctor: Doctor, state: str) -> None:
    doctor.journal(SOURCE, state).close()
    doctor.lock()
    doctor.clears("journal", "table")


def test_journals_that_cannot_be_gone_by_are_never_settled(doctor: Doctor) -> None:
    directory = doctor.places.journals
    (directory / f"{ID}-{SOURCE}").write_bytes(b"SFJ2 of another time")
    (directory / f"{OTHER}-{SOURCE}").write_bytes(b"nothing of ours")
    doctor.lock()
    doctor.images(OTHER)
    doctor.keeps(("journal", HAND), ("journal", HAND), ("table", HAND), ("images", HAND))
    assert len(os.listdir(directory)) == 2


def test_an_agent_that_died_before_its_first_line(doctor: Doctor) -> None:
    Journal.create(ID, SOURCE, doctor.places.journals).close()
    doctor.clears("journal")
    assert os.listdir(doctor.places.journals) == []


def test_a_journal_without_a_line_beside_what_only_comes_after_it(doctor: Doctor) -> None:
    Journal.create(ID, SOURCE, doctor.places.journals).close()
    doctor.images()
    doctor.keeps(("journal", HAND), ("images", HAND))


def test_a_destinations_journal_without_a_line_is_not_cleared(doctor: Doctor) -> None:
    Journal.create(ID, DESTINATION, doctor.places.journals).close()
    doctor.images()
    doctor.keeps(("journal", RECOVER), ("images", RECOVER))


@pytest.mark.parametrize("role", [SOURCE, DESTINATION])
def test_what_belongs_to_a_living_agent_is_left(doctor: Doctor, role: str) -> None:
    before = proc.now_in_ticks()
    with held(doctor) as (pair, pid):
        stop(pid)
        doctor.lock()
        path = doctor.images()
        state = "frozen" if role == SOURCE else "restoring"
        open_journal = doctor.journal(role, state, pid=pid, ticks=before)
        doctor.keeps()
        agent = {"agent": os.getpid(), "stopped": False}
        (under_way,) = doctor.look()["under_way"]
        assert under_way == {"id": ID, "role": role, "state": state, "pid": pid} | agent
        assert set(thread_states(pid).values()) == {"T"} and repaired(pair.server)
        assert path.exists() and TABLE in doctor.tables()
        open_journal.close()


def test_an_agent_that_has_begun_since_the_look_keeps_what_is_its(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor.lock()
    path = doctor.images()
    begun: list[Journal] = []

    def look_and_begin(places: Places) -> Any:
        judged = looking.look(places)
        if not begun:
            begun.append(doctor.journal(SOURCE, "frozen"))
        return judged

    monkeypatch.setattr(clearing, "look", look_and_begin)
    done = doctor.fix()
    assert path.exists() and TABLE in doctor.tables()
    assert done["errors"] and all("under way" in one for one in done["errors"])
    begun[0].close()


def test_what_ends_by_itself_is_no_leftover(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor.lock()
    doctor.places = dataclasses.replace(doctor.places, patience=10)
    gather = looking.gather
    looks: list[int] = []

    def gather_once(places: Places) -> Any:
        seen = gather(places)
        if not looks:
            apply.run(render.unlock(ID))
        looks.append(1)
        return seen

    monkeypatch.setattr(looking, "gather", gather_once)
    assert doctor.look()["findings"] == []
    assert len(looks) == 2


def test_looking_at_journals_of_a_migration_that_begins_and_one_that_ends(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = doctor.journal(SOURCE, "frozen")
    doctor.lock()
    doctor.lock(OTHER)
    look, made = journals.look, []

    def look_and_go_on(directory: Path) -> Any:
        found = look(directory)
        if not made:
            first.remove()
            made.append(doctor.journal(SOURCE, "frozen", migration=OTHER))
        return found

    monkeypatch.setattr(journals, "look", look_and_go_on)
    assert not doctor.host.run(looking.gather, doctor.places).notes
    seen = {one.id: one.busy for one in doctor.host.run(looking.gather, doctor.places).journals}
    assert seen == {OTHER: True}
    made[0].close()
