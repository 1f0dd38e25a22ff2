"""What single values of a playbook may be, each refused in words for a person. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Hashable
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from agent.bandwidth import MAX_RATE, MIN_RATE
from agent.cordon import LONGEST
from agent.errors import AgentError, shown
from agent.plan import MAX_BLACKOUT_LIMIT
from agent.sync.paths import why_not
from orchestrator.inventory import parse_target
from orchestrator.playbook.quantities import Duration, Size, spelt

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_PATH = r"^/[^\x00-\x1f\x7f]*$"
_LABEL_KEY, _LABEL_VALUE = "[A-Za-z0-9][A-Za-z0-9._/-]{0,62}", "[A-Za-z0-9._/-]{0,63}"
LABEL = f"^{_LABEL_KEY}={_LABEL_VALUE}$"
_UNIT = r"^[A-Za-z0-9:_.\\@-]+$"
FORMS = {  # in words
    _NAME: "a name: up to 63 letters, digits, `.`, `_` and `-`, the first a letter or a digit",
    _PATH: "an absolute path",
    LABEL: "a label, as app=worker: letters, digits, `.`, `_`, `/` and `-` around a `=`",
    f"^{_LABEL_KEY}$": "the key of a label: letters, digits, `.`, `_`, `/` and `-`",
    f"^{_LABEL_VALUE}$": "the value of a label: letters, digits, `.`, `_`, `/` and `-`",
    _UNIT: "the name of a unit, as redis.service",
}
_T = TypeVar("_T", bound=Hashable)


def _version(given: object) -> object:
    if type(given) is not int or given != 1:  # True is 1, and 1.0 too
        said = str(given).lower() if isinstance(given, bool) else shown(given)
        raise ValueError(f"this must be the number 1, not {said}")
    return given


def _distinct(values: list[_T]) -> list[_T]:
    seen: set[_T] = set()
    for one in values:
        if one in seen:
            raise ValueError(f"{shown(one)} is in the list twice: take one out")
        seen.add(one)
    return values


def _words(text: str) -> str:
    """May go over several lines, as a script for the shell does."""
    if not text.strip():
        raise ValueError("there are only blanks")
    if bad := next((one for one in text if not one.isprintable() and one not in "\t\n"), ""):
        raise ValueError(f"{shown(text)} has the character {ascii(bad)}: take it out")
    return text


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{shown(text)} is not one line of text")
    return text


def why_no_host(text: str) -> str:
    """Why it is no [user@]host[:port], in words; "" where it is one."""
    try:
        parse_target(text)
    except AgentError as error:
        return error.message
    return ""


def _host_name(text: str) -> str:
    if why := why_no_host(text):
        raise ValueError(why)
    return text


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    return text


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network: {error}") from None


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        host, user, _port = parts.hostname, parts.username, parts.port
    except ValueError as error:
        raise ValueError(f"{shown(text)} is not an http:// URL: {error}") from None
    if parts.scheme != "http" or not host or set(text) & set(" \t\n") or not text.isprintable():
        raise ValueError(f"{shown(text)} is not an http:// URL, as http://10.0.0.1:8080/health")
    if user is not None or parts.password is not None:
        raise ValueError(f"{shown(text)} has a user: no password is sent")
    return text


def _brought(path: str) -> str:
    if (reason := why_not(path)) is not None:
        raise ValueError(f"{path!r} cannot be brought: {reason}")
    return path


def _directory(path: str) -> str:
    if path == "/" or {".", ".."} & set(path.split("/")):
        raise ValueError(f"{path!r} is not an absolute path without `.` and `..`")
    return path


def _rate(size: int) -> int:
    if not MIN_RATE <= size <= MAX_RATE:
        raise ValueError(f"a bandwidth is between {MIN_RATE} and {MAX_RATE} bytes a second")
    return size


def _blackout(duration: float) -> float:
    if duration > MAX_BLACKOUT_LIMIT:
        raise ValueError(f"a blackout is no longer than {spelt(MAX_BLACKOUT_LIMIT)}")
    return duration


Version = Annotated[Literal[1], BeforeValidator(_version)]
Name = Annotated[str, StringConstraints(pattern=_NAME)]
HostName = Annotated[str, StringConstraints(min_length=1, max_length=255)]
AbsolutePath = Annotated[str, StringConstraints(pattern=_PATH, max_length=1000)]
Label = Annotated[str, StringConstraints(pattern=LABEL)]
LabelKey = Annotated[str, StringConstraints(pattern=f"^{_LABEL_KEY}$")]
LabelValue = Annotated[str, StringConstraints(pattern=f"^{_LABEL_VALUE}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Pattern = Annotated[
    str,
    StringConstraints(min_length=1, max_length=500),
    AfterValidator(_words),
    AfterValidator(_pattern),
]
Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_network)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2000), AfterValidator(_url)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=4000), AfterValidator(_words)]
Unit = Annotated[str, StringConstraints(pattern=_UNIT, max_length=255)]
Distinct = AfterValidator(_distinct)
InventoryName = Annotated[HostName, AfterValidator(_host_name)]
Reason = Annotated[str, StringConstraints(max_length=LONGEST), AfterValidator(_one_line)]
Brought = Annotated[AbsolutePath, AfterValidator(_brought)]
ImagesDir = Annotated[AbsolutePath, AfterValidator(_directory)]
Bandwidth = Annotated[Size, AfterValidator(_rate)]
Blackout = Annotated[Duration, AfterValidator(_blackout)]
