"""Reads YAML into plain values, and remembers where each stands.

What readers of YAML 1.1 and 1.2 take for different things is a problem here, not a guess: `yes`,
`0777`, `1:30`, dates, empty values; so are keys given twice, tags, anchors and merge keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 256 << 10  # which takes some seconds to parse at worst
TOO_LARGE = f"the file is larger than {MAX_BYTES >> 10} KiB"
MAX_DEPTH = 20
MAX_DIGITS = 100  # of a number: Python itself turns no more than 4300 into an integer
_TAG = "tag:yaml.org,2002:"
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)\.[0-9]*([eE][-+]?[0-9]+)?")
_NO_TEXT = "has half of a character (a surrogate) in it, which cannot be written as UTF-8"
_WRITE_IT = "Write the character itself, or its number as \\UXXXXXXXX."
_ONLY_IN_1_2 = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+|0o[0-7]+")

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong with a file."""

    line: int  # from 1; 0 where it is the file as a whole
    column: int
    path: str  # "drains[0].workloads[1].health"
    message: str
    hint: str = ""


@dataclass(slots=True)
class Source:
    """A file as it was read. `value` is None where there are problems with the YAML itself."""

    value: Any = None
    marks: dict[Path, tuple[int, int]] = field(default_factory=dict)  # (line, column) of values
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)  # and of the keys before them
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: Path, message: str, hint: str = "", *, key: bool = False) -> Problem:
        """A problem with what stands at `path`, or with its key; with the nearest that is there."""
        near = path
        places = self.keys if key else self.marks
        while near not in places and near:
            near, places = near[:-1], self.marks
        line, column = places.get(near, (0, 0))
        return Problem(line, column, named(path), message, hint)


def named(path: Path) -> str:
    """ "drains[0].node" """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _escaped(text: str) -> str:
    """What of it cannot be written as UTF-8 as `\\ud800`."""
    return text.encode("utf-8", "backslashreplace").decode()


def read(text: str) -> Source:
    """Never raises."""
    source = Source()
    if len(text.encode(errors="replace")) > MAX_BYTES:
        source.problems.append(Problem(0, 0, "", TOO_LARGE))
        return source
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        source.problems.append(_syntax(error))
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter: "\\UFFFFFFFF"
        source.problems.append(Problem(0, 0, "", f"the file is not YAML: {error}"))
    except RecursionError:
        source.problems.append(Problem(0, 0, "", "the file is nested too deeply"))
    else:
        if node is None:
            source.problems.append(Problem(1, 1, "", "the file is empty"))
        else:
            value = _Walk(source).value(node, ())
            source.value = None if source.problems else value
    return source


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
    message = f"the file is not YAML: {error.problem or error.context}"
    hint = ""
    if "alias" in f"{error.context} {error.problem}":
        hint = "Quote a value that begins with `*` or `&`."
    elif "\\t" in str(error.problem):
        hint = "Indent with blanks, not with tabs."
    elif "mapping values are not allowed" in str(error.problem):
        hint = "Quote a value that has a colon and a blank in it."
    return Problem(line, column, "", message, hint)


class _Walk:
    """Turns nodes into values, and notes places and problems."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._seen: set[int] = set()

    def value(self, node: yaml.Node, path: Path) -> Any:
        mark = node.start_mark
        self._source.marks[path] = (mark.line + 1, mark.column + 1)
        if id(node) in self._seen:
            self._refuse(path, "anchors and aliases are not taken", "Write it out at both places.")
            return None
        self._seen.add(id(node))
        if len(path) > MAX_DEPTH:
            self._refuse(path, "this is nested too deeply")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            self._refuse(path, f"tags are not taken, `{node.tag}` neither", "Leave the tag out.")
        if isinstance(node, yaml.SequenceNode):
            return [self.value(one, (*path, place)) for place, one in enumerate(node.value)]
        assert isinstance(node, yaml.MappingNode)
        return self._mapping(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            shown = _escaped(str(getattr(key_node, "value", ""))[:60])
            here = (*path, shown)
            place = (mark.line + 1, mark.column + 1)
            if here in self._source.keys:
                first = self._source.keys[here][0]
                self._source.problems.append(
                    Problem(*place, named(here), f"the key `{shown}` is given twice, first in line "
                            f"{first}", "Take one of them out.")
                )  # fmt: skip
                continue
            self._source.keys[here] = place
            if key_node.tag == f"{_TAG}merge":
                self._refuse(here, "merge keys (`<<`) are not taken", "Write it out.", key=True)
            elif not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_TAG}str":
                self._refuse(here, f"the key `{shown}` is not read as text", "Quote it.", key=True)
            elif (key := _escaped(key_node.value)) != key_node.value:
                self._refuse(here, f"the key `{shown}` {_NO_TEXT}", _WRITE_IT, key=True)
            else:
                found[key] = self.value(value_node, (*path, key))
        return found

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        kind, text = node.tag.removeprefix(_TAG), str(node.value)
        if _escaped(text) != text:
            self._refuse(path, f"the text {_NO_TEXT}", _WRITE_IT)
            return None
        if node.style is not None or kind not in (
            "str", "int", "float", "bool", "null", "timestamp", "value", "merge",
        ):  # fmt: skip
            if kind != "str":
                self._refuse(path, f"tags are not taken, `{node.tag}` neither", "Leave it out.")
            return text
        if kind in ("int", "float") and len(text) > MAX_DIGITS:
            self._refuse(path, f"a number of {len(text)} characters is too long")
            return None
        if kind == "bool" and text in ("true", "false"):
            return text == "true"
        if kind == "int" and _DECIMAL.fullmatch(text):
            return int(text)
        if kind == "float" and _FLOAT.fullmatch(text):
            return float(text)
        if kind == "str" and not _ONLY_IN_1_2.fullmatch(text):
            return text
        if kind == "null":
            self._refuse(path, "there is no value", "Give one, or leave the key out.")
        elif kind == "bool":
            self._refuse(
                path,
                f"`{text}` is true or false to some readers of YAML, and text to others",
                "Write true or false, or quote it.",
            )
        else:
            self._refuse(
                path,
                f"`{text}` is a {'date' if kind == 'timestamp' else 'number'} to some readers of "
                "YAML, and something else to others",
                "Quote it, or write a plain decimal number.",
            )
        return None

    def _refuse(self, path: Path, message: str, hint: str = "", *, key: bool = False) -> None:
        self._source.problems.append(self._source.problem(path, message, hint, key=key))
