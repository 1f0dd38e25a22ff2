"""The pictures of docs/screens, of a real drain and a real migration in the lab.

Run by hand: `python lab/screens.py`; it needs `chromium`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SCREENS = ROOT / "docs/screens"
_STATE = tempfile.TemporaryDirectory(prefix="screens-")
os.environ["XDG_STATE_HOME"] = _STATE.name

from orchestrator.draining.beginning import ask  # noqa: E402
from orchestrator.draining.conductor import Conductor  # noqa: E402
from orchestrator.draining.view import Table, table  # noqa: E402
from orchestrator.migration.driver import Driver, Request  # noqa: E402
from orchestrator.playbook.loading import load  # noqa: E402
from orchestrator.records import Records  # noqa: E402
from orchestrator.report import Silent  # noqa: E402
from orchestrator.reporting.model import report  # noqa: E402
from orchestrator.reporting.page import html  # noqa: E402
from tests.lab.test_drain import start_six, workloads  # noqa: E402
from tests.support.lab import ALL, SERVICE, SSH_CONFIG, Lab  # noqa: E402
from tests.support.workloads import start_redis  # noqa: E402

_COMMAND = "migrate drain src --playbook six.yaml"


class Kept(Table):
    """The live table, as it is drawn; keeps the drawing in which most is going on."""

    def __init__(self) -> None:
        super().__init__()
        self.best: tuple[int, Any] = (-1, None)

    def begin(self, node: str) -> None:
        self._node = node

    def end(self) -> None: ...

    def note(self, text: str) -> None: ...

    def changed(self, item: Any) -> None:
        super().changed(item)
        self._keep()

    def progress(self, item: Any, phase: str, done: int, total: int) -> None:
        super().progress(item, phase, done, total)
        self._keep()

    def _keep(self) -> None:
        found = [one.state for one in self._items.values()]
        much = 10 * len(set(found)) + found.count("moved") + 3 * len(self._progress)
        if much >= self.best[0]:
            items = [one.model_copy(deep=True) for one in self._items.values()]
            self.best = much, table(self._node, items, dict(self._progress))


def drain(lab: Lab) -> None:
    """Six workloads, two at a time, over two hosts."""
    lab.hosts = ALL
    lab.clear()
    start_six(lab)
    one = {
        "node": "src", "to": ["dst", "spare"], "max_parallel": 2, "workloads": workloads(),
        "budgets": [{"group": "cache", "at_most": 1}],
    }  # fmt: skip
    playbook = Path(_STATE.name, "six.yaml")
    playbook.write_text(json.dumps({"playbook": 1, "drains": [one]}))  # which is YAML, too
    loaded = load(str(playbook), None, str(SSH_CONFIG))
    assert loaded.playbook is not None, loaded.wrong
    (meant,) = loaded.playbook.drains
    asked = ask(meant, loaded.playbook.defaults, loaded.known)
    view = Kept()
    conductor = Conductor(str(SSH_CONFIG), view, Records())
    with ExitStack() as clients:
        for address in (SERVICE, "10.77.0.101"):
            client = lab.client("redis_counter.py", address, 6379, 4, 1, 0.002)
            clients.enter_context(client).line()
        view.begin("src")
        result = asyncio.run(conductor.drain(asked, False))
    assert result["outcome"] == "drained", result
    _terminal("drain", view.best[1])
    lab.clear()


def _terminal(name: str, drawn: Any) -> None:
    from rich.console import Console

    console = Console(record=True, width=84, file=open(os.devnull, "w"), force_terminal=True)
    console.print(f"$ {_COMMAND}", highlight=False)
    console.print(drawn)
    text = console.export_svg(title="migrate drain", unique_id="drain")
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.S)  # no font from elsewhere
    (SCREENS / f"{name}.svg").write_text(re.sub(r"[ \t]+$", "", text, flags=re.M))


def page(lab: Lab) -> None:
    """A Redis under load, on one page."""
    lab.hosts = ALL
    lab.clear()
    pid = start_redis(lab)
    records = Records()
    with lab.client("redis_counter.py", SERVICE, 6379, 8, 20, 0.0005) as client:
        client.line()
        request = Request("src", "dst", pid, str(SSH_CONFIG))
        result = asyncio.run(Driver(request, Silent(), records).migrate())
    assert result["outcome"] == "migrated", result
    record = records.get(result["id"])
    assert record is not None
    file = Path(_STATE.name, "page.html")
    file.write_text(html(report(record)))
    for name, scheme in (("report", "1"), ("report-dark", "0")):
        picture(file, SCREENS / f"{name}.png", scheme)
    lab.clear()


def picture(file: Path, to: Path, scheme: str) -> None:
    """As a browser shows it; `scheme`: Blink's preferred colours, "0" for dark."""
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1160,1300",
         f"--screenshot={to}", file.as_uri()],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip


if __name__ == "__main__":
    SCREENS.mkdir(exist_ok=True)
    drain(Lab())
    page(Lab())
