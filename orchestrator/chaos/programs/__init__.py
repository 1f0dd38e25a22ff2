"""Clients that run on a host of the lab, by themselves: they import nothing of ours."""
