"""Signatures and fingerprints: the one place where `cryptography` is imported.

Knows keys and bytes, and must not know what is signed, nor who is allowed to sign.  Nothing here
reads a clock or a file; `new_signing` alone uses chance.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad.digest import blake2b, compare_digest

if TYPE_CHECKING:
    from collections.abc import Iterable

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
FINGERPRINT_BYTES: Final = 16
WORDS: Final = 4
_CONSONANTS: Final = "bdfghjklmnprstvz"
_VOWELS: Final = "aiou"


class NodeKeys(NamedTuple):
    """Both key pairs of one node: CURVE (X25519) for its connections, Ed25519 for signatures."""

    node: bytes
    curve_secret: bytes
    curve_public: bytes
    sign_secret: bytes
    sign_public: bytes

    def __repr__(self) -> str:
        """Without the secrets: logs and tracebacks show this."""
        return f"NodeKeys({self.node.hex()})"


@functools.cache
def _ed25519() -> Any:
    # Twenty milliseconds that `blackroad --help` and a daemon without keys need not pay.
    from cryptography.hazmat.primitives.asymmetric import ed25519

    return ed25519


def new_signing() -> tuple[bytes, bytes]:
    """Make an Ed25519 pair; return (secret, public), 32 bytes each."""
    private = _ed25519().Ed25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def signing_public(secret: bytes) -> bytes:
    """Derive the public half of an Ed25519 secret."""
    public: bytes = _private(secret).public_key().public_bytes_raw()
    return public


def curve_public(secret: bytes) -> bytes:
    """Derive the public half of a CURVE (X25519) secret."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def sign(secret: bytes, data: bytes) -> bytes:
    """Sign; the same key and data give the same 64 bytes."""
    signature: bytes = _private(secret).sign(data)
    return signature


@functools.lru_cache(maxsize=4)
def _private(secret: bytes) -> Any:
    return _ed25519().Ed25519PrivateKey.from_private_bytes(secret)


@functools.lru_cache(maxsize=64)
def _public(public: bytes) -> Any:
    return _ed25519().Ed25519PublicKey.from_public_bytes(public)


def verifies(public: bytes, data: bytes, signature: bytes) -> bool:
    """Did the holder of that key sign this data?

    Cost  0.2 ms on a desktop, four times as much on a small board.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        _public(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(root_public: bytes) -> bytes:
    """Name a cluster by its root key: 16 bytes that nobody else's key has."""
    return _digest(FINGERPRINT_BYTES, b"blackroad-root", (root_public,))


def secret_hash(secret: bytes) -> bytes:
    """What is kept of a token's secret: 32 bytes that do not give it away.

    The secret is 128 random bits and no password, so nothing slow is needed.
    """
    return _digest(32, b"blackroad-invite", (secret,))


def same(one: bytes, other: bytes) -> bool:
    """Compare two secrets in a time that does not tell where they differ."""
    return compare_digest(one, other)


def keyed(secret: bytes, *parts: bytes) -> bytes:
    """32 bytes that only a holder of `secret` can make from those parts."""
    return _digest(32, b"blackroad-keyed", parts, secret)


def phrase(*parts: bytes) -> str:
    """Spell 64 bits of all parts as four words of five letters, for people to compare.

    Source  the spelling is that of proquints, arXiv:0901.4016.
    """
    number = int.from_bytes(_digest(8, b"blackroad-phrase", parts), "big")
    return "-".join(_word(number >> shift & 0xFFFF) for shift in range(48, -1, -16))


def _word(bits: int) -> str:
    return (
        _CONSONANTS[bits >> 12]
        + _VOWELS[bits >> 10 & 3]
        + _CONSONANTS[bits >> 6 & 15]
        + _VOWELS[bits >> 4 & 3]
        + _CONSONANTS[bits & 15]
    )


def _digest(size: int, person: bytes, parts: Iterable[bytes], key: bytes = b"") -> bytes:
    digest = blake2b(digest_size=size, person=person, key=key)
    for part in parts:
        # With its length, so that no two lists of parts run together into the same bytes.
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()
