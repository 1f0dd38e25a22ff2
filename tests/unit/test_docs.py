"""The generated pages say what the code says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@pytest.mark.parametrize(
    "generator", ["make_protocol.py", "make_troubleshooting.py", "make_playbooks.py"]
)
def test_generated_pages_are_up_to_date(generator: str) -> None:
    command = [sys.executable, str(DOCS / generator), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def codes() -> Iterator[str]:
    """The code of every error class, from the source: a loader may forget a module."""
    for path in [*ROOT.glob("agent/**/*.py"), *ROOT.glob("orchestrator/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                for line in node.body:
                    match line:
                        case ast.Assign([ast.Name("code")], ast.Constant(str() as code)):
                            yield code


def test_every_error_has_a_line_in_troubleshooting() -> None:
    found = set(codes())
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", (DOCS / "troubleshooting.md").read_text(), re.M)
    assert len(found) > 60 and found <= set(listed), sorted(found - set(listed))


@pytest.mark.parametrize("path", [ROOT / "README.md", *ROOT.glob("docs/*.md")], ids=str)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path} links to {target}"
