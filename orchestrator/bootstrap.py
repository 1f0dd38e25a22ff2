"""What is sent to a host to make it an agent: one command and one archive, nothing installed.

The command reads four bytes of length and a zip of the package `agent` from its stdin into
a memfd, puts that at the front of `sys.path` and runs `agent.__main__`. It uses no quotes,
newlines or signs that a login shell (sh, csh, fish) would read within single quotes.
"""

from __future__ import annotations

import io
import struct
import zipfile
from functools import cache
from pathlib import Path

import agent
from agent.errors import AgentError
from orchestrator.errors import (
    AgentDied,
    ModulesMissing,
    PythonMissing,
    PythonTooOld,
)

_CODE = (
    "import os,sys;"
    'sys.version_info<(3,11)and sys.exit("streamferry: python-too-old %d.%d"%sys.version_info[:2]);'
    "b=bytearray();"
    "r=lambda n:[b.extend(os.read(0,n-len(b))or sys.exit(71))for _ in iter(lambda:len(b)<n,False)];"
    'r(4);r(4+int.from_bytes(b[:4],"big"));'
    'm=os.memfd_create("streamferry-agent");os.write(m,memoryview(b)[4:]);'
    'sys.path[:]=["/proc/self/fd/%d"%m]+[p for p in sys.path if p];'
    "from agent.__main__ import main;main()"
)
COMMAND = f"exec python3 -c '{_CODE}'"
_LENGTH = struct.Struct("!I")
_EPOCH = (1980, 1, 1, 0, 0, 0)


@cache
def archive() -> bytes:
    """The package `agent` as a zip behind its length; equal for equal files."""
    root = Path(agent.__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as target:
        for path in sorted(root.rglob("*")):
            if path.is_dir() or "__pycache__" in path.parts:
                continue
            name = Path("agent", path.relative_to(root)).as_posix()
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(info, path.read_bytes())
    data = buffer.getvalue()
    return _LENGTH.pack(len(data)) + data


def explain_end(host: str, status: int | None, stderr: str) -> AgentError:
    """Why an agent ended, from its exit status (None: unknown) and the end of its stderr."""
    for line in stderr.splitlines():
        if line.startswith("streamferry: python-too-old "):
            return PythonTooOld(host=host, version=line.rsplit(" ", 1)[1])
        if line.startswith("streamferry: modules-missing "):
            return ModulesMissing(host=host, modules=line.rsplit(" ", 1)[1])
    if status == 127:
        return PythonMissing(host=host)
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = said[-1] if said else "it said nothing"
    ended = "the session ended" if status is None else f"exit status {status}"
    return AgentDied(host=host, detail=f"{ended}; {last:.300}")
