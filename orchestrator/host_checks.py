"""Whether two hosts can work together at all, whatever the process. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from agent.probe.facts import HostFacts, validate
from orchestrator.refusals import Refusal, arranged, refusal

CRIU_NEEDED = (4, 2)


def check_hosts(
    source_name: str, destination_name: str, source_host: object, destination_host: object
) -> list[Refusal]:
    """Why the two hosts cannot work together, whatever the process. Raises `ProtocolError`."""
    source = validate(source_host, HostFacts, f"the facts of {source_name}")
    destination = validate(destination_host, HostFacts, f"the facts of {destination_name}")
    return arranged(host_refusals(source_name, destination_name, source, destination))


def host_refusals(
    source: str, destination: str, source_host: HostFacts, destination_host: HostFacts
) -> Iterator[Refusal]:
    """What is wrong with the hosts, unordered."""
    names = {"source": source, "destination": destination}
    if source_host["identity"] == destination_host["identity"]:
        yield refusal("same-machine", **names)
    if source_host["machine"] != destination_host["machine"]:
        theirs, ours = source_host["machine"], destination_host["machine"]
        yield refusal("architecture", **names, theirs=theirs, ours=ours)
    else:
        lacking = sorted(set(source_host["cpu_flags"]) - set(destination_host["cpu_flags"]))
        if lacking:
            yield refusal("cpu-features", **names, flags=" ".join(lacking))
    yield from _host(source, source_host)
    yield from _host(destination, destination_host)
    if destination_host["choose_pid"] is not None:
        yield refusal("choose-pid", host=destination, detail=destination_host["choose_pid"])
    if destination_host["raw_socket"] is not None:
        yield refusal("raw-sockets", host=destination, detail=destination_host["raw_socket"])


def _host(name: str, facts: HostFacts) -> Iterator[Refusal]:
    """What both hosts need."""
    lacking = facts["missing_capabilities"]
    if lacking:
        yield refusal("capabilities-missing", host=name, uid=facts["uid"], names=", ".join(lacking))
    criu = facts["criu"]
    version = criu["version"]
    if criu["path"] is None:
        yield refusal("criu-missing", host=name)
    elif version is not None and tuple(version[:2]) < CRIU_NEEDED:
        yield refusal(
            "criu-too-old",
            host=name,
            version=".".join(map(str, version)),
            kernel=facts["kernel"],
            reason=_criu_reason(tuple(version[:2]), facts["kernel"]),
        )
    elif criu["problem"] is not None:
        yield refusal("criu-unusable", host=name, detail=criu["problem"])
    for code, detail in (
        ("nftables", facts["nftables"]),
        ("sock-diag", facts["sock_diag"]),
        ("tcp-repair", facts["tcp_repair"]),
        ("packet-sockets", facts["packet_socket"]),
    ):
        if detail is not None:
            yield refusal(code, host=name, detail=detail)
    images = facts["images"]
    if images["problem"] is not None:
        yield refusal("images-dir", host=name, path=images["path"], detail=images["problem"])


def _criu_reason(version: tuple[int, ...], kernel: str) -> str:
    """What an old CRIU cannot do on this kernel, in words."""
    parts = kernel.split("-")[0].split(".")[:2]
    release = tuple(int(part) if part.isdecimal() else 0 for part in parts)
    if version < (4, 1) and release >= (6, 13):
        return "it cannot start there, as the kernel lays out its vdso in another way since 6.13"
    if release >= (6, 16):
        return (
            "it cannot dump any TCP or UDP socket there, as it asks each for SO_PASSCRED, "
            "which the kernel refuses since 6.16"
        )
    return "4.2 is the first that is known to work"
