"""Pages with a part that a program writes, below a mark; what is above is written by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def renew(target: Path, mark: str, generate: Callable[[], str]) -> None:
    """Write the part anew; with --check only see whether it is up to date, and exit."""
    current = target.read_text()
    written, found, _ = current.partition(mark)
    if not found:
        raise SystemExit(f"{target.name} has lost the line {mark.strip()}")
    page = written + mark + generate()
    if "--check" in sys.argv:
        sys.exit(0 if current == page else f"{target.name} is not up to date")
    target.write_text(page)
