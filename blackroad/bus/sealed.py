"""Seals one direction of a stream record by record, with a key that both ends know.

Each record is encrypted and authenticated together with its number, so that nothing can be
changed, left out, doubled or put in another order.  In an open mesh there is no key: then a
checksum finds damage, and nothing is secret.  This file must not know sockets, nor what travels.

Source  docs/protocol.md, "Objects" (R-object-9).
"""

from __future__ import annotations

import struct
import time
import zlib
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from blackroad.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY_BYTES: Final = 32
RECORD_BYTES_MAX: Final = 1024 * 1024
TAG_BYTES: Final = 16
_SUM = struct.Struct("<I")


class Cipher(IntEnum):
    """How records are sealed."""

    NONE = 0  # a checksum alone
    AES = 1  # AES-256-GCM
    CHACHA = 2  # ChaCha20-Poly1305


def overhead(cipher: Cipher) -> int:
    """Return by how many bytes a record grows."""
    return TAG_BYTES if cipher else _SUM.size


def chosen(closed: bool, aes: Sequence[int], chacha: Sequence[int]) -> Cipher:
    """Choose what the slower of both ends does fastest, by the speeds that each measured."""
    if not closed:
        return Cipher.NONE
    return Cipher.AES if min(aes) >= min(chacha) else Cipher.CHACHA


def aead(cipher: Cipher, key: bytes) -> Any:
    """Return the cipher with its key.

    Raises  RemoteProtocolError where the key has another length.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

    if len(key) != KEY_BYTES:
        raise RemoteProtocolError(f"a key of {len(key)} bytes for a stream")
    return AESGCM(key) if cipher is Cipher.AES else ChaCha20Poly1305(key)


def speed(cipher: Cipher, record_bytes: int = 256 * 1024) -> int:
    """Measure how many MB/s one core seals, at least 1.

    Cost  three records: 2 ms where there are no instructions for it.
    """
    data, out = bytes(record_bytes), bytearray(record_bytes + TAG_BYTES)
    one = Seal(cipher, bytes(KEY_BYTES))
    best_ns = 0
    for _ in range(3):
        began_ns = time.perf_counter_ns()
        one.close(data, out)
        took_ns = max(1, time.perf_counter_ns() - began_ns)
        best_ns = min(best_ns or took_ns, took_ns)
    return max(1, record_bytes * 1000 // best_ns)


class Seal:
    """One direction of one stream: its key must never be used for another one."""

    def __init__(self, cipher: Cipher, key: bytes = b"") -> None:
        self.overhead = overhead(cipher)
        self._aead = aead(cipher, key) if cipher else None
        # Older versions of the library make a new buffer each time.
        self._in_place = hasattr(self._aead, "encrypt_into")
        self._number = 0

    def _nonce(self) -> bytes:
        self._number += 1
        return self._number.to_bytes(12, "big")

    def close(self, data: bytes | memoryview, out: bytearray) -> list[bytes | memoryview]:
        """Seal a record; return what is to be sent, which stands in `out` or is `data` itself."""
        if self._aead is None:
            return [data, _SUM.pack(zlib.crc32(data, self._count()))]
        if not self._in_place:
            return [self._aead.encrypt(self._nonce(), data, None)]
        end = len(data) + TAG_BYTES
        self._aead.encrypt_into(self._nonce(), data, None, memoryview(out)[:end])
        return [memoryview(out)[:end]]

    def open(self, sealed: memoryview, into: memoryview) -> None:
        """Open a record into a buffer of exactly its size.

        Raises  RemoteProtocolError where it is not what was sealed, at its place in the stream.
        """
        if self._aead is None:
            data = sealed[: -_SUM.size]
            if _SUM.unpack(sealed[-_SUM.size :])[0] != zlib.crc32(data, self._count()):
                raise RemoteProtocolError("a record of a stream was damaged on its way")
            into[:] = data
            return
        from cryptography.exceptions import InvalidTag

        try:
            if self._in_place:
                self._aead.decrypt_into(self._nonce(), sealed, None, into)
            else:
                into[:] = self._aead.decrypt(self._nonce(), sealed, None)
        except (InvalidTag, ValueError):
            raise RemoteProtocolError("a record of a stream is not what was sealed") from None

    def _count(self) -> int:
        self._number += 1
        return self._number & 0xFFFFFFFF
