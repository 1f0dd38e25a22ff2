"""What CRIU is told nothing of is all there: heaps, stacks of threads, and what may not be paged
out."""

from __future__ import annotations

import pytest

from tests.lab.test_memory import _PAGER
from tests.support.lab import HOSTS, SERVICE, Lab
from tests.support.workloads import start_server

_PORT = 7000


def ask(lab: Lab) -> str:
    told = "exec 3<>/dev/tcp/%s/%d; echo >&3; read -t 30 line <&3; echo $line"
    return lab.run("client", f"bash -c '{told % (SERVICE, _PORT)}'")


@pytest.mark.parametrize(("options", "how"), [
    (("--memory", "pre-copy"), ()), (("--memory", "post-copy"), ()),
    (("--memory", "post-copy", "--max-rounds", "0"), ()), (("--memory", "post-copy"), ("locked",)),
], ids=["pre-copy", "post-copy", "all of it later", "locked"])  # fmt: skip
def test_stacks_and_heap_of_a_process_with_threads(
    lab: Lab, options: tuple[str, ...], how: tuple[str, ...]
) -> None:
    pid = start_server(lab, SERVICE, _PORT, "deep_stacks.py", *how)
    before = ask(lab)
    assert len(before.split()) == 5 and ask(lab) == before
    migration = lab.migrate("src", "dst", pid, *options)
    assert migration.status == 0, (migration.result["error"], migration.stderr)
    assert ask(lab) == before
    for host in HOSTS:
        lab.settle(host)
        assert not lab.run(host, f"pgrep -f '{_PAGER}' || true")
