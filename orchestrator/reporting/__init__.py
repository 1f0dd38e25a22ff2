"""The report of one migration, from its record: for programs, for a terminal, as one page."""
