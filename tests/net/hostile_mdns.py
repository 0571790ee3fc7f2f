"""A stranger on the network who says whatever mDNS lets him say; and what it costs the others.

`python -m tests.net.hostile_mdns ADDRESS CLUSTER` attacks from that address.  All of it at once:
thousands of invented daemons with wrong ports and many addresses, pointer chains, records that
lie about their length, huge texts, and noise.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator

GROUP = ("224.0.0.251", 5353)
SERVICE = b"\x0a_blackroad\x04_tcp\x05local\x00"
FAKES = 10_000
PACKETS_PER_S = 1_500
PTR, TXT, A, SRV = 12, 16, 1, 33
ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def head(answers: int, questions: int = 0) -> bytes:
    return struct.pack(">6H", 0, 0x8400, questions, answers, 0, 0)


def record(name: bytes, kind: int, data: bytes, ttl: int = 4500, length: int = -1) -> bytes:
    size = len(data) if length < 0 else length
    return name + struct.pack(">HHIH", kind, 0x0001, ttl, size & 0xFFFF) + data


def text(*pairs: str) -> bytes:
    return b"".join(bytes([len(pair)]) + pair.encode() for pair in pairs)


def fake(node: str, cluster: str, dice: random.Random) -> bytes:
    """One invented daemon of the right cluster, with ports and addresses that lead nowhere."""
    name = bytes([len(node)]) + node.encode() + SERVICE
    host = bytes([len(node)]) + node.encode() + b"\x05local\x00"
    places = ",".join(f"10.79.{dice.randrange(1, 250)}.{dice.randrange(1, 250)}" for _ in range(10))
    port = dice.randrange(1, 65_536)
    told = text(
        f"id={node}", "v=1-1", f"p={port},{port},{port}", "m=x86_64", f"c={cluster}", f"a={places}"
    )
    return head(4) + b"".join(
        (
            record(SERVICE, PTR, name),
            record(name, SRV, struct.pack(">3H", 0, 0, port) + host),
            record(name, TXT, told),
            record(host, A, bytes(dice.randrange(256) for _ in range(4))),
        )
    )


def chain() -> bytes:
    """Names that point at names that point at names."""
    pointers = b"".join(struct.pack(">H", 0xC000 | (12 + 2 * at)) for at in range(1, 600))
    return head(40) + pointers + b"\x00" + 40 * record(b"\xc0\x0c", PTR, b"\xc0\x0c")


def loop() -> bytes:
    return head(1) + record(b"\xc0\x0c", PTR, b"\xc0\x0c")


def huge(node: str, dice: random.Random) -> bytes:
    """A text of some 8 KiB."""
    name = bytes([len(node)]) + node.encode() + SERVICE
    told = text(*(f"{at}=" + "x" * 240 for at in range(34)))
    return head(2) + record(SERVICE, PTR, name) + record(name, TXT, told)


def liar(node: str) -> bytes:
    """A record that claims to be longer than its packet."""
    name = bytes([len(node)]) + node.encode() + SERVICE
    return head(2) + record(SERVICE, PTR, name) + record(name, TXT, b"\xff", length=60_000)


def packets(cluster: str, seed: int) -> Iterator[bytes]:
    dice = random.Random(seed)
    for number in range(FAKES):
        node = "".join(dice.choices(ALPHABET, k=26))
        yield fake(node, cluster, dice)
        match number % 8:
            case 1:
                yield chain()
            case 3:
                yield huge(node, dice)
            case 5:
                yield liar(node) + loop()
            case 7:
                yield dice.randbytes(dice.randrange(1, 1_400))


def attack(address: str, cluster: str, seed: int = 1) -> int:
    """Send it all; return how many packets that were."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        out.bind((address, 5353))
        began, count = time.monotonic(), 0
        for packet in packets(cluster, seed):
            out.sendto(packet, GROUP)
            count += 1
            ahead_s = count / PACKETS_PER_S - (time.monotonic() - began)
            if ahead_s > 0.02:
                select.select([], [], [], ahead_s)
    return count


if __name__ == "__main__":
    sys.stdout.write(f"{attack(sys.argv[1], sys.argv[2])}\n")
