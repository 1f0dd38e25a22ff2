"""A disk of a host that gets full. A small tmpfs takes the place of what is to be filled.

It stands for the disk of that one directory, so that the machine below is never filled. What is
there when it is mounted, and when it is taken away again, is carried over.
"""

from __future__ import annotations

from orchestrator.chaos.errors import ActionFailed
from orchestrator.chaos.hosts import IMAGES, JOURNALS, Hosts

DISKS = {"journal": JOURNALS, "images": IMAGES}
_FILLER = ".chaos-filler"


def place(what: str) -> str:
    """The directory of a disk by its name. Raises `ActionFailed`."""
    if what not in DISKS:
        raise ActionFailed(detail=f"there is no disk {what!r}; it is one of {', '.join(DISKS)}")
    return DISKS[what]


def limit(hosts: Hosts, host: str, what: str, kib: int) -> None:
    """Let the disk have room for so much in all."""
    where = place(what)
    hosts.run(host, f"""
        set -e
        install -d -m 700 {where}
        keep=$(mktemp -d)
        cp -a {where}/. $keep
        mount -t tmpfs -o size={kib}k,mode=700 chaos {where}
        cp -a $keep/. {where}
        rm -r $keep
    """)  # fmt: skip


def fill(hosts: Hosts, host: str, what: str) -> None:
    """Leave no room at all on a disk that was limited. Raises `ActionFailed`."""
    where = place(what)
    hosts.run(host, f"mountpoint -q {where}")
    hosts.run(host, f"cat /dev/zero > {where}/{_FILLER} 2>/dev/null; "
                    f"test $(stat -f -c %a {where}) = 0")  # fmt: skip


def free(hosts: Hosts, host: str, what: str) -> None:
    """The room is there again; the limit stays. Idempotent."""
    hosts.run(host, f"rm -f {place(what)}/{_FILLER}")


def release(hosts: Hosts, host: str, what: str) -> None:
    """The disk as it was, with what is left there. Idempotent."""
    where = place(what)
    hosts.run(host, f"""
        mountpoint -q {where} || exit 0
        set -e
        rm -f {where}/{_FILLER}
        keep=$(mktemp -d)
        cp -a {where}/. $keep
        umount -l {where}
        cp -a $keep/. {where}
        rm -r $keep
        rmdir {IMAGES} 2>/dev/null || true
    """)  # fmt: skip
