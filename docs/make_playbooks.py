"""Write the JSON Schemas for editors, and the tables in docs/playbooks.md: `... [--check]`."""

from __future__ import annotations

import json
import sys
import typing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pydantic import BaseModel  # noqa: E402
from pydantic_core import PydanticUndefined  # noqa: E402

from docs.generated import renew  # noqa: E402
from orchestrator.playbook import model  # noqa: E402

DOCS = Path(__file__).parent
TARGET = DOCS / "playbooks.md"
MARK = "<!-- generated below by docs/make_playbooks.py -->\n"
SCHEMAS: dict[str, type[BaseModel]] = {
    "playbook.schema.json": model.Playbook,
    "hosts.schema.json": model.Hosts,
}
PARTS: list[type[BaseModel]] = [
    model.Playbook, model.Defaults, model.Drain, model.Workload, model.Select, model.Health,
    model.TcpCheck, model.Limits, model.Migrate, model.Budget, model.WhenEmpty, model.Schedule,
    model.Hosts, model.Host, model.Capacity, model.Policies,
]  # fmt: skip


def schema(name: str) -> str:
    made = SCHEMAS[name].model_json_schema()
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
    return json.dumps(whole, indent=1) + "\n"


def generated() -> str:
    """A table for each part."""
    lines: list[str] = []
    for part in PARTS:
        about = (part.__doc__ or "").strip()
        lines += ["", f"### {part.__name__}", "", about, ""]
        lines += ["| key | value | unless given | |", "| --- | --- | --- | --- |"]
        properties = part.model_json_schema()["properties"]
        for name, known in part.model_fields.items():
            default = properties[name].get("default", "") if not known.is_required() else "needed"
            if default is None or default == "" or known.default is PydanticUndefined:
                default = "needed" if known.is_required() else ""
            shown = f"`{json.dumps(default)}`" if default not in ("", "needed") else default
            said = _shape(known.annotation, properties[name])
            lines.append(f"| `{name}` | {said} | {shown} | {known.description} |")
    return "\n".join(lines) + "\n"


def _shape(annotation: object, about: dict[str, typing.Any]) -> str:
    """What stands there, for a person."""
    options = [one for one in about.get("anyOf", [about]) if one.get("type") != "null"]
    one = options[0]
    if "$ref" in one:
        name = one["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in one:
        return f"`{one['const']}`"
    if "enum" in one:
        return ", ".join(f"`{choice}`" for choice in one["enum"])
    if one.get("type") == "array":
        return f"list of {_shape(None, one['items'])}"
    if one.get("type") == "object":
        inner = one.get("additionalProperties", {})
        return f"map to {_shape(None, inner)}" if inner else "map"
    if "examples" in one:
        return f"as `{one['examples'][0]}`"
    return {"integer": "number", "string": "text", "boolean": "`true`, `false`"}[one["type"]]


def main() -> None:
    for name in SCHEMAS:
        path, made = DOCS / name, schema(name)
        if "--check" not in sys.argv:
            path.write_text(made)
        elif not path.exists() or path.read_text() != made:
            sys.exit(f"{name} is not up to date")
    renew(TARGET, MARK, generated)


if __name__ == "__main__":
    main()
