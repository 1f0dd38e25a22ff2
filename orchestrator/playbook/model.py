"""The one schema of playbooks and of the inventory, `hosts.yaml`.

docs/playbook.schema.json, docs/hosts.schema.json and the tables in docs/playbooks.md are generated
from it (docs/make_playbooks.py): each field's description is what a user reads.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from agent.plan import DEFAULT_IMAGES_DIR, DEFAULT_MAX_BLACKOUT, MAX_ROUNDS
from agent.sync.paths import MAX_PATHS
from orchestrator.memory import no_rounds
from orchestrator.playbook.quantities import Duration, Size, spelt
from orchestrator.playbook.values import (
    AbsolutePath,
    Address,
    Bandwidth,
    Blackout,
    Brought,
    Distinct,
    HostName,
    ImagesDir,
    InventoryName,
    Label,
    LabelKey,
    LabelValue,
    Line,
    Name,
    Network,
    Pattern,
    Port,
    Reason,
    Unit,
    Url,
    Version,
)  # fmt: skip

MOVE_BACK, STOP, GO_ON = "move-back", "stop", "go-on"
SPREAD, PACK = "spread", "pack"
RUN_ONCE, WAIT = "run-once", "wait"
MAX_WORKLOADS = 1000
MAX_HOSTS = 100  # of a drain


class Part(BaseModel):
    """A part of a playbook: nothing in it that is not known, and nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Select(Part):
    """Which process trees are meant. All that is given must hold."""

    pid_file: AbsolutePath | None = Field(None, description="A file on the node with the PID.")
    command: Pattern | None = Field(
        None, description="A regular expression, searched for in the command line, as `pgrep -f`."
    )
    port: Port | None = Field(None, description="A TCP port that it listens on.")
    address: Address | None = Field(None, description="An address that its TCP sockets have.")
    unit: Unit | None = Field(None, description="Its systemd unit, as redis.service.")
    label: Label | None = Field(
        None, description="One of its labels, KEY=VALUE: of STREAMFERRY_LABELS, as it was started."
    )

    @model_validator(mode="after")
    def _something(self) -> Select:
        if not self.model_fields_set:
            raise ValueError("nothing is selected: give one of " + ", ".join(Select.model_fields))
        return self


class TcpCheck(Part):
    """It accepts connections."""

    port: Port = Field(description="The port.")
    address: Address | None = Field(
        None, description="Where; its first service address unless given, or 127.0.0.1."
    )


class Health(Part):
    """How to see at the destination that a workload is well: one of tcp, http, command."""

    tcp: TcpCheck | None = Field(None, description="It accepts connections.")
    http: Url | None = Field(None, description="A URL that answers with a status below 400.")
    command: Line | None = Field(
        None, description="A line for the destination's shell that ends with status 0."
    )
    within: Duration = Field(
        30.0,
        json_schema_extra={"default": "30s"},
        description="How long it may take until it is well.",
    )

    @model_validator(mode="after")
    def _one(self) -> Health:
        if sum(one is not None for one in (self.tcp, self.http, self.command)) != 1:
            raise ValueError("give one of tcp, http and command")
        return self


class Limits(Part):
    """When a migration is given up, and undone."""

    per_gib: Duration | None = Field(
        None, description="The longest that each GiB of memory may take (at least one is counted)."
    )
    no_progress: Duration | None = Field(
        None, description="The longest without any sign that it gets on."
    )


class Migrate(Part):
    """How each is moved: the options of `migrate SRC DST`."""

    max_blackout: Blackout = Field(
        DEFAULT_MAX_BLACKOUT,
        json_schema_extra={"default": spelt(DEFAULT_MAX_BLACKOUT)},
        description="Roll back rather than stand still for longer.",
    )
    memory: Literal["auto", "stop", "pre-copy", "post-copy"] = Field(
        "auto", description="How the memory goes; see `migrate --help`."
    )
    max_rounds: Annotated[int, Field(ge=0, le=MAX_ROUNDS)] | None = Field(
        None, description="Rounds of memory ahead; as many as suit the mode unless given."
    )
    bandwidth: Bandwidth | None = Field(
        None, description="At most so much a second of what goes before the freeze."
    )
    sync: Annotated[list[Brought], Distinct] = Field(
        default_factory=list,
        max_length=MAX_PATHS,
        description="Files and directories that are brought first.",
    )
    sync_open: bool = Field(
        False, description="Bring the files that it has open or mapped, where they differ."
    )
    images_dir: ImagesDir = Field(
        DEFAULT_IMAGES_DIR, description="Where images rest on both hosts; a tmpfs."
    )
    addresses: Annotated[list[Address], Distinct] = Field(
        default_factory=list, description="Service addresses that no socket shows."
    )
    without_missing_options: bool = Field(
        False, description="Go without TCP options that the destination lacks."
    )

    @field_validator("max_rounds")
    @classmethod
    def _rounds(cls, rounds: int | None, info: ValidationInfo) -> int | None:
        wrong = no_rounds(rounds, info.data.get("memory", "auto"), "max_rounds", "memory:")
        if wrong:
            raise ValueError(wrong)
        return rounds


class Workload(Part):
    """What is to be moved."""

    name: Name = Field(description="How it is called here; where several match, NAME@PID.")
    select: Select = Field(description="Which process trees it is.")
    optional: bool = Field(False, description="It may be that nothing is found.")
    group: Name | None = Field(None, description="Its group, for budgets.")
    after: Annotated[list[Name], Distinct] = Field(
        default_factory=list, description="Those that have to come to their end before."
    )
    to: Annotated[list[HostName], Distinct] | None = Field(
        None,
        min_length=1,
        max_length=MAX_HOSTS,
        description="Where it may go; all of the drain's unless given.",
    )
    health: Health | None = Field(None, description="How to see that it is well.")
    on_unhealthy: Literal["move-back", "stop", "go-on"] | None = Field(
        None,
        description="Where it is not: move it back, begin nothing more, or go on.",
    )
    limits: Limits | None = Field(None, description="When its migration is given up.")
    migrate: Migrate | None = Field(None, description="How it is moved.")


class Budget(Part):
    """How many of a group may be unavailable at once: on the move, or not well after it."""

    group: Name = Field(description="The group.")
    at_most: Annotated[int, Field(ge=1, le=MAX_WORKLOADS)] = Field(
        description="How many; with 0 nothing of the group could ever be moved."
    )


class WhenEmpty(Part):
    """What follows once nothing that was meant is left on the node, and it is cordoned."""

    run: list[Line] = Field(
        min_length=1,
        max_length=100,
        description="A command and its arguments, run on this machine, by no shell.",
    )
    back_within: Duration | None = Field(
        None,
        description="Then the node restarts: wait until it is back, and uncordon it.",
    )


class Drain(Part):
    """One host that is emptied, or of which some workloads are moved away."""

    node: HostName = Field(description="The host.")
    to: list[HostName] = Field(
        min_length=1,
        max_length=MAX_HOSTS,
        description="Where the workloads go: hosts, or KEY=VALUE for those with a label.",
    )
    cordon: bool = Field(
        True, description="Nothing migrates onto the node from then on (`migrate uncordon`)."
    )
    reason: Reason = Field("", description="Why, for whoever meets the cordon.")
    max_parallel: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="How many migrations at once."
    )
    placement: Literal["spread", "pack"] = Field(
        "spread", description="Spread them evenly, or fill one host after the other."
    )
    on_failure: Literal["go-on", "stop"] = Field(
        "go-on", description="Whether one that cannot be moved ends it for those not begun yet."
    )
    workloads: list[Workload] | None = Field(
        None,
        min_length=1,
        max_length=MAX_WORKLOADS,
        description="What is moved, in this order; all with a service address unless given.",
    )
    budgets: list[Budget] = Field(
        default_factory=list, max_length=MAX_WORKLOADS, description="What must stay available."
    )
    when_empty: WhenEmpty | None = Field(None, description="What follows once the node is empty.")


class Defaults(Part):
    """What holds for each workload that does not say otherwise."""

    on_unhealthy: Literal["move-back", "stop", "go-on"] = Field(
        "move-back", description="What follows where one is not well."
    )
    limits: Limits = Field(default_factory=Limits, description="When a migration is given up.")
    migrate: Migrate = Field(default_factory=Migrate, description="How each is moved.")


class Schedule(Part):
    """When `migrate schedule serve` runs it."""

    cron: Line = Field(description="Five fields: minute, hour, day, month, day of the week.")
    time_zone: Line = Field("UTC", description="A name of the tz database, as Europe/Berlin.")
    jitter: Duration | None = Field(
        None, description="Begin up to so much later; for the same run always the same."
    )
    window: Duration | None = Field(
        None, description="It ends within so much of its time: then nothing more is begun."
    )
    grace: Duration | None = Field(
        None, description="A run that begins no more than so much too late is not missed; 1m."
    )
    missed: Literal["skip", "run-once"] = Field(
        "skip",
        description="What becomes of runs whose time passed while nobody was there; `run-once`: "
        "the last of them is run.",
    )
    overlap: Literal["skip", "wait"] = Field(
        "skip", description="What becomes of a run whose predecessor is still at work."
    )


class Playbook(Part):
    """A playbook."""

    playbook: Version = Field(description="The version of this schema.")
    description: str = Field("", description="What it is for.")
    hosts: Line | None = Field(
        None, description="The inventory, relative to this file; the user's own unless given."
    )
    defaults: Defaults = Field(
        default_factory=Defaults, description="What holds for each workload."
    )
    drains: list[Drain] = Field(min_length=1, max_length=100, description="Run in this order.")
    schedule: Schedule | None = Field(None, description="When it is run.")


class Capacity(Part):
    """What a host takes in at most."""

    workloads: Annotated[int, Field(ge=0)] | None = Field(
        None, description="How many workloads a drain may bring."
    )
    memory: Size | None = Field(None, description="How much memory they may have, all together.")


class Policies(Part):
    """What a host is used for."""

    accept: bool = Field(True, description="Whether a drain may bring anything.")
    max_incoming: Annotated[int, Field(ge=1)] | None = Field(
        None, description="How many migrations to it at once."
    )


class Host(Part):
    """A host, named as ssh reaches it."""

    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, description="Its labels.")
    capacity: Capacity = Field(default_factory=Capacity, description="What it takes at most.")
    service_network: Annotated[list[Network], Distinct] = Field(
        default_factory=list, description="Networks of the service addresses, to find workloads by."
    )
    policies: Policies = Field(default_factory=Policies, description="What it is used for.")


class Hosts(Part):
    """The inventory, hosts.yaml."""

    inventory: Version = Field(description="The version of this schema.")
    hosts: dict[InventoryName, Host] = Field(min_length=1, description="By name.")
