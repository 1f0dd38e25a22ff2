"""A playbook together with the inventory that it names; or all that is wrong with either."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.inventory import config_files
from orchestrator.playbook.known import Known, default_inventory
from orchestrator.playbook.model import Hosts, Playbook
from orchestrator.playbook.reading import Checked, PlaybookInvalid, read_hosts, read_playbook
from orchestrator.playbook.yaml_source import Problem


@dataclass(slots=True)
class Loaded:
    """`playbook` is None where there are problems, or where there is no file."""

    known: Known
    playbook: Playbook | None = None
    wrong: list[Checked[Playbook] | Checked[Hosts]] = field(default_factory=list)

    def error(self) -> PlaybookInvalid | None:
        """The first of what is wrong."""
        return self.wrong[0].error() if self.wrong else None


def load(path: str | None, hosts: str | None, ssh_config: str | None) -> Loaded:
    """Never raises. `hosts`: the inventory that was asked for, in place of the playbook's own."""
    ssh_files = config_files(ssh_config)
    for file in ssh_files if ssh_config is not None else []:
        if not os.access(file, os.R_OK):  # its hosts would all be unknown
            lacks = Problem(
                0, 0, "", "the ssh configuration cannot be read", "Name another with -F."
            )
            return Loaded(Known([]), None, [Checked(file, None, [lacks])])
    checked = read_playbook(path) if path is not None else None
    named = hosts
    if named is None and checked is not None and checked.hosts is not None:
        named = str(Path(path or "").parent / checked.hosts)
    if named is None and default_inventory().exists():
        named = str(default_inventory())
    inventory = read_hosts(named) if named is not None else None
    known = Known(ssh_files, inventory.value if inventory is not None else None)
    wrong: list[Checked[Playbook] | Checked[Hosts]] = []
    if inventory is not None and inventory.problems:
        wrong.append(inventory)
    elif path is not None:
        checked = read_playbook(path, known)
    if checked is not None and checked.problems:
        wrong.append(checked)
    playbook = checked.value if checked is not None and not wrong else None
    return Loaded(known, playbook, wrong)
