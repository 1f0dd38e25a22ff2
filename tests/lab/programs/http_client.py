"""Downloads one URL, slowly until "go" comes on stdin.

Usage: http_client.py URL RATE (bytes a second). Prints "ready" after the first MiB, then
{"sha256": str, "received": int, "error": str}.
"""

import hashlib
import json
import select
import sys
import time
import urllib.request

URL, RATE = sys.argv[1], int(sys.argv[2])
digest = hashlib.sha256()
received = 0
error = ""
slow = True
try:
    begin = time.monotonic()
    with urllib.request.urlopen(URL, timeout=60) as response:
        while data := response.read(1 << 16):
            digest.update(data)
            received += len(data)
            if slow and received == 1 << 20:
                print("ready", flush=True)
            while slow and received > RATE * (time.monotonic() - begin):
                if select.select([sys.stdin], [], [], 0.005)[0] and sys.stdin.readline():
                    slow = False
        length = int(response.headers["Content-Length"])
        if received != length:
            error = f"{received} of {length} bytes"
except Exception as failure:
    error = repr(failure)
print(json.dumps({"sha256": digest.hexdigest(), "received": received, "error": error}), flush=True)
