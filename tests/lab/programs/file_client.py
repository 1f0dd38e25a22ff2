"""Passes lines of its stdin on to a server over one connection, and the answers back.

Usage: file_client.py HOST PORT.
"""

import json
import socket
import sys

with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    answers = sock.makefile("r")
    print("ready", flush=True)
    for line in sys.stdin:
        sock.sendall(line.encode())
        print(answers.readline().strip() or "closed", flush=True)
print(json.dumps({"errors": []}), flush=True)
