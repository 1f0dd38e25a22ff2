"""Emptying a host: find its workloads, place them, move them within budgets, see them well.

Pure, without I/O or clock: `states` (the table), `scheduler`, `placement`, `selection`.
Adapters: `survey` asks the hosts, `mover` moves one, `journal` keeps it on disk, `drain` ties them.
"""
