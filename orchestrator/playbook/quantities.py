"""Durations and sizes as a person writes them: "90s", "1h30m", "512MiB". Pure."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from agent.errors import shown

# In decimal numbers: what is read, written and read again is the same to the last bit.
_SECONDS = {
    "d": Decimal(86400), "h": Decimal(3600), "m": Decimal(60), "s": Decimal(1),
    "ms": Decimal("0.001"),
}  # fmt: skip
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhd])")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[smhd]))+")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(B|[KMGT]iB)")
SHORTEST, LONGEST = Decimal("0.001"), Decimal(366 * 86400)  # seconds
LARGEST = 1 << 60  # bytes


def seconds(text: object) -> float:
    """Raises `ValueError` in words for a person."""
    if isinstance(text, bool) or not isinstance(text, str):
        raise ValueError(f"write a duration with its unit, as 30s, 5m or 1h30m, not {shown(text)}")
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a duration: write 30s, 5m or 1h30m")
    total = sum(Decimal(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    if not SHORTEST <= total <= LONGEST:
        raise ValueError(f"{shown(text)} is not between 1ms and 366 days")
    return float(total)


def size(text: object) -> int:
    """Bytes. Raises `ValueError` in words for a person."""
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"write a size with its unit, as 512MiB or 4GiB, not {shown(text)}")
    bytes_ = Decimal(match[1]) * _BYTES[match[2]]
    if bytes_ > LARGEST:
        raise ValueError(f"{shown(text)} is more than {LARGEST >> 40}TiB")
    return int(bytes_)


def spelt(duration: float) -> str:
    """ "1h30m", "90s" as "1m30s", "0.5s" as "500ms". What `seconds` gives it reads again."""
    text, left = "", Decimal(repr(duration))
    for unit, scale in _SECONDS.items():
        count = left / scale if unit == "ms" else left // scale
        if count:
            text, left = f"{text}{count.normalize():f}{unit}", left - count * scale
    return text or "0s"


Duration = Annotated[
    float,
    BeforeValidator(seconds),
    PlainSerializer(spelt, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION.pattern}$", "examples": ["30s"]}),
]
Size = Annotated[
    int,
    BeforeValidator(size),
    PlainSerializer(lambda number: f"{number}B", return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_SIZE.pattern}$", "examples": ["4GiB"]}),
]
