"""Files that the process needs, brought to the destination by rsync inside the link.

`source` and `destination` are the two ends; what may be brought and where is in `paths`.
"""
