"""Chaos experiments against the lab: an extension of the Chaos Toolkit, and `migrate chaos run`.

    hosts       the lab's containers, and what is done to them from outside
    network     cuts, losses and rates between named parties
    disks, clocks, journals     a full disk, a clock that is off, a damaged journal
    command     the command `migrate` as a process
    workloads   what is moved, and the clients that count
    experiment  what an experiment asks for, checked
    session     one experiment: what it has begun, and how all of that is undone
    control     what an experiment names to have a session; actions, probes: what it does in it
    running, report, catalogue     `migrate chaos run` and `list`

Only `control`, `actions` and `probes` are named by experiments; docs/chaos.md has how. No module
here imports another package of the extra `chaos` before it is needed.
"""
