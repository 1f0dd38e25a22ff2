"""The memory of a process that travels beside CRIU's images.

Private anonymous memory may be sent ahead, page by page, while the process runs (`reader`), is kept
at the destination (`store`), and given to the restored process as it touches it, or before
(`pager`). CRIU dumps and restores the rest, and is told that this part comes lazily.
"""
