"""Names of things: nodes, tasks, attempts, reigns, and how people read and type them.

Pure values.  Nothing here makes up an id: randomness belongs to the edges that call this file.
"""

from __future__ import annotations

import base64
from typing import Annotated, NamedTuple

from msgspec import Meta

from blackroad.digest import blake2b
from blackroad.errors import UsageError

NODE_BYTES = 16
TASK_BYTES = 16
DIGEST_BYTES = 32
SHORT_CHARS = 8
HEARD_BYTES = 8

U16_MAX = 2**16 - 1
U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1

NodeId = Annotated[bytes, Meta(min_length=NODE_BYTES, max_length=NODE_BYTES)]
TaskId = Annotated[bytes, Meta(min_length=TASK_BYTES, max_length=TASK_BYTES)]
Digest = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
SessionId = Annotated[bytes, Meta(min_length=16, max_length=16)]
# MessagePack knows unsigned 64 bit; msgspec's own bounds stop at signed 64, so an incarnation
# keeps 31 bits of counter and 32 of randomness and never needs the top bit.
U63 = Annotated[int, Meta(ge=0, le=2**63 - 1)]
U16 = Annotated[int, Meta(ge=0, le=U16_MAX)]
U32 = Annotated[int, Meta(ge=0, le=U32_MAX)]


class Token(NamedTuple):
    """Names one attempt of its owner; compares by incarnation, then serial."""

    inc: U63
    serial: U63


class Epoch(NamedTuple):
    """A coordinator's reign; the higher one is newer."""

    counter: U63
    node: NodeId


def incarnation(counter: int, random_low: int) -> int:
    """Put a durable counter and 32 random bits together: one life of one node."""
    return (counter << 32) | (random_low & U32_MAX)


def inc_counter(inc: int) -> int:
    """Age of an incarnation: the part that two lives of one node may be compared by."""
    return inc >> 32


def node_id_from_key(public_key: bytes) -> bytes:
    """Derive the node id from the node's public key."""
    return blake2b(public_key, digest_size=NODE_BYTES, person=b"blackroad-node").digest()


_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]


def text32(raw: bytes) -> str:
    """Spell bytes in lower-case base32 without padding, as ids are printed.

    Cost  about 2 us for an id; the standard library's takes three times as long.
    """
    bits = 8 * len(raw)
    pairs = -(-bits // 10)
    number = int.from_bytes(raw, "big") << (10 * pairs - bits)
    spelled = [_PAIRS[(number >> shift) & 1023] for shift in range(10 * pairs - 10, -1, -10)]
    return "".join(spelled)[: -(-bits // 5)]


def bytes32(text: str) -> bytes:
    """Read what `text32` wrote.

    Raises  UsageError where `text` is not base32.
    """
    padded = text.upper() + "=" * (-len(text) % 8)
    try:
        return base64.b32decode(padded)
    except ValueError:
        raise UsageError(f"`{text}` is not an id", hint="`blackroad tasks` lists ids") from None


def short(node: bytes) -> str:
    """First characters of a node id, as people see it."""
    return text32(node)[:SHORT_CHARS]


def task_text(owner: bytes, task: bytes) -> str:
    """A task id as printed: the owner's short id, a dash, the task's own id."""
    return f"{short(owner)}-{text32(task)}"


def parse_task(text: str) -> tuple[str, str]:
    """Split a printed task id into the owner's short id and the (maybe shortened) task part.

    Raises  UsageError where the text cannot be a task id.
    """
    owner, dash, task = text.strip().lower().partition("-")
    alphabet = set("abcdefghijklmnopqrstuvwxyz234567")
    if (
        not dash
        or len(owner) != SHORT_CHARS
        or not 4 <= len(task) <= 26
        or not (set(owner) | set(task)) <= alphabet
    ):
        raise UsageError(
            f"`{text}` is not a task id",
            hint="a task id looks like k3f7x2ab-m5c7q; `blackroad tasks` lists them",
        )
    return owner, task
