"""Random bits that nobody can guess, from the kernel.

Edge.  `secrets` has the same, and brings OpenSSL along (see `digest.py`).
"""

from __future__ import annotations

import os

token_bytes = os.urandom


def token_hex(size: int) -> str:
    """Return `size` random bytes as text."""
    return os.urandom(size).hex()


def randbits(count: int) -> int:
    """Return a random number of at most `count` bits, a multiple of eight."""
    return int.from_bytes(os.urandom(count // 8))
