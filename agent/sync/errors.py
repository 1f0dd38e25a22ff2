"""What can go wrong while files are brought. Nothing of it is undone at the destination."""

from __future__ import annotations

from agent.errors import AgentError


class SyncFull(AgentError):
    code = "sync-full"
    template = "no room is left at the destination for the files to bring: {detail}"
    hint_template = "Make room there, then run the migration again: it brings what is missing."


class SyncFailed(AgentError):
    code = "sync"
    template = "files could not be brought to the destination: {detail}"
    hint_template = "Mend what rsync names, or put the files there by hand and leave --sync out."


class SyncPathBlocked(AgentError):
    code = "sync-path"
    template = "{path} cannot be brought to the destination: {detail}"
    hint_template = "Move what is in the way at the destination, or name another path with --sync."


class SyncDiffers(AgentError):
    code = "sync-different"
    template = "{path} ({use} of process {pid}) is not the same at the destination: {detail}"
    hint_template = "Bring it along with `--sync {path}`, or put the same file there."


class SyncRestless(AgentError):
    code = "sync-restless"
    template = (
        "{mebibytes} MiB of the files change faster than they are brought, among them {path}: "
        "some {seconds} s more, with the process standing still"
    )
    hint_template = "Move when they are quieter, or raise --max-blackout to over twice that."


class SyncTooMany(AgentError):
    code = "sync-too-many"
    template = (
        "the directories to bring have {entries} files: {seconds} s to look through, with the "
        "process standing still"
    )
    hint_template = "Name less with --sync, or raise --max-blackout to over four times that."
