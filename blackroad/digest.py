"""BLAKE2b, the one digest that is used here, and comparing without telling by the time it takes.

Pure.  `hashlib` and `hmac` have the very same functions, and bring OpenSSL along: 2 MiB and 3 ms
for each process that digests anything.
"""

from __future__ import annotations

try:
    from _blake2 import blake2b
    from _operator import _compare_digest as compare_digest
except ImportError:  # an interpreter that keeps them elsewhere
    from hashlib import blake2b
    from hmac import compare_digest  # type: ignore[no-redef]

__all__ = ["blake2b", "compare_digest"]
