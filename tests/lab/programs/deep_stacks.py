"""A server whose threads have large stacks, with much on them, beside a large heap.

Usage: deep_stacks.py HOST PORT [locked]. Who connects and sends something is told the sum of what
is on the stacks and a digest of the heap; with `locked` some memory may not be paged out.
"""

import ctypes
import hashlib
import mmap
import random
import socket
import sys
import threading

THREADS, DEPTH, HEAP = 4, 400, 96 << 20


class Deep(threading.Thread):
    """Waits at the bottom of a recursion, and sums up what it has kept on the way."""

    def __init__(self, seed: int) -> None:
        super().__init__(daemon=True)
        self.seed = seed
        self.asked = threading.Semaphore(0)
        self.told = threading.Semaphore(0)
        self.sum = 0

    def run(self) -> None:
        while True:
            self.sum = self.down(DEPTH, random.Random(self.seed))
            self.told.release()

    def down(self, depth: int, numbers: random.Random) -> int:
        kept = numbers.getrandbits(48)
        if depth == 0:
            self.asked.acquire()
            return kept
        return kept + sorted([0], key=lambda _: 0)[0] + self.down(depth - 1, numbers)


def main() -> None:
    host, port, *how = sys.argv[1:]
    sys.setrecursionlimit(10 * DEPTH)
    threading.stack_size(64 << 20)
    threads = [Deep(seed) for seed in range(THREADS)]
    for one in threads:
        one.start()
    heap = random.Random(1).randbytes(HEAP)
    if how == ["locked"]:
        pages = mmap.mmap(-1, HEAP, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages[:] = heap
        address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        assert ctypes.CDLL(None).mlock(ctypes.c_void_p(address), ctypes.c_size_t(HEAP)) == 0
        heap = pages
    with socket.create_server((host, int(port))) as listener:
        while True:
            with listener.accept()[0] as sock:
                sock.recv(1)
                for one in threads:
                    one.asked.release()
                for one in threads:
                    one.told.acquire()
                said = [*(one.sum for one in threads), hashlib.sha256(heap).hexdigest()]
                sock.sendall((" ".join(map(str, said)) + "\n").encode())


main()
