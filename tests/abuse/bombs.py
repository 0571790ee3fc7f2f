"""Row 40: small frames that would become large, or deep, or slow, if they were believed."""

from __future__ import annotations

import gc
import itertools
import time
import tracemalloc
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.errors import RemoteProtocolError
from blackroad.limits import BATCH_MESSAGES_MAX, BULK_FRAME_BYTES_MAX, MESSAGE_BYTES_MAX
from tests.abuse.cluster import MIB, Attacker, Cluster, keys_of
from tests.abuse.rows import row

MS_MAX: Final = 10.0
MIB_MAX: Final = 5.0
TIMES: Final = 20
SCOPES: Final = (
    codec.PEER, codec.CLIENT, codec.OWNER, codec.INBOX, codec.BULK, codec.TELEMETRY, codec.DOOR,
)  # fmt: skip
HEADER: Final = codec.encode_header(0, 1)
RENEW: Final = m.Renew.__struct_config__.tag
QUERY: Final = m.Query.__struct_config__.tag
UNKNOWN: Final = 0x7F
CLAIMS: Final = {
    "array": b"\xdd", "map": b"\xdf", "text": b"\xdb", "bytes": b"\xc6", "extension": b"\xc9",
}  # fmt: skip


def _array(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


def _filled(head: bytes, part: bytes, size: int) -> bytes:
    """As many parts as fit, one beside the other."""
    return head + part * ((size - len(head)) // len(part))


def _listed(kind: int, size: int) -> bytes:
    """A message of that kind whose fields are nothing but empty lists."""
    count = size - 8
    return b"\x92" + bytes((kind,)) + _array(count) + b"\x90" * count


def bombs(size: int) -> dict[str, bytes]:
    """Frames of at most `size` bytes, by what is wrong with them."""
    many = BATCH_MESSAGES_MAX
    each = size // many - 2
    one = min(size - 8, MESSAGE_BYTES_MAX - 8)
    found = {
        "lists in lists": _filled(b"", b"\x91", size),
        "maps in maps": _filled(b"\x91", b"\x81\x01", size),
        "lists in a field": _filled(b"\x91\x93" + bytes((RENEW, 1)), b"\x91", size),
        "a list of empty lists": _array(size - 5) + b"\x90" * (size - 5),
        "a field of empty lists": b"\x91" + _listed(RENEW, one),
        "empty lists as a message of an unknown kind": b"\x91" + _listed(UNKNOWN, one),
        f"{many} messages of empty lists": b"\xdc\x00\x80" + _listed(RENEW, each) * many,
        f"{many} unknown ones": b"\xdc\x00\x80" + _listed(UNKNOWN, each) * many,
        "a field of maps": _filled(b"\x91\x92" + bytes((RENEW,)) + _array(one), b"\x80", one),
        "attempts without an end": _attempts(one),
    }
    for name, head in CLAIMS.items():
        claim = head + b"\xff\xff\xff\xff" + (b"\x01" if name == "extension" else b"")
        found[f"a frame that claims {name} of 4 GiB"] = claim
        found[f"a field that claims {name} of 4 GiB"] = b"\x91\x92" + bytes((RENEW,)) + claim
    return found


def _attempts(size: int) -> bytes:
    """More attempts than a Renew may list, each as it should be, and no end."""
    listed = msgspec.msgpack.encode([[2**40, 1], 2])
    count = size // len(listed)
    return b"\x91\x94" + bytes((RENEW, 1, 1)) + _array(count + 1) + listed * count


class Worst:
    """The bombs that cost most, in time and in memory."""

    def __init__(self) -> None:
        self.count = 0
        self.ms, self.slow = 0.0, ""
        self.mib, self.large = 0.0, ""

    def note(self, name: str, ms: float, mib: float) -> None:
        """One bomb went off."""
        self.count += 1
        if ms > self.ms:
            self.ms, self.slow = ms, name
        if mib > self.mib:
            self.mib, self.large = mib, name

    def told(self) -> str:
        """In words; an AssertionError where that is more than a bomb may cost."""
        assert self.ms < MS_MAX, f"{self.ms:.1f} ms for {self.slow}"
        assert self.mib < MIB_MAX, f"{self.mib:.1f} MiB for {self.large}"
        return f"{self.ms:.1f} ms ({self.slow}) and {self.mib:.2f} MiB ({self.large}) at most"


# --- the codec ------------------------------------------------------------------------------------


def _refuses(read: Any, frame: bytes) -> bool:
    try:
        found = read(frame)
    except RemoteProtocolError:
        return True
    # Kinds of a later version are passed over, and counted; a header has no such thing.
    return isinstance(found, tuple) and not isinstance(found, codec.Header) and not found[0]


def _codec() -> Worst:
    """Every bomb through every decoder, at the size that its socket lets through."""
    worst = Worst()
    readers: list[tuple[str, int, Any]] = [
        (one.name, one.frame_bytes_max, one.decode) for one in SCOPES
    ]
    readers.append(("header", BULK_FRAME_BYTES_MAX, codec.decode_header))
    gc.disable()
    try:
        for where, size, read in readers:
            for name, frame in bombs(size).items():
                assert _refuses(read, frame), f"{where} believes {name}"
                ms = max(_cost_ms(read, frame) for _ in range(TIMES))
                worst.note(f"{name}, {where}", ms, _weight_mib(read, frame))
    finally:
        gc.enable()
    return worst


def _cost_ms(read: Any, frame: bytes) -> float:
    began = time.thread_time_ns()
    _refuses(read, frame)
    return (time.thread_time_ns() - began) / 1e6


def _weight_mib(read: Any, frame: bytes) -> float:
    tracemalloc.start()
    try:
        _refuses(read, frame)
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


# --- a connection ---------------------------------------------------------------------------------


class Member:
    """A connection with a member's keys to one daemon, bound by no rule."""

    def __init__(self, cluster: Cluster, attacker: Attacker) -> None:
        self.socket: zmq.Socket[bytes] = attacker.context.socket(zmq.DEALER)
        secret, public = keys_of(cluster.shed)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.CURVE_SECRETKEY, secret)
        self.socket.set(zmq.CURVE_PUBLICKEY, public)
        self.socket.set(zmq.CURVE_SERVERKEY, keys_of(cluster.gate)[1])
        self.socket.connect(f"tcp://127.0.0.1:{cluster.addresses(cluster.gate)['port']}")
        self._numbers = itertools.count(1)

    def answered_ms(self, *before: list[bytes], args: bytes = b"\x80") -> float:
        """Say these multiparts, then ask something; how long until that is answered."""
        number = next(self._numbers)
        question = m.Query(number, b"", "nodes", args)
        began = time.monotonic()
        for multipart in before:
            self.socket.send_multipart(multipart)
        self.socket.send_multipart([HEADER, codec.frame_of([codec.encode(question)])])
        while True:
            assert self.socket.poll(10_000), "the daemon has not answered for 10 s"
            for frame in self.socket.recv_multipart()[1:]:
                for one in msgspec.msgpack.decode(frame):
                    if one[0] == m.Reply.__struct_config__.tag and one[1] == number:
                        return 1000 * (time.monotonic() - began)


def _peak_mib(pid: int, *, anew: bool = False) -> float:
    """The most memory that a process has had since it was last asked `anew`."""
    if anew:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _busy_ms(pid: int) -> float:
    """What all threads of a process have used of processors so far."""
    used_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        used_ns += int((task / "schedstat").read_text().split()[0])
    return used_ns / 1e6


def _connection(cluster: Cluster, attacker: Attacker) -> tuple[Worst, float]:
    """The same from a member to a daemon: what it costs there, and how long others wait."""
    member, pid = Member(cluster, attacker), cluster.gate.pid
    for _ in range(TIMES):
        member.answered_ms()
    began_ms = _busy_ms(pid)
    calm_ms = sorted(member.answered_ms() for _ in range(5 * TIMES))[5 * TIMES // 2]
    calm_busy_ms = (_busy_ms(pid) - began_ms) / (5 * TIMES)
    worst, longest_ms = Worst(), 0.0
    for name, said in _multiparts().items():
        before_mib = _peak_mib(pid, anew=True)
        began_ms = _busy_ms(pid)
        waits = sorted(member.answered_ms(said) for _ in range(TIMES))
        busy_ms = (_busy_ms(pid) - began_ms) / TIMES - calm_busy_ms
        worst.note(name, busy_ms, _peak_mib(pid) - before_mib)
        longest_ms = max(longest_ms, waits[TIMES // 2] - calm_ms)
    return worst, longest_ms


def _multiparts() -> dict[str, list[bytes]]:
    """Every bomb as a frame, as a header, and in the arguments of a question."""
    # With keys a frame is a little longer on the wire, where the limit applies.
    size = BULK_FRAME_BYTES_MAX - 64
    found = {name: [HEADER, frame] for name, frame in bombs(size).items()}
    found |= {
        f"{name} as a header": [frame, codec.frame_of([codec.encode(m.Alive(bytes(16)))])]
        for name, frame in bombs(size).items()
    }
    for name, args in bombs(4096).items():
        question = m.Query(2**40, b"", "tasks", args[:4096])
        found[f"{name} as arguments"] = [HEADER, codec.frame_of([codec.encode(question)])]
    return found


@row("40", "MessagePack bombs: depth, lists of lists, huge headers")
def message_pack_bombs() -> str:
    alone = _codec()
    cluster, attacker = Cluster(), Attacker()
    try:
        cluster.works()
        there, longest_ms = _connection(cluster, attacker)
        cluster.works()
        return (
            f"{alone.count} through the codec: {alone.told()}; {there.count} from a member to a "
            f"daemon: {there.told()}; the question after one is answered {longest_ms:.1f} ms later"
        )
    finally:
        attacker.close()
        cluster.close()
