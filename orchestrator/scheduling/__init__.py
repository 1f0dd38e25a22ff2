"""Runs playbooks at the times that they carry: `migrate schedule` does this.

`times` and `deciding` are pure: when a run is due, and what becomes of it. `store` keeps what was
decided, `books` reads the playbooks, `working` drains, and `server` has them all work together.

A run is claimed, with its due time as the key and the ids that its drains will have, in one
transaction, before anything of it is begun. Whoever finds it claimed goes on with those ids: a
drain's own journal then tells whether and how far it had come. So none is lost and none is doubled.
"""
