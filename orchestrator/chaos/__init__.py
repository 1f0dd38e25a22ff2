"""Chaos experiments against the lab."""
