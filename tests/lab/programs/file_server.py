"""A TCP server that holds files open in all the ways that a migration may meet.

Usage: file_server.py HOST PORT DIRECTORY. Each line of a client is a command, its answer a line:
append TEXT   to DIRECTORY/log (O_APPEND, write only)
write AT TEXT into DIRECTORY/data, read and written at an offset
digest        SHA-256 of data and of log as read through new descriptors, and of the deleted file
new NAME      open another file for writing, and keep it
grow N        start to append N bytes to log every millisecond (0: stop)
It holds DIRECTORY/deleted open, and has deleted it, and has its working directory there.
"""

import hashlib
import os
import selectors
import socket
import sys
import time

host, port, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.chdir(directory)
log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
data = os.open("data", os.O_RDWR | os.O_CREAT, 0o600)
deleted = os.open("deleted", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
os.write(deleted, b"only here" * 1000)
os.unlink("deleted")
kept = []
grows = 0
lines = 0


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def answer(words):
    global grows
    if words[0] == "append":
        os.write(log, words[1].encode() + b"\n")
    elif words[0] == "write":
        os.pwrite(data, words[2].encode(), int(words[1]))
    elif words[0] == "digest":
        size = os.fstat(deleted).st_size
        inner = hashlib.sha256(os.pread(deleted, size, 0)).hexdigest()
        return " ".join([digest("data"), digest("log"), inner, str(lines)])
    elif words[0] == "new":
        kept.append(os.open(words[1], os.O_RDWR | os.O_CREAT, 0o600))
        os.write(kept[-1], b"new")
    elif words[0] == "grow":
        grows = int(words[1])
    return "ok"


listener = socket.create_server((host, port))
waiting = selectors.DefaultSelector()
waiting.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in waiting.select(0.001 if grows else None):
        if key.fileobj is listener:
            client, _ = listener.accept()
            waiting.register(client, selectors.EVENT_READ, client.makefile("rb"))
            continue
        line = key.data.readline()
        if not line:
            waiting.unregister(key.fileobj)
            key.fileobj.close()
            continue
        key.fileobj.sendall(answer(line.decode().split()).encode() + b"\n")
    if grows:
        lines += 1
        os.write(log, b"%d %d " % (lines, time.time_ns()) + b"x" * grows + b"\n")
