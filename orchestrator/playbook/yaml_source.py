"""Reads YAML into plain values, and remembers where each stands.

What readers of YAML 1.1 and 1.2 take for different things is a problem here, not a guess: `yes`,
`0777`, `1:30`, dates, empty values; so are keys given twice, tags, anchors and merge keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.reader import ReaderError

MAX_BYTES = 256 << 10
TOO_LARGE = f"the file is larger than {MAX_BYTES >> 10} KiB"
MAX_DEPTH = 20
MAX_VALUES = 30_000  # which are parsed within a second
MAX_DIGITS = 100  # of a number: Python itself turns no more than 4300 into an integer
_TAG = "tag:yaml.org,2002:"
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)\.[0-9]*([eE][-+]?[0-9]+)?")
_NO_TEXT = "has half of a character (a surrogate) in it, which cannot be written as UTF-8"
_WRITE_IT = "Write the character itself, or its number as \\UXXXXXXXX."
_A_COMMA = "Within { } a comma ends a value: quote one that has a comma in it."
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


def _is_nothing(node: yaml.Node) -> bool:
    """Whether nothing is written there."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value == ""


def _escaped(text: str) -> str:
    """What of it cannot be written as UTF-8 as `\\ud800`."""
    return text.encode("utf-8", "backslashreplace").decode()


def read(text: str) -> Source:
    """Never raises."""
    source = Source()
    if len(text.encode(errors="replace")) > MAX_BYTES:
        source.problems.append(Problem(0, 0, "", TOO_LARGE, "Make several files of it."))
        return source
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except _TooMuch as error:
        source.problems.append(error.problem)
    except yaml.MarkedYAMLError as error:
        source.problems.append(_syntax(error))
    except ReaderError as error:
        source.problems.append(_unreadable(text, error))
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter: "\\UFFFFFFFF"
        source.problems.append(Problem(0, 0, "", f"the file is not YAML: {error}"))
    else:
        if node is None:
            source.problems.append(Problem(1, 1, "", "the file is empty", "See playbooks/."))
        else:
            value = _Walk(source, text, loader.refused).value(node, ())
            source.value = None if source.problems else value
    return source


_NOT_CLOSED = "Something before it is not closed, or not indented as the rest."
_HINTS = {  # of what the parser says, in the first words that are found in it
    "found undefined alias": "Quote a value that begins with `*`.",
    "expected alphabetic or numeric character": "Quote a value that begins with `*` or `&`.",
    "\\t": "Indent with blanks, not with tabs.",
    "mapping values are not allowed": "Quote a value that has a colon and a blank in it.",
    "another document": "One file has one document: take the `---` out.",
    "undefined tag handle": "Tags are not taken: leave it out, or quote the value.",
    "',' or ']'": "A list that begins with `[` ends with `]`.",
    "',' or '}'": "A map that begins with `{` ends with `}`.",
    "unexpected end of stream": "A quote that was opened is not closed.",
    "expected <block end>": "What belongs together begins in the same column.",
    "could not find expected ':'": "A key is followed by a colon and a blank.",
    "cannot start any token": "Quote a value that begins with such a character.",
}


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
    said = f"{error.problem or error.context}"
    whole = f"{error.context} {error.problem}"
    hint = next((one for words, one in _HINTS.items() if words in whole), _NOT_CLOSED)
    begun = error.context_mark
    if begun is not None and begun.line + 1 < line:
        said += f" ({error.context} that begins in line {begun.line + 1})"
    return Problem(line, column, "", f"the file is not YAML: {said}", hint)


def _unreadable(text: str, error: ReaderError) -> Problem:
    before = text[: error.position]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    code = ord(error.character) if isinstance(error.character, str) else error.character
    message = f"the file is not YAML: it has the character U+{code:04X}"
    return Problem(line, column, "", message, "Take it out; in double quotes: \\xXX or \\uXXXX.")


class _TooMuch(Exception):
    def __init__(self, mark: yaml.Mark, message: str, hint: str) -> None:
        self.problem = Problem(mark.line + 1, mark.column + 1, "", message, hint)


class _Loader(yaml.SafeLoader):
    """Follows no alias, and ends at once where there is too much; notes what is not taken."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.refused: dict[int, tuple[str, str]] = {}  # id of a node -> what is wrong, a hint
        self._depth = self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._count += 1
        if self._count > MAX_VALUES:
            message = f"the file has more than {MAX_VALUES} keys and values"
            raise _TooMuch(event.start_mark, message, "Make several files of it.")
        if self._depth > MAX_DEPTH:
            message = f"this is nested too deeply: more than {MAX_DEPTH} levels"
            raise _TooMuch(event.start_mark, message, "No playbook needs so many.")
        start, end = event.start_mark, event.end_mark
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            stands = yaml.ScalarNode(f"{_TAG}str", "", start, end)
            self._refuse(stands, f"the alias `*{event.anchor}` is not taken", "Write it out here.")
            return stands
        anchor, event.anchor = event.anchor, None
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None
        if event.tag is not None:
            tag = event.tag.replace(_TAG, "!!")
            self._refuse(node, f"the tag `{tag}` is not taken", "Leave it out.")
        if anchor is not None:
            self._refuse(node, f"the anchor `&{anchor}` is not taken", "Leave it out.")
        return node

    def _refuse(self, node: yaml.Node, message: str, hint: str) -> None:
        self.refused[id(node)] = (message, hint)


class _Walk:
    """Turns nodes into values, and notes places and problems."""

    def __init__(self, source: Source, text: str, refused: dict[int, tuple[str, str]]) -> None:
        self._source, self._text, self._refused = source, text, refused

    def value(self, node: yaml.Node, path: Path) -> Any:
        mark = node.start_mark
        self._source.marks[path] = (mark.line + 1, mark.column + 1)
        if (wrong := self._refused.get(id(node))) is not None:
            self._refuse(path, *wrong)
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(one, (*path, place)) for place, one in enumerate(node.value)]
        assert isinstance(node, yaml.MappingNode)
        return self._mapping(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        cut = False
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            key = _escaped(self._key(key_node))
            shown, here = key[:60], (*path, key)
            place = (mark.line + 1, mark.column + 1)
            if here in self._source.keys:
                first = self._source.keys[here][0]
                self._source.problems.append(
                    Problem(*place, named(here), f"the key `{shown}` is given twice, first in line "
                            f"{first}", "Take one of them out.")
                )  # fmt: skip
                continue
            self._source.keys[here] = place
            if node.flow_style and _is_nothing(value_node):
                if not cut:  # the others are of the same value, which had commas in it
                    self._refuse(here, f"`{shown}` has no value", _A_COMMA, key=True)
                cut = True
            elif (wrong := self._refused.get(id(key_node))) is not None:
                self._refuse(here, *wrong, key=True)
            elif key_node.tag == f"{_TAG}merge":
                self._refuse(here, "merge keys (`<<`) are not taken", "Write it out.", key=True)
            elif not isinstance(key_node, yaml.ScalarNode):
                kind = "list" if isinstance(key_node, yaml.SequenceNode) else "map"
                self._refuse(
                    here, f"a key is a word, and `{shown}` is a {kind}",
                    "Quote a value that has brackets or braces in it.", key=True,
                )  # fmt: skip
            elif not key:
                self._refuse(here, "there is no key before the colon", "Give one.", key=True)
            elif key_node.tag != f"{_TAG}str":
                self._refuse(here, f"the key `{shown}` is not read as text", "Quote it.", key=True)
            elif key != key_node.value:
                self._refuse(here, f"the key `{shown}` {_NO_TEXT}", _WRITE_IT, key=True)
            else:
                found[key] = self.value(value_node, here)
        return found

    def _key(self, node: yaml.Node) -> str:
        """As it stands in the file, where it is no plain word."""
        if isinstance(node, yaml.ScalarNode):
            return str(node.value)
        return " ".join(self._text[node.start_mark.index : node.end_mark.index].split())

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        kind, text = node.tag.removeprefix(_TAG), str(node.value)
        if _escaped(text) != text:
            self._refuse(path, f"the text {_NO_TEXT}", _WRITE_IT)
            return None
        if node.style is not None:
            return text
        if kind in ("int", "float") and len(text) > MAX_DIGITS:
            message = f"a number of {len(text)} characters is too long"
            self._refuse(path, message, f"It has at most {MAX_DIGITS}; or quote it.")
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
