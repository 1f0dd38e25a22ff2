"""Playbooks and the inventory: YAML that is checked in full before any host is touched.

`model` has the one schema, `yaml_source` reads files and knows where everything stands, `reading`
puts both together, `rules` has what a schema cannot say.
"""
