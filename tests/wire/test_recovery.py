"""Ending what was interrupted: who is asked what, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import AgentError, PeerLost
from agent.journal import JournalBusy, JournalDamaged
from orchestrator import recovering
from orchestrator.errors import HostUnreachable
from orchestrator.records import Records
from orchestrator.recovering import HostNotNamed, Recoverer, Report, UnknownMigration
from orchestrator.recovery import Named
from tests.support.records import full
from tests.wire.scripted_agent import (
    DESTINATION_ID,
    SOURCE_ID,
    Json,
    ScriptedAgent,
    destination_report,
    source_report,
)
from tests.wire.scripted_run import Setting, dying, never

ID = "20261124-120000-abcdef"
IDS = {"source": SOURCE_ID, "destination": DESTINATION_ID}
AWAY = HostUnreachable(host="dst", detail="no route to host")


def settled(role: str, found: str, state: str, word: str | None, *living: int) -> Json:
    goes_on = state == {"source": "rolled-back", "destination": "migrated"}[role]
    return {"role": role, "found": found, "state": state, "word": word, "living": list(living),
            "lost": goes_on and not living, "host_id": IDS[role]}  # fmt: skip


NAMED = Named(ID, "src", "dst", 5000, SOURCE_ID, DESTINATION_ID)
NOTHING = {role: settled(role, "", "", None) for role in ("source", "destination")}
NOTHING["destination"]["word"] = "failed"
HAS_IT = settled("destination", "committed", "migrated", "committed", 5000)
UNDID = settled("destination", "restored", "rolled-back", "failed")
ENDED = settled("source", "handed-over", "migrated", None)
GOES_ON = settled("source", "frozen", "rolled-back", None, 5000)
ASKS = settled("source", "handed-over", "handed-over", None, 5000)


class Pair:
    """Two hosts that can be reached or not, and what they answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, records: Records) -> None:
        self.agents: dict[str, ScriptedAgent] = {}
        self.words: list[Any] = []
        self.records = records
        monkeypatch.setattr(recovering, "open_agent", self._open)

    def host(self, name: str, answer: Json | AgentError, **more: Any) -> None:
        async def settle(migration: str, role: str, word: str | None, patience: float) -> Json:
            self.words.append((role, word))
            if isinstance(answer, AgentError):
                raise answer
            return ASKS if word is None and answer["found"] == ASKS["found"] else answer

        answers = {"recovery.settle": settle, "recovery.forget": {"forgotten": True}, **more}
        self.agents[name] = ScriptedAgent(name, answers)

    async def _open(self, target: Any, config: list[str], said: Any) -> Any:
        if str(target) not in self.agents:
            raise AWAY
        return self.agents[str(target)].channel

    async def end(
        self, source: Json | AgentError | None, destination: Any, lost: str | None = None
    ) -> Report:
        if source is not None:
            self.host("src", source)
        if destination is not None:
            self.host("dst", destination)
        self.records.begin(NAMED, None)
        (report,) = await Recoverer(None, self.records, lost).recover(ID)
        return report

    @property
    def forgotten(self) -> bool:
        return "recovery.forget" in self.agents["dst"].calls


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pair]:
    yield Pair(monkeypatch, Records(tmp_path / "records"))


def outcome(report: Report) -> tuple[str, list[str], int]:
    return report.ended.outcome, report.ended.unfinished, report.exit_status


async def test_a_source_that_asks_is_told_the_destinations_word(hosts: Pair) -> None:
    assert outcome(await hosts.end(ENDED, HAS_IT)) == ("migrated", [], 0)
    assert hosts.words == [("source", None), ("destination", None), ("source", "committed")]
    assert hosts.forgotten
    record = hosts.records.get(ID)
    assert record is not None and record["result"] is not None
    assert record["result"]["outcome"] == "migrated"


async def test_what_was_not_committed_is_undone_on_both(hosts: Pair) -> None:
    report = await hosts.end(GOES_ON, UNDID)
    assert outcome(report) == ("rolled-back", [], 0)
    assert hosts.words == [("source", None), ("destination", "settled")]
    assert not hosts.forgotten
    assert "goes on at src" in report.sentence


async def test_a_destination_whose_journal_is_damaged_leaves_a_source_in_doubt(hosts: Pair) -> None:
    damaged = JournalDamaged(path="/x", detail="no line of it is left that can be read")
    report = await hosts.end(ASKS, damaged)
    assert outcome(report) == ("in-doubt", ["source", "destination"], 4)
    assert hosts.words == [("source", None), ("destination", None)], "no word for the source"
    assert [one.code for one in report.errors] == ["journal-damaged"]


async def test_a_process_is_said_to_go_on_only_where_it_was_seen(hosts: Pair) -> None:
    report = await hosts.end(NOTHING["source"], UNDID)  # the source had ended its part before
    assert outcome(report) == ("rolled-back", [], 0)
    assert "goes on" not in report.sentence and "may have ended since" in report.sentence
    ended = {**GOES_ON, "living": []}
    sentence = (await hosts.end(ended, UNDID)).sentence
    assert "PID 5000 has ended at src" in sentence


async def test_a_destination_that_knows_nothing_any_more_has_never_committed(hosts: Pair) -> None:
    after = settled("source", "handed-over", "rolled-back", None, 5000)
    assert outcome(await hosts.end(after, NOTHING["destination"])) == ("rolled-back", [], 0)
    assert hosts.words[2] == ("source", "failed")


async def test_a_destination_that_does_not_know_it_yet_has_no_word_for_the_source(
    hosts: Pair,
) -> None:
    """It may begin, and commit, while a source that still works keeps the word waiting."""
    report = await hosts.end(JournalBusy(id=ID, who="its agent lives"), NOTHING["destination"])
    assert outcome(report) == ("in-doubt", ["source"], 4)
    assert hosts.words == [("source", None), ("destination", None)]


async def test_without_the_destination_a_source_that_asks_stays_in_doubt(hosts: Pair) -> None:
    report = await hosts.end(ASKS, None)
    assert outcome(report) == ("in-doubt", ["source", "destination"], 4)
    assert hosts.words == [("source", None)]
    assert "still in doubt" in report.sentence and report.errors == [AWAY]
    record = hosts.records.get(ID)
    assert record is not None and record["result"] is None, "it is to be recovered again"


async def test_without_the_destination_a_source_that_may_goes_on(hosts: Pair) -> None:
    report = await hosts.end(GOES_ON, None)
    assert outcome(report) == ("rolled-back", ["destination"], 4)
    assert "dst could not be reached" in report.sentence


async def test_without_the_source_the_destination_ends_its_part(hosts: Pair) -> None:
    report = await hosts.end(None, HAS_IT)
    assert outcome(report) == ("migrated", ["source"], 4)
    assert not hosts.forgotten, "the source will ask"
    assert "src could not be reached" in report.sentence


async def test_a_journal_that_could_not_be_removed_changes_no_outcome(hosts: Pair) -> None:
    async def forget(migration: str) -> Json:
        raise JournalBusy(id=migration, who="its agent lives")

    hosts.host("src", ENDED)
    hosts.host("dst", HAS_IT, **{"recovery.forget": forget})
    assert outcome(await hosts.end(None, None)) == ("migrated", [], 0)
    assert hosts.forgotten


@pytest.mark.parametrize("destination", [AWAY, JournalBusy(id=ID, who="its agent lives")])
async def test_nobody_to_ask(hosts: Pair, destination: AgentError) -> None:
    hosts.host("dst", destination)
    report = await hosts.end(None, None)
    assert outcome(report) == ("in-doubt", ["source", "destination"], 4)


def journal_row(**over: Any) -> Json:
    """What the source's host says of its journal."""
    return {"id": ID, "role": "source", "state": "handed-over", "at": 1.0, "pid": 5000,
            "source": "src", "destination": "dst", "host_id": SOURCE_ID,
            "other_host": DESTINATION_ID, **over}  # fmt: skip


STRANGER = {**NOTHING["destination"], "host_id": "e" * 32}


@pytest.mark.parametrize("host_id", ["e" * 32, ""], ids=["another", "journals-lost"])
async def test_a_host_that_did_not_take_part_is_not_believed(hosts: Pair, host_id: str) -> None:
    """The right one may have the process running."""
    report = await hosts.end(ASKS, {**STRANGER, "host_id": host_id})
    assert outcome(report) == ("in-doubt", ["source", "destination"], 4)
    assert hosts.words == [("source", None), ("destination", None)]
    (error,) = report.errors
    assert error.code == "another-host" and "dst did not take part" in error.message


async def test_a_destination_is_not_to_forget_while_another_stands_for_its_source(
    hosts: Pair,
) -> None:
    report = await hosts.end({**NOTHING["source"], "host_id": "e" * 32}, HAS_IT)
    assert outcome(report) == ("migrated", ["source"], 4)
    assert not hosts.forgotten, "the right one may still ask"


async def test_a_journal_counts_whatever_the_host_is(hosts: Pair) -> None:
    assert outcome(await hosts.end(ENDED, {**HAS_IT, "host_id": ""})) == ("migrated", [], 0)


async def test_of_a_host_by_name_only_a_known_other_is_believed(hosts: Pair) -> None:
    """A source that never heard of the destination's id has not handed over, and asks nobody."""
    row = journal_row(state="ready", other_host="")
    hosts.host("src", GOES_ON, **{"journal.list": {"journals": [row], "damaged": []}})
    hosts.host("dst", STRANGER)
    (report,) = await Recoverer(None, hosts.records).recover("src")
    assert outcome(report) == ("rolled-back", [], 0)


@pytest.mark.parametrize("destination", [None, STRANGER], ids=["away", "another"])
async def test_a_destination_declared_lost_has_failed(hosts: Pair, destination: Any) -> None:
    after = settled("source", "handed-over", "rolled-back", None, 5000)
    report = await hosts.end(after, destination, lost="dst")
    assert outcome(report) == ("rolled-back", [], 0)
    assert "on your word" in report.sentence and "had not committed" not in report.sentence
    assert hosts.words[-1] == ("source", "failed")


async def test_a_source_declared_lost_is_not_waited_for(hosts: Pair) -> None:
    assert outcome(await hosts.end(None, HAS_IT, lost="src")) == ("migrated", [], 0)
    assert hosts.forgotten


async def test_a_copy_that_was_lost_with_a_source_is_said_to_be(hosts: Pair) -> None:
    report = await hosts.end(None, UNDID, lost="src")
    assert outcome(report) == ("rolled-back", [], 1)
    assert "ended with src" in report.sentence


async def test_a_host_that_can_be_reached_is_not_lost(hosts: Pair) -> None:
    assert outcome(await hosts.end(ENDED, HAS_IT, lost="dst")) == ("migrated", [], 0)


async def test_a_host_that_answers_otherwise_is_not_lost(hosts: Pair) -> None:
    report = await hosts.end(ASKS, JournalBusy(id=ID, who="its agent lives"), lost="dst")
    assert outcome(report) == ("in-doubt", ["source", "destination"], 4)


async def test_a_lost_host_must_be_in_a_migration_that_is_meant(hosts: Pair) -> None:
    with pytest.raises(HostNotNamed):
        await hosts.end(ASKS, None, lost="dts")
    assert hosts.words == []


async def test_what_ended_long_after_its_migration_is_no_loss(hosts: Pair) -> None:
    since = {**HAS_IT, "found": "migrated", "living": [], "lost": False}
    report = await hosts.end(ENDED, since)
    assert outcome(report) == ("migrated", [], 0)
    assert "has ended there, or moved on" in report.sentence


async def test_a_copy_that_went_with_its_host_is_said_to_be_lost(hosts: Pair) -> None:
    gone = {**HAS_IT, "found": "migrated", "living": [], "lost": True}
    report = await hosts.end(ENDED, gone)
    assert report.ended.lost and "ended with dst" in report.sentence
    assert hosts.forgotten


async def test_what_is_lost_is_written_down_before_it_is_forgotten(hosts: Pair) -> None:
    """Else nobody hears of it when whoever recovers is killed in between."""
    written: list[Any] = []

    async def forget(migration: str) -> Json:
        record = hosts.records.get(ID)
        written.append(record and record["result"] and record["result"]["outcome"])
        return {"forgotten": True}

    hosts.host("src", {**GOES_ON, "living": [], "lost": True}, **{"recovery.forget": forget})
    report = await hosts.end(None, UNDID)
    assert report.ended.lost and "ended with src" in report.sentence
    assert written == ["rolled-back"] and not hosts.forgotten


async def test_what_cannot_be_written_down_is_not_forgotten(hosts: Pair) -> None:
    hosts.host("src", ENDED)
    hosts.host("dst", HAS_IT)
    hosts.records.begin(NAMED, None)
    hosts.records.fill()
    worker = Recoverer(None, hosts.records)
    (report,) = await worker.recover(ID)
    assert outcome(report) == ("migrated", [], 0) and not hosts.forgotten
    assert "No space left" in worker.unwritten[0]


async def test_one_that_nobody_knows_of_is_not_called_rolled_back(hosts: Pair) -> None:
    """Somebody else may have been told, and had it forgotten."""
    await hosts.end(NOTHING["source"], NOTHING["destination"])
    record = hosts.records.get(ID)
    assert record is not None and record["result"] is not None
    assert record["result"]["outcome"] == "over"


async def test_nothing_is_left_of_one_that_is_over(hosts: Pair) -> None:
    report = await hosts.end(NOTHING["source"], NOTHING["destination"])
    assert outcome(report) == ("over", [], 0)


async def test_all_that_a_host_knows(hosts: Pair) -> None:
    row = journal_row(source="old-name")
    hosts.host("src", ENDED, **{"journal.list": {"journals": [row], "damaged": []}})
    hosts.host("dst", HAS_IT)
    (report,) = await Recoverer(None, hosts.records).recover("src")
    assert (report.named.source, report.named.destination) == ("src", "dst")
    assert outcome(report) == ("migrated", [], 0)


async def test_all_that_was_begun_here_and_never_ended(hosts: Pair) -> None:
    hosts.host("src", GOES_ON)
    hosts.host("dst", UNDID)
    other = "20261124-110000-000000"
    hosts.records.begin(Named(other, "src", "dst", 1), None)
    hosts.records.end(other, full(other))
    hosts.records.begin(NAMED, None)
    reports = await Recoverer(None, hosts.records).recover(None)
    assert [one.named.id for one in reports] == [ID]
    assert await Recoverer(None, hosts.records).recover(None) == []


@pytest.mark.parametrize(("asked", "taken"), [(None, ["/a", "/b"]), ("/c", ["/c", "/c"])])
async def test_each_is_reached_as_it_was_begun(
    hosts: Pair, monkeypatch: pytest.MonkeyPatch, asked: str | None, taken: list[str]
) -> None:
    """By another SSH configuration the same name may be another machine."""
    used: list[str] = []

    async def refuse(target: Any, config: list[str], said: Any) -> Any:
        if str(target) == "src":
            used.append(config[-1])
        raise AWAY

    monkeypatch.setattr(recovering, "open_agent", refuse)
    for number, config in enumerate(("/a", "/b")):
        hosts.records.begin(Named(f"20261124-11000{number}-000000", "src", "dst", 1), config)
    await Recoverer(asked, hosts.records).recover(None)
    assert used == taken[: 1 if asked else 2]


async def test_an_id_that_was_not_begun_here(hosts: Pair) -> None:
    with pytest.raises(UnknownMigration):
        await Recoverer(None, hosts.records).recover(ID)


async def test_a_host_that_cannot_be_reached(hosts: Pair) -> None:
    with pytest.raises(HostUnreachable):
        await Recoverer(None, hosts.records).recover("src")


# --- within a migration


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    made = Setting(monkeypatch)
    made.patience()
    return made


def again(setting: Setting, source: Json, destination: Json) -> None:
    for name, answer in (("src", source), ("dst", destination)):
        answers = {"recovery.settle": answer, "recovery.forget": {"forgotten": True}}
        setting.again[name] = ScriptedAgent(name, answers)


async def test_a_source_whose_agent_died_was_undone_by_its_guardian(setting: Setting) -> None:
    setting.source.answers["source.run"] = dying(setting.source)
    setting.destination.answers["destination.run"] = destination_report(
        "rolled-back", PeerLost(phase="ship", detail="gone")
    )
    again(setting, GOES_ON, NOTHING["destination"])
    result = await setting.migrate()
    assert (result["outcome"], setting.status) == ("rolled-back", 1)
    assert result["error"]["code"] == "agent-lost"
    assert "src" in result["error"]["message"] and "recover" not in result["error"]["hint"]


@pytest.mark.parametrize(("outcome", "status"), [("migrated", 0), ("rolled-back", 1)])
async def test_what_is_known_is_not_said_to_be_in_doubt(
    setting: Setting, outcome: str, status: int
) -> None:
    """The source has said it, and let go of it; then the destination lost its power."""
    error = None if outcome == "migrated" else PeerLost(phase="commit", detail="gone")
    setting.source.answers["source.run"] = source_report(outcome, error)
    setting.destination.answers["destination.run"] = dying(setting.destination)
    answers = {"recovery.settle": NOTHING["source"]}
    setting.again["src"] = ScriptedAgent("src", answers)
    result = await setting.migrate()
    assert (result["outcome"], setting.status) == (outcome, status)
    assert not any("in doubt" in note for note in setting.told.notes)
    assert f"`migrate recover {result['id']}`" in setting.told.notes[-1]
    assert setting.told.notes[-1].startswith("dst could not be asked")


async def test_a_source_whose_agent_died_after_the_commit_is_told(setting: Setting) -> None:
    setting.source.answers["source.run"] = dying(setting.source)
    again(setting, ENDED, HAS_IT)
    result = await setting.migrate()
    assert (result["outcome"], result["error"], setting.status) == ("migrated", None, 0)
    assert "recovery.settle" in setting.again["src"].calls


async def test_a_source_that_cannot_be_told_is_a_doubt(setting: Setting) -> None:
    """The destination has it, and the source may be frozen for ever: that is no success."""
    setting.source.answers["source.run"] = dying(setting.source)
    setting.again["dst"] = ScriptedAgent("dst", {"recovery.settle": HAS_IT})
    result = await setting.migrate()
    assert (result["outcome"], setting.status) == ("in-doubt", 4)
    assert result["error"]["code"] == "half-ended" and "src" in result["error"]["message"]
    assert "recovery.forget" not in setting.again["dst"].calls


async def test_a_doubt_is_ended_with_new_agents(setting: Setting) -> None:
    setting.source.answers["source.run"] = source_report(
        "in-doubt", PeerLost(phase="commit", detail="gone")
    )
    setting.destination.answers["destination.run"] = never
    again(setting, ENDED, HAS_IT)
    result = await setting.migrate()
    assert (result["outcome"], result["error"], setting.status) == ("migrated", None, 0)


async def test_a_doubt_that_cannot_be_ended_stays_one(setting: Setting) -> None:
    setting.source.answers["source.run"] = source_report(
        "in-doubt", PeerLost(phase="commit", detail="gone")
    )
    setting.destination.answers["destination.run"] = never
    result = await setting.migrate()
    assert (result["outcome"], setting.status) == ("in-doubt", 4)
