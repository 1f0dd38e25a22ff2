"""A worker without any connection: it counts, and writes the count down now and then.

Usage: worker.py FILE
"""

import os
import sys
import time

count = 0
while True:
    count += 1
    with open(f"{sys.argv[1]}.new", "w") as file:
        file.write(str(count))
    os.replace(f"{sys.argv[1]}.new", sys.argv[1])
    time.sleep(0.05)
