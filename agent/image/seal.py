"""What makes records safe from damage, in one direction of a link.

Both forms give 16 bytes that go in front of the body. Inside SSH, hop by hop through the
orchestrator, they are a digest. Between the two agents themselves the seal also keeps the body from
others' eyes and hands: AES-128-GCM (NIST SP 800-38D) under a key of one connection and direction,
with the record's number as the nonce and its header as the additional data.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

SEAL_SIZE = 16
KEY_SIZE = 16
_NONCE_SIZE = 12
_ROOM = 15  # bytes over the data that older versions of the library want, one block less one

Bytes = bytes | bytearray | memoryview


class Seal(Protocol):
    """`start` is the header in front of the seal, `number` the record's."""

    def close(self, start: Bytes, number: int, body: bytes) -> tuple[bytes, bytes | memoryview]:
        """The seal, and the body as it travels."""

    def open(self, start: Bytes, number: int, seal: Bytes, body: memoryview) -> memoryview | None:
        """The body, good until the next call; None where it, or the header, was altered."""


class Digest:
    """The first half of SHA-256."""

    def close(self, start: Bytes, number: int, body: bytes) -> tuple[bytes, bytes | memoryview]:
        return _digest(start, body), body

    def open(self, start: Bytes, number: int, seal: Bytes, body: memoryview) -> memoryview | None:
        return body if _digest(start, body) == seal else None


def _digest(start: Bytes, body: Bytes) -> bytes:
    digest = sha256(start)
    digest.update(body)
    return digest.digest()[:SEAL_SIZE]


def new_key() -> bytes:
    return secrets.token_bytes(KEY_SIZE)


class Aead:
    """Never two records under one key and number: an encoder counts each up, and has 32 bits."""

    def __init__(self, key: bytes) -> None:
        self._key = AES(key)
        self._cipher = AESGCM(key)
        self._plain = bytearray()  # kept, as fresh memory would cost more than the cipher

    def close(self, start: Bytes, number: int, body: bytes) -> tuple[bytes, bytes | memoryview]:
        sealed = self._cipher.encrypt(_nonce(number), body, bytes(start))
        return sealed[-SEAL_SIZE:], memoryview(sealed)[:-SEAL_SIZE]

    def open(self, start: Bytes, number: int, seal: Bytes, body: memoryview) -> memoryview | None:
        if len(self._plain) < len(body) + _ROOM:
            self._plain = bytearray(len(body) + _ROOM)
        decryptor = Cipher(self._key, GCM(_nonce(number), bytes(seal))).decryptor()
        decryptor.authenticate_additional_data(bytes(start))
        length = decryptor.update_into(body, self._plain)
        try:
            decryptor.finalize()
        except InvalidTag:
            return None
        return memoryview(self._plain)[:length]


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE_SIZE, "big")
