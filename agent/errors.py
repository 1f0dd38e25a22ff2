"""Errors that cross the wire: each class has a code, a message, a hint and an exit status.

An error is described by its class and its fields alone, so it can be sent as
`{"code", "fields"}` and is rebuilt, with the same words, by the other side.
"""

from __future__ import annotations

import itertools
import traceback
from pathlib import Path
from typing import Any, ClassVar

Field = str | int | float

EXIT_MIGRATED = 0
EXIT_ROLLED_BACK = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_IN_DOUBT = 4

_MAX_FIELDS = 32
_MAX_FIELD = 4000  # characters


class AgentError(Exception):
    """Base of everything an agent reports. Subclasses fill in the class variables.

    `template` and `hint_template` are `str.format` patterns over the fields.
    """

    code: ClassVar[str] = "internal"
    template: ClassVar[str] = "{detail}"
    hint_template: ClassVar[str] = "This is a fault in Streamferry; please report it."
    exit_status: ClassVar[int] = EXIT_ROLLED_BACK

    _registry: ClassVar[dict[str, type[AgentError]]] = {}

    def __init_subclass__(cls) -> None:
        if cls.code in AgentError._registry:
            raise TypeError(f"error code {cls.code!r} is used twice")
        AgentError._registry[cls.code] = cls

    def __init__(self, **fields: Field) -> None:
        self.fields = fields
        self.message = self.template.format(**fields)
        self.hint = self.hint_template.format(**fields)
        super().__init__(self.message)

    def to_wire(self) -> dict[str, Any]:
        return {"code": self.code, "fields": self.fields}


def internal(error: BaseException) -> AgentError:
    """A fault of our own, as an error that can be reported; says where it was: the last two of the
    calls that led to it."""
    calls = traceback.extract_tb(error.__traceback__)[-2:]
    places = ", ".join(f"{Path(one.filename).name}:{one.lineno}" for one in calls)
    return AgentError(
        detail=f"{type(error).__name__}: {error}" + (f" ({places})" if places else "")
    )


def is_known(code: str) -> bool:
    """Whether a loaded class has this code."""
    return code == AgentError.code or code in AgentError._registry


class Foreign(AgentError):
    """An error whose class is not loaded here; it passes on as it came."""

    code = "foreign"
    template = "{detail}"

    def __init__(self, code: str, fields: dict[str, Field]) -> None:
        super().__init__(detail=f"{code}: {fields}"[:500])
        self._wire = {"code": code[:_MAX_FIELD], "fields": fields}

    def to_wire(self) -> dict[str, Any]:
        return self._wire


def shown(value: object, size: int = 60) -> str:
    """The beginning of what came from elsewhere, for a message, whatever its size and depth."""
    if isinstance(value, str | bytes):
        return repr(value[:size])[:size]
    if isinstance(value, list | tuple | dict):
        return f"{type(value).__name__} of {len(value)}"
    return repr(value)[:size]


def from_wire(wire: object) -> AgentError:
    """Rebuild an error from `to_wire()`; anything malformed becomes a `ProtocolError`."""
    try:
        if not isinstance(wire, dict):
            raise TypeError("not a map")
        code, fields = wire["code"], _fields(wire["fields"])
        if isinstance(code, str) and not is_known(code):
            return Foreign(code, fields)
        cls = AgentError if code == AgentError.code else AgentError._registry[code]
        return cls(**fields)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return ProtocolError(detail=f"an error that cannot be read: {shown(wire, 200)}")


def _fields(wire: Any) -> dict[str, Field]:
    """Only what a field can be, and not more of it than anybody would read."""
    fields: dict[str, Field] = {}
    for key, one in itertools.islice(wire.items(), _MAX_FIELDS):
        if isinstance(one, str):
            one = one[:_MAX_FIELD]
        elif not isinstance(one, int | float):
            one = shown(one)
        fields[key[:_MAX_FIELD] if isinstance(key, str) else shown(key)] = one
    return fields


class ProtocolError(AgentError):
    """The other side broke the protocol (its fault, not ours)."""

    code = "protocol"
    template = "the other side broke the protocol: {detail}"
    hint_template = "Check that nothing on the remote host prints to a non-interactive login."


class AlreadyRun(AgentError):
    code = "already-run"
    template = "the migration of this agent as its {role} runs already, or is over"
    hint_template = "An agent serves one migration once; start another one for the next."


class VersionMismatch(AgentError):
    code = "version"
    template = "protocol version {theirs} was offered, this side speaks {ours}"
    hint_template = "Use one version of Streamferry for both."


class Cancelled(AgentError):
    code = "cancelled"
    template = "cancelled during {phase}"
    hint_template = "The process goes on at the source; run the migration again when ready."


class BlackoutExceeded(AgentError):
    code = "blackout-exceeded"
    template = "the blackout would have been longer than {limit_s} s (in {phase})"
    hint_template = "Raise --max-blackout, or migrate when the process is smaller or quieter."


class PeerLost(AgentError):
    """The link to the other agent ended."""

    code = "link-lost"
    template = "the link between the two hosts broke during {phase}: {detail}"
    hint_template = "Check the network between the hosts, then run the migration again."


class FaultInjected(AgentError):
    code = "fault"
    template = "fault injected at {point}"
    hint_template = "This error was asked for with --fault."
