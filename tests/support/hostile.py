"""What a hostile peer says: calls, events and records with one thing or another wrong with them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import asyncssh
import msgpack
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from agent import host_id
from agent.plan import MAX_PID, Plan
from agent.wire.frames import MAX_FRAME, Message

ID = "20261125-120000-abcdef"
PATHS = (
    "",
    ".",
    "..",
    "/",
    "../../etc/passwd",
    f"{ID}/..",
    f"../{ID}",
    "/etc/shadow\0",
    "x" * 5000,
)
HOST_ID = "0123456789abcdef" * 2
KEY = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
PLAN = Plan(ID, MAX_PID, (MAX_PID,), (), (), 1 << 20, False)  # no process has this PID

# Repeatable: the examples are the same in each run. Not shrunk: that would take its time.
repeatable = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


def left_in(*places: Path) -> list[str]:
    """Files below these directories, but for the host's own id."""
    files = (path for place in places for path in place.rglob("*") if path.is_file())
    return [str(path) for path in files if path.name != host_id.FILE]


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 4, 5, 6, 10, 65536, 1 << 31, 1 << 40, (1 << 64) - 1, -(1 << 63)])
    | st.sampled_from([0.5, 2.0, 4.0, -1.0, 1e300, float("inf"), float("nan")])
    | st.sampled_from(PATHS)
    | st.text(max_size=10)
    | st.binary(max_size=10)
)
values = st.recursive(
    scalars | st.sampled_from([nested(400), {"a": nested(300)}, [0] * 1000]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 5), inner, max_size=4)
    ),
    max_leaves=6,
)


@st.composite
def spoilt(draw: st.DrawFn, value: Any) -> Any:
    """A value in which something, at whatever depth, is another thing, missing or too many."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        copy = dict(value)
        name = draw(st.sampled_from(sorted(copy, key=repr)))
        match draw(st.integers(0, 7)):
            case 0:
                del copy[name]
            case 1:
                copy[draw(st.text(max_size=4))] = draw(values)
            case _:
                copy[name] = draw(spoilt(copy[name]))
        return copy
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        items = list(value)
        at = draw(st.integers(0, len(items) - 1))
        match draw(st.integers(0, 7)):
            case 0:
                del items[at]
            case 1:
                items[at : at + 1] = [items[at]] * draw(st.sampled_from([2, 300]))
            case _:
                items[at] = draw(spoilt(items[at]))
        return items
    return draw(values)


PREPARE: dict[str, Any] = {"plan": PLAN.to_wire()}
LINK = {"addresses": ["127.0.0.1"], "port": 1, "host_key": KEY, "host_id": HOST_ID, "zstd": True}
CALLS: dict[str, dict[str, Any]] = {
    "probe.host": {"images_dir": "/run/streamferry"},
    "probe.process": {"pid": MAX_PID},
    "probe.destination": {"process": {}, "images_dir": "/run/streamferry"},
    "sync.look": {"paths": ["/srv/streamferry-hostile", "/etc/hostname"]},
    "source.prepare": PREPARE,
    "source.run": {"link": LINK},
    "source.cancel": {},
    "source.resolve": {"committed": True},
    "destination.prepare": {**PREPARE, "client_key": KEY, "source_id": HOST_ID},
    "destination.run": {},
    "probe.workloads": {"pid_files": ["/run/a.pid"]},
    "journal.list": {},
    "recovery.settle": {"migration": ID, "role": "source", "word": "failed", "patience": 0.1},
    "recovery.forget": {"migration": ID},
}
names = st.sampled_from([*CALLS, "", "__init__", "source", "source.prepare ", "eval", "x" * 1000])


@st.composite
def calls(draw: st.DrawFn) -> Message:
    """A call that may be all right, but for its place."""
    name = draw(names)
    args = CALLS.get(name, {})
    args = draw(spoilt(args)) if draw(st.integers(0, 2)) else args
    return {"id": draw(st.integers(0, 3)), "call": name, "args": args}


relayed = st.fixed_dictionaries(
    {
        "event": st.just("relay"),
        "data": st.just({"data": b"SF"}) | st.just({"data": b""}) | spoilt({"data": b"x"}),
    }
)
messages = st.one_of(
    calls(),
    calls(),
    calls(),
    relayed,
    calls().flatmap(spoilt).filter(lambda value: isinstance(value, dict)),
)


def packed(message: Any, length: int | None = None) -> bytes:
    """A frame, of whatever length it says it has."""
    body: bytes = msgpack.packb(message, use_bin_type=True, unicode_errors="surrogatepass")
    return struct.pack("!I", len(body) if length is None else length) + body


@st.composite
def broken_frames(draw: st.DrawFn) -> bytes:
    """Bytes that are, as a whole, hardly ever a frame."""
    frame = bytearray(packed(draw(calls())))
    match draw(st.integers(0, 5)):
        case 0:
            return draw(st.binary(min_size=1, max_size=200))
        case 1:
            at = draw(st.integers(0, len(frame) - 1))
            frame[at] ^= 1 << draw(st.integers(0, 7))
        case 2:
            del frame[draw(st.integers(1, len(frame) - 1)) :]
        case 3:
            length = draw(st.sampled_from([0, 1, 3, 100, MAX_FRAME, MAX_FRAME + 1, 0xFFFFFFFF]))
            frame[:4] = struct.pack("!I", length)
        case 4:
            at = draw(st.integers(4, len(frame) - 1))
            frame[at:at] = draw(st.binary(min_size=1, max_size=8))
            frame[:4] = struct.pack("!I", len(frame) - 4)
        case 5:
            body = draw(st.sampled_from([b"\x91", b"\x81\xa1a", b"\xdd\xff\xff\xff\xff", b"\x80"]))
            body *= draw(st.sampled_from([1, 500, 1023, 1024, 100_000]))
            return struct.pack("!I", len(body)) + body
    return bytes(frame)
