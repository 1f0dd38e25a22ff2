"""The part of Streamferry that runs on each host, over the stdio of an SSH session."""

__version__ = "0.1.0"
PROTOCOL_VERSION = 1
