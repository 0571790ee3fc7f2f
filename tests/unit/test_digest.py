"""The digest and the bits that stand in for modules which bring OpenSSL along."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from blackroad import chance, digest


def test_it_is_the_very_digest_of_hashlib() -> None:
    assert digest.blake2b is hashlib.blake2b


@pytest.mark.parametrize(
    ("one", "other"), [(b"secret", b"secret"), (b"secret", b"secreT"), (b"secret", b"secre")]
)
def test_it_compares_as_hmac_does(one: bytes, other: bytes) -> None:
    assert digest.compare_digest(one, other) is hmac.compare_digest(one, other)


@pytest.mark.parametrize("bits", [24, 32, 64])
def test_random_numbers_have_as_many_bits_as_are_asked_for(bits: int) -> None:
    found = [chance.randbits(bits) for _ in range(200)]
    assert max(found) < 2**bits
    assert max(found) >= 2 ** (bits - 4)
    assert len(set(found)) == 200


def test_random_text_and_bytes_have_as_many_bytes_as_are_asked_for() -> None:
    assert len(chance.token_bytes(16)) == 16
    assert len(bytes.fromhex(chance.token_hex(8))) == 8
    assert chance.token_hex(8) != chance.token_hex(8)
