"""What experiments there are, and what they are made of."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

import orchestrator
from orchestrator.chaos import actions, probes
from orchestrator.chaos.errors import ExperimentInvalid

SHIPPED = Path("playbooks/chaos")


@dataclass(frozen=True, slots=True)
class Listed:
    """An experiment, by what it says of itself."""

    file: str
    title: str
    description: str
    tags: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Activity:
    """An action or a probe of the extension."""

    kind: str  # "action" or "probe"
    name: str
    arguments: str
    about: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def shipped() -> Path:
    """The directory of the experiments that come along: here, or beside the package."""
    beside = Path(orchestrator.__file__).resolve().parents[1] / SHIPPED
    return SHIPPED if SHIPPED.is_dir() else beside


def files(paths: Iterable[Path]) -> list[Path]:
    """Those named, and all in the directories that are."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = path.iterdir()
            found += sorted(one for one in inside if one.suffix in (".yaml", ".yml", ".json"))
        else:
            found.append(path)
    return found


def experiment(path: Path) -> Listed:
    """Raises `ExperimentInvalid`."""
    try:
        found = yaml.safe_load(path.read_text())  # of which JSON is a part
        title, description = str(found["title"]), str(found["description"]).strip()
        return Listed(str(path), title, description, [str(tag) for tag in found.get("tags", [])])
    except OSError as error:
        raise ExperimentInvalid(path=str(path), detail=error.strerror or "") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ExperimentInvalid(path=str(path), detail=" ".join(str(error).split())) from None
    except (KeyError, TypeError, AttributeError):
        detail = "it has no title and description"
        raise ExperimentInvalid(path=str(path), detail=detail) from None


def activities() -> list[Activity]:
    """All of the extension."""
    return [
        Activity(kind, name, _arguments(getattr(module, name)), _about(getattr(module, name)))
        for kind, module in (("action", actions), ("probe", probes))
        for name in module.__all__
    ]


def _arguments(function: Any) -> str:
    return ", ".join(
        name if one.default is one.empty else f"{name}={one.default!r}"
        for name, one in inspect.signature(function).parameters.items()
    )


def _about(function: Any) -> str:
    return " ".join((inspect.getdoc(function) or "").split())
