"""Durations and sizes as a person writes them: "90s", "1h30m", "512MiB". Pure."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from agent.errors import shown

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhd])")
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[smhd]))+")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(B|[KMGT]iB)")
LONGEST = 366 * 86400.0
LARGEST = 1 << 60  # bytes


def seconds(text: object) -> float:
    """Raises `ValueError` in words for a person."""
    if isinstance(text, bool) or not isinstance(text, str):
        raise ValueError(f"write a duration with its unit, as 30s, 5m or 1h30m, not {shown(text)}")
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a duration: write 30s, 5m or 1h30m")
    total = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    if not 0 < total <= LONGEST:
        raise ValueError(f"{shown(text)} is not between 0 and 366 days")
    return total


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
    """ "1h30m", "90s" as "1m30s", "0.5s" as "500ms"."""
    text, left = "", round(duration * 1000)
    for unit, scale in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        if left >= scale:
            text, left = f"{text}{left // scale}{unit}", left % scale
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
