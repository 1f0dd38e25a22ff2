"""The report of a migration, made of records that the lab has written (tests/support/recorded)."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import random
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.__main__ import run
from orchestrator.records import Records
from orchestrator.reporting import chart
from orchestrator.reporting.model import report
from orchestrator.reporting.page import FIRST, MOST, html, milliseconds
from orchestrator.reporting.terminal import lines

RECORDED = Path(__file__).resolve().parents[1] / "support/recorded"
NAMES = ("stop", "pre-copy", "rolled-back")
Json = dict[str, Any]


@functools.cache
def _read(name: str) -> Any:
    text = (RECORDED / f"{name}.json").read_text()
    with tempfile.TemporaryDirectory() as directory:
        migration = json.loads(text)["id"]
        Path(directory, f"{migration}.json").write_text(text)
        return Records(Path(directory)).get(migration)


def recorded(name: str) -> Any:
    """As it is read from the state directory."""
    return copy.deepcopy(_read(name))


def many(number: int) -> Any:
    """The same migration with so many connections."""
    record, wake = recorded("stop"), random.Random(1).lognormvariate
    (first, *_) = record["result"]["streams"]
    record["result"]["streams"] = [
        {
            **first,
            "remote": f"10.77.1.{at % 250}:{20_000 + at}",
            "wake_ms": wake(1, 0.5),
        }
        for at in range(number)
    ]
    return record


def unfinished() -> Any:
    return {**recorded("stop"), "result": None, "account": None}


def recovered() -> Any:
    """What `migrate recover` writes where nobody else has."""
    record = unfinished()
    ending = {"id": record["id"], "outcome": "migrated", "error": None, "recovered": True}
    return {**record, "result": ending}


class Page(HTMLParser):
    """What a browser would make of it: elements with the names of their attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def says(self, text: str) -> bool:
        return text in re.sub(r"\s+", " ", " ".join(self.text))


# --- what it says


def test_the_stall_is_the_blackout_and_the_wake_time() -> None:
    record = recorded("stop")
    made = report(record)
    streams = record["result"]["streams"]
    worst = max(one["wake_ms"] for one in streams)
    assert made["stall"]["most_ms"] == pytest.approx(record["result"]["blackout_ms"] + worst)
    assert made["stall"]["known"] == len(streams) and made["stall"]["silent"] == 0
    stalls = [one["stall_ms"] for one in made["streams"]]
    assert stalls == sorted(stalls, reverse=True)


def test_who_has_not_answered_comes_first_and_has_no_stall() -> None:
    record = many(12)
    record["result"]["streams"][5]["wake_ms"] = -1.0
    made = report(record)
    assert made["streams"][0]["stall_ms"] is None and made["streams"][0]["wake_ms"] is None
    assert made["stall"]["silent"] == 1 and made["stall"]["known"] == 11
    assert Page(html(made)).says("no answer")


def test_sent_is_what_is_not_unsent() -> None:
    record = many(1)
    record["result"]["streams"][0].update(send_queue=160, unsent=100, receive_queue=7)
    (stream,) = report(record)["streams"]
    assert (stream["sent"], stream["unsent"], stream["receive_queue"]) == (60, 100, 7)
    assert report(record)["queues"] == {"sent": 60, "unsent": 100, "receive_queue": 7}


def test_one_that_was_undone_was_held_up_until_then() -> None:
    record = recorded("rolled-back")
    (undo,) = [one for one in record["account"]["timeline"] if one["phase"] == "roll_back"]
    made = report(record)
    assert made["undone_ms"] == pytest.approx(undo["start_ms"] + undo["ms"])
    assert {one["stall_ms"] for one in made["streams"]} == {made["undone_ms"]}
    page = Page(html(made))
    assert page.says("Rolled back") and page.says("Held up until undone")
    assert page.says(record["result"]["error"]["message"])
    assert page.says("In the phase “restore process”")


@pytest.mark.parametrize("name", NAMES)
def test_every_phase_and_stream_is_on_the_page(name: str) -> None:
    record = recorded(name)
    page = Page(html(report(record)))
    for span in record["account"]["timeline"]:
        assert page.says(span["phase"].replace("_", " "))
    for stream in record["result"]["streams"]:
        assert page.says(stream["remote"])
    for text in (record["id"], record["source"], record["account"]["command"]):
        assert page.says(text)
    if name != "rolled-back":
        assert page.says(f"blackout {milliseconds(record['result']['blackout_ms'])}")
    assert page.says("round by round") is (name == "pre-copy")


def test_one_whose_command_was_killed() -> None:
    made = report(unfinished())
    assert made["outcome"] == "unfinished" and made["stall"] is None
    page = Page(html(made))
    assert page.says("Never came to its end") and page.says(f"migrate recover {made['id']}")


def test_one_that_was_recovered() -> None:
    page = Page(html(report(recovered())))
    assert not page.says("Connections")
    assert page.says("Migrated by migrate recover") and not page.says("The blackout")


def test_where_no_host_reported_what_was_heard_is_drawn() -> None:
    record = recorded("stop")
    record["account"]["timeline"] = []
    assert Page(html(report(record))).says("The hosts did not report their own times")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e300])
def test_times_that_are_none(value: float) -> None:
    record = recorded("stop")
    record["result"]["blackout_ms"] = record["result"]["streams"][0]["wake_ms"] = value
    for span in record["account"]["timeline"][:3]:
        span["start_ms"] = value
    record["account"]["timeline"][4]["ms"] = value
    made = report(record)
    text = html(made)
    assert lines(made) and not re.search(r"\b(nan|inf)\b", re.sub(r"<style>.*</style>", "", text))


# --- the page is harmless


@pytest.mark.parametrize("record", [*map(recorded, NAMES), many(1000), unfinished(), recovered()])
def test_it_needs_nothing_from_elsewhere(record: Any) -> None:
    text = html(report(record))
    page = Page(text)
    assert page.links == [] and "url(" not in text and "@import" not in text
    forbidden = {"script", "link", "iframe", "object", "embed", "img", "form", "base"}
    assert not forbidden & {tag for tag, _ in page.elements}
    assert "default-src 'none'" in text


EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></svg><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "]]><!--",
    "\u202eevil\x00\x1b[2J\udcff",
]


def spoilt(value: Any, text: str) -> Any:
    """The same with a text in place of each that a host or a process has a hand in."""
    if isinstance(value, dict):
        fixed = ("outcome", "role", "phase", "id", "begun")
        return {name: one if name in fixed else spoilt(one, text) for name, one in value.items()}
    if isinstance(value, list):
        return [spoilt(one, text) for one in value]
    return text if isinstance(value, str) else value


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", EVIL)
def test_what_others_have_named_is_text(name: str, text: str) -> None:
    made, page = recorded(name), Page(html(report(spoilt(recorded(name), "harmless"))))
    spoilt_page = html(report(spoilt(made, text)))
    assert Page(spoilt_page).elements == page.elements
    assert not set(spoilt_page) & set("\u202e\x00\x1b\udcff")
    spoilt_page.encode()


def test_a_phase_that_no_one_knows_is_text() -> None:
    record = recorded("stop")
    record["account"]["timeline"][0]["phase"] = EVIL[0]
    assert "script" not in {tag for tag, _ in Page(html(report(record))).elements}


def test_a_terminal_is_not_driven_either() -> None:
    record = spoilt(recorded("rolled-back"), EVIL[-1])
    assert all(line.isprintable() for line in lines(report(record)))


# --- it can be read, with any number of streams


@pytest.mark.parametrize("number", [0, 1, FIRST, FIRST + 1, MOST, MOST + 1, 10_000])
def test_many_streams_are_summarised(number: int) -> None:
    text = html(report(many(number)))
    rows = len(re.findall(r'<td class="end">10\.77\.1\.', text))
    assert rows == (number if number <= MOST else FIRST)
    assert ("<details>" in text) is (FIRST < number <= MOST)
    assert ('class="histogram"' in text) is (number > FIRST)
    assert (f"the other {number - FIRST:,} are in" in text) is (number > MOST)
    assert len(text) < 200_000


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=10, max_size=300))
def test_every_peer_is_in_the_histogram(stalls: list[float]) -> None:
    drawn = chart.histogram(stalls)
    assert sum(one.count for one in drawn.bins) == len(stalls)
    right = 0.0
    for one in drawn.bins:
        assert one.x >= right - 1e-6 and one.height <= 150 + 1e-6 and one.width > 0
        right = one.x + one.width
    assert right <= chart.WIDTH


SPANS = st.lists(
    st.fixed_dictionaries({
        "role": st.sampled_from(["source", "destination"]),
        "phase": st.sampled_from(["lock", "freeze", "ship", "pre_copy", "replay"]),
        "start_ms": st.floats(-1e6, 1e6),
        "ms": st.floats(0, 1e5),
    }),
    min_size=1, max_size=30,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(SPANS, st.none() | st.floats(0.01, 1e5), st.lists(st.floats(0.01, 1e6), max_size=50))
def test_nothing_in_a_timeline_overlaps(
    spans: list[Json], blackout: float | None, wakes: list[float]
) -> None:
    for scale in (chart.window(blackout, wakes, spans), chart.whole(spans)):
        assert scale is not None
        drawn = chart.timeline(spans, scale, blackout, wakes)
        rows = [row for host in drawn.hosts for row in host.rows]
        heights = [*(host.y for host in drawn.hosts), *(row.y for row in rows)]
        assert len(set(heights)) == len(heights) and max(heights, default=0) < drawn.bottom
        for row in rows:
            assert all(chart.GUTTER <= bar.x for bar in row.bars)
            assert all(bar.x + bar.width <= chart.WIDTH for bar in row.bars)
            begins, ends = (
                (row.label_x, row.label_x + 60)
                if row.anchor == "start"
                else (row.label_x - 60, row.label_x)
            )
            assert begins >= chart.GUTTER - 1 and ends <= chart.WIDTH
            if row.anchor != "inside":
                last, first = row.bars[-1], row.bars[0]
                assert begins >= last.x + last.width or ends <= first.x


@pytest.mark.parametrize(("wake", "text"), [(50.0, "at 9"), (900.0, "at 9"), (5000.0, "at 5.0")])
def test_peers_are_on_the_timeline_however_late(wake: float, text: str) -> None:
    record = recorded("stop")
    record["result"]["blackout_ms"] = 45.0
    for one in record["result"]["streams"]:
        one["wake_ms"] = wake
    page = Page(html(report(record)))
    assert page.says("heard again") and page.says(text)


def test_thousands_of_spans_of_one_phase_are_few_bars() -> None:
    spans = [
        {"role": "destination", "phase": "restore_streams", "start_ms": at / 100, "ms": 0.01}
        for at in range(10_000)
    ]
    ((row,),) = [host.rows for host in chart.timeline(spans, chart.whole(spans), 80.0).hosts]
    assert len(row.bars) <= 2 and row.ms == pytest.approx(100.0)


# --- the command


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = tmp_path / "state/streamferry/migrations"
    path.mkdir(parents=True)
    yield path


def keep(directory: Path, *names: str) -> list[str]:
    ids = []
    for name in names:
        record = recorded(name)
        (directory / f"{record['id']}.json").write_text(json.dumps(record))
        ids.append(record["id"])
    return sorted(ids)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run(["report", *arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_the_last(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *_, last = keep(directory, *NAMES)
    status, out, err = said(capsys, "last")
    assert (status, err) == (0, "") and out.startswith(f"{last}: ")
    status, out, _ = said(capsys, "last", "--json")
    assert status == 0 and json.loads(out)["report"]["id"] == last


def test_the_page(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (migration,) = keep(directory, "stop")
    page = tmp_path / "page.html"
    status, out, _ = said(capsys, migration, "--html", str(page))
    assert status == 0 and out == f"The report of {migration} is in {page}\n"
    record = Records().get(migration)
    assert record is not None and page.read_text() == html(report(record))
    assert not (page.stat().st_mode & 0o111)


def test_in_a_terminal(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (migration,) = keep(directory, "rolled-back")
    _, out, _ = said(capsys, migration)
    record = recorded("rolled-back")
    assert "rolled-back" in out and "held up" in out and record["result"]["error"]["message"] in out
    assert all(one["remote"] in out for one in record["result"]["streams"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["last"], "nothing-begun"), (["20260101-000000-abcdef"], "unknown-migration"),
     (["src"], "unknown-migration"), (["../last"], "unknown-migration")],
)  # fmt: skip
def test_where_there_is_none(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str],
    code: str,
) -> None:  # fmt: skip
    page = tmp_path / "page.html"
    status, out, _ = said(capsys, *arguments, "--html", str(page), "--json")
    answer = json.loads(out)
    assert status == 3 and answer["report"] is None and answer["error"]["code"] == code
    status, out, err = said(capsys, *arguments)
    assert status == 3 and out == "" and err.count("error:") == 1 and "hint:" in err
    assert not page.exists()


def test_a_record_that_is_damaged_is_named(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (migration,) = keep(directory, "stop")
    path = directory / f"{migration}.json"
    record = json.loads(path.read_text())
    role = copy.deepcopy(record["account"])
    role["timeline"][0]["role"] = "elsewhere"
    spoilt = ({"account": {"comm": 1}}, {"account": []}, {"result": 5}, {"account": role})
    for spoil in spoilt:
        path.write_text(json.dumps({**record, **spoil}))
        for more in ([], ["--html", str(tmp_path / "page.html")]):
            status, _, err = said(capsys, "last", *more)
            assert status == 3 and str(path) in err
    assert "timeline[0].role" in err and not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(directory, "stop")
    missing = tmp_path / "missing/page.html"
    status, out, err = said(capsys, "last", "--html", str(missing))
    assert status == 3 and out == "" and str(missing) in err


def test_a_page_goes_where_its_path_leads(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(directory, "stop")
    for there in (True, False):
        target, link = tmp_path / f"target-{there}", tmp_path / f"link-{there}"
        if there:
            target.write_text("of before")
        link.symlink_to(target.name)
        assert said(capsys, "last", "--html", str(link))[0] == 0
        assert link.is_symlink() and target.read_text().startswith("<!")


def test_a_pipe_is_written_into_and_stays(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(directory, "stop")
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with ThreadPoolExecutor() as pool:
            read = pool.submit(pipe.read_text)
            assert said(capsys, "last", "--html", str(path))[0] == 0
            assert read.result(10).startswith("<!")
    assert pipe.is_fifo() and link.is_symlink()


def test_a_page_without_a_name(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(directory, "stop")
    status, out, err = said(capsys, "last", "--html", "")
    assert status == 2 and out == "" and "--html: the name of the file is empty" in err


def test_a_record_without_an_account_is_reported_too() -> None:
    record = copy.deepcopy(recorded("stop"))
    record["account"] = None
    assert report(record)["stall"] is not None and lines(report(record))
