"""Records of a stream: what is sealed comes out, and nothing else ever does."""

from __future__ import annotations

import pytest

from blackroad.bus.sealed import KEY_BYTES, Cipher, Seal, chosen, overhead
from blackroad.errors import RemoteProtocolError

KEY = bytes(range(KEY_BYTES))
CIPHERS = list(Cipher)


def seal(cipher: Cipher, key: bytes = KEY) -> Seal:
    return Seal(cipher, key if cipher else b"")


def closed(one: Seal, data: bytes) -> bytearray:
    out = bytearray(len(data) + one.overhead)
    return bytearray(b"".join(one.close(data, out)))


def opened(one: Seal, sealed: bytearray) -> bytes:
    into = bytearray(max(0, len(sealed) - one.overhead))
    one.open(memoryview(sealed), memoryview(into))
    return bytes(into)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_records_come_out_as_they_went_in(cipher: Cipher) -> None:
    one, other = seal(cipher), seal(cipher)
    for data in (b"", b"a", b"two" * 1000):
        record = closed(one, data)
        assert len(record) == len(data) + overhead(cipher)
        assert opened(other, record) == data


@pytest.mark.parametrize("cipher", [Cipher.AES, Cipher.CHACHA])
def test_an_older_library_does_the_same(cipher: Cipher) -> None:
    old, new, other = seal(cipher), seal(cipher), seal(cipher)
    assert new._in_place
    old._in_place = other._in_place = False
    record = closed(old, b"data")
    assert record == closed(seal(cipher), b"data")
    assert opened(new, record) == opened(other, record) == b"data"
    record[0] ^= 1
    with pytest.raises(RemoteProtocolError):
        opened(other, record)


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("at", [0, 7, -1])
def test_a_changed_bit_is_found(cipher: Cipher, at: int) -> None:
    record = closed(seal(cipher), b"some bytes of an object")
    record[at] ^= 4
    with pytest.raises(RemoteProtocolError):
        opened(seal(cipher), record)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_records_stay_in_their_order(cipher: Cipher) -> None:
    one, other = seal(cipher), seal(cipher)
    first, second = closed(one, b"first"), closed(one, b"other")
    with pytest.raises(RemoteProtocolError):
        opened(other, second)
    doubled = seal(cipher)
    opened(doubled, first)
    with pytest.raises(RemoteProtocolError):
        opened(doubled, first)


@pytest.mark.parametrize("cipher", [Cipher.AES, Cipher.CHACHA])
def test_what_is_sealed_cannot_be_read_nor_opened_with_another_key(cipher: Cipher) -> None:
    record = closed(seal(cipher), b"secret" * 20)
    assert b"secret" not in record
    with pytest.raises(RemoteProtocolError):
        opened(Seal(cipher, bytes(KEY_BYTES)), record)


@pytest.mark.parametrize("cipher", [Cipher.AES, Cipher.CHACHA])
def test_a_record_that_is_cut_short_is_refused(cipher: Cipher) -> None:
    record = closed(seal(cipher), b"some bytes")
    for length in (0, 1, overhead(cipher) - 1, len(record) - 1):
        with pytest.raises(RemoteProtocolError):
            opened(seal(cipher), record[:length])


@pytest.mark.parametrize("key", [b"", b"short", bytes(KEY_BYTES + 1)])
def test_a_key_has_one_length(key: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="key"):
        Seal(Cipher.AES, key)


def test_the_slower_end_decides() -> None:
    """A Raspberry Pi 4 has no instructions for AES, and what talks with it does without."""
    assert chosen(True, (3000, 60), (800, 250)) is Cipher.CHACHA
    assert chosen(True, (3000, 900), (800, 250)) is Cipher.AES
    assert chosen(False, (0, 0), (0, 0)) is Cipher.NONE
