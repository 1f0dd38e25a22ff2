"""What of the files is brought, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import ProtocolError
from agent.plan import Plan
from agent.probe.facts import FileFacts, FileProblem
from agent.sync.look import SyncFacts, SyncPath
from orchestrator.errors import UsageProblem
from orchestrator.plan import Options, plan
from orchestrator.sync import Seen, Wish, to_look_at
from tests.support.facts import Case

DATA, LOG, PROGRAM, LIBRARY = "/srv/d/data", "/srv/d/log", "/opt/app/bin", "/usr/lib/libx.so"


def file(path: str, **over: Any) -> FileFacts:
    facts: dict[str, Any] = {
        "path": path, "kind": "file", "size": 10, "mode": 0o100644, "mtime_ns": 0, "build_id": "",
        "digest": "", "written": False, "pid": 5000, "use": "mapped",
    }  # fmt: skip
    return FileFacts(**{**facts, **over})  # type: ignore[typeddict-item]


def problem(path: str, kind: str = "missing") -> FileProblem:
    return FileProblem(path=path, problem=kind, detail="", pid=5000, use="mapped")


def at(path: str, kind: str = "file", real: str = "") -> SyncPath:
    return SyncPath(path=path, real=real or path, kind=kind)


def case(wish: Wish, files: list[FileFacts], problems: list[FileProblem]) -> Case:
    one = Case(options=Options(sync=wish))
    one.process["files"], one.found["files"] = files, problems
    return one


def judge(one: Case, **over: SyncPath) -> Any:
    """`over`: what the hosts have there, as "here" or "there", in place of equal files."""
    wish = one.options.sync
    paths = to_look_at(wish, one.process, one.found)
    here = [over.get("here", at(path)) for path in paths]
    there = [over.get("there", {**row, "kind": "missing"}) for row in here]
    rsync = over.get("rsync")
    seen = Seen(SyncFacts(rsync=None, paths=here), SyncFacts(rsync=rsync, paths=there))  # type: ignore[typeddict-item]
    facts = (one.source, one.destination, one.process, one.found)
    return plan("src", "dst", *facts, one.options, seen)


def codes(made: Any) -> list[str]:
    assert isinstance(made, list), made
    return [one.code for one in made]


def test_without_a_difference_is_refused_with_the_option_that_helps() -> None:
    (refused,) = case(Wish(), [file(DATA)], [problem(DATA)]).judge()  # type: ignore[misc]
    assert refused.code == "file-missing" and f"--sync {DATA}" in refused.hint


def test_what_is_open_and_differs_is_brought() -> None:
    files = [file(DATA), file(LOG, written=True), file(PROGRAM), file(LIBRARY)]
    made = judge(case(Wish(opened=True), files, [problem(PROGRAM, "different"), problem(LIBRARY)]))
    assert isinstance(made, Plan)
    assert made.sync_files == (PROGRAM, LOG, LIBRARY) and not made.sync_dirs  # DATA is the same


def test_what_the_distribution_has_is_brought_where_it_is_missing_alone() -> None:
    one = case(Wish(opened=True), [file(LIBRARY)], [problem(LIBRARY, "different")])
    assert codes(judge(one)) == ["file-different"]
    one.options = Options(sync=Wish((LIBRARY,), True))
    assert judge(one).sync_files == (LIBRARY,)


def test_a_fifo_is_brought_as_a_file_is() -> None:
    one = case(Wish(opened=True), [file(DATA, kind="fifo")], [problem(DATA)])
    assert judge(one, here=at(DATA, "fifo")).sync_files == (DATA,)


def test_what_is_named_is_brought_with_all_in_it() -> None:
    one = case(Wish(("/srv/d",), True), [file(DATA, written=True)], [problem(DATA)])
    made = judge(one, here=at("/srv/d", "directory"))
    assert (made.sync_dirs, made.sync_files) == (("/srv/d",), ())


def test_directories_that_it_is_in_are_made() -> None:
    files = [file("/srv/d", kind="directory"), file("/srv/e", kind="directory")]
    made = judge(case(Wish(opened=True), files, [problem("/srv/d")]))
    assert made.sync_places == ("/srv/d",) and made.syncs


def test_another_kind_is_refused_whatever_is_brought() -> None:
    one = case(Wish(("/srv/d",)), [file(DATA)], [problem(DATA, "other")])
    assert codes(judge(one, here=at("/srv/d", "directory"))) == ["file-different"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"here": at("/srv/d", "missing")}, "no such file on src"),
        ({"here": at("/srv/d", "link", "/mnt/d")}, "/mnt/d; name this"),
        ({"here": at("/srv/d", "device")}, "neither a file nor a directory"),
        ({"there": at("/srv/d", "file", "/mnt/d")}, "on dst that leads to /mnt/d"),
        ({"here": at("/srv/d", "directory"), "there": at("/srv/d")}, "not a directory"),
    ],
)
def test_paths_that_cannot_be_brought(rows: dict[str, SyncPath], words: str) -> None:
    (refused,) = judge(case(Wish(("/srv/d",)), [], []), **rows)
    assert refused.code == "sync-path" and words in refused.message


def test_without_rsync() -> None:
    one = case(Wish(("/srv/d",)), [], [])
    (refused,) = judge(one, rsync="it is not installed")  # type: ignore[arg-type]
    assert refused.code == "rsync" and "on dst: it is not installed" in refused.message


@pytest.mark.parametrize(
    "path", ["/", "srv", "/srv/../etc", "/proc/1", "/etc", "/run/streamferry/x"]
)
def test_paths_that_are_none_are_usage(path: str) -> None:
    with pytest.raises(UsageProblem):
        Options(sync=Wish((path,)))


def test_hosts_that_answer_something_else() -> None:
    one = case(Wish(("/srv/d",)), [], [])
    with pytest.raises(ProtocolError):
        judge(one, there=at("/srv/e"))
