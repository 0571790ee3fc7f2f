"""The cable between the machines: a switch in one small process, whose every direction can fail.

Each machine's only interface is a TAP device; what the machine sends arrives here as an Ethernet
frame and leaves towards the others by the rule of that directed pair: cut, lost, late, overtaken
or squeezed.  The kernel's own emulator (netem) is a module that many kernels lack, and packet
filters need tools that may be missing; this needs neither.

It knows frames and rules, and no daemon.  `Switch` decides without a clock or a socket; `serve`
is the process around it.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

FRAME_BYTES_MAX = 65_536
LATE_MAX = 20_000
QUEUE_BYTES = 256 * 1024
_TUNSETIFF = 0x400454CA
_TAP = 0x0002 | 0x1000  # IFF_TAP, IFF_NO_PI


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to frames of one direction.

    Units  `loss` and `overtake` are shares, 0 to 1; `rate_bit_s` 0 is without limit.
    """

    cut: bool = False
    loss: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    overtake: float = 0.0
    rate_bit_s: int = 0


class Late(NamedTuple):
    """A frame on its way."""

    due_ns: int
    order: int
    to: int
    frame: bytes


CLEAR = Rule()


class Switch:
    """Which frame goes where, and when: pure, but for the random numbers it was given."""

    def __init__(self, ports: int, seed: int) -> None:
        self.ports = ports
        self.rules: dict[tuple[int, int], Rule] = {}
        self.seen: dict[str, int] = {"passed": 0, "dropped": 0, "delayed": 0, "bytes": 0}
        self._random = random.Random(seed)
        self._late: list[Late] = []
        self._order = 0
        self._free_ns: dict[tuple[int, int], int] = {}

    def set(self, pairs: Iterable[tuple[int, int]], rule: Rule) -> None:
        """Give these directions that rule."""
        for pair in pairs:
            if rule == CLEAR:
                self.rules.pop(pair, None)
            else:
                self.rules[pair] = rule

    def take(self, source: int, frame: bytes, now_ns: int) -> Iterator[tuple[int, bytes]]:
        """Take a frame from a port; yield what leaves at once."""
        for to in self._targets(source, frame):
            rule = self.rules.get((source, to), CLEAR)
            if rule == CLEAR:
                self._count(frame)
                yield to, frame
            elif rule.cut or self._random.random() < rule.loss:
                self.seen["dropped"] += 1
            else:
                self._delay(source, to, frame, rule, now_ns)

    def due(self, now_ns: int) -> Iterator[tuple[int, bytes]]:
        """Yield what was late and leaves now."""
        while self._late and self._late[0].due_ns <= now_ns:
            late = heapq.heappop(self._late)
            self._count(late.frame)
            yield late.to, late.frame

    def next_ns(self) -> int | None:
        """When the next late frame leaves."""
        return self._late[0].due_ns if self._late else None

    def _targets(self, source: int, frame: bytes) -> list[int]:
        # Machine n has the address 02:00:00:00:00:n; anything else is for everybody.
        if frame[:5] == b"\x02\0\0\0\0" and frame[5] < self.ports:
            return [frame[5]] if frame[5] != source else []
        return [port for port in range(self.ports) if port != source]

    def _count(self, frame: bytes) -> None:
        self.seen["passed"] += 1
        self.seen["bytes"] += len(frame)

    def _delay(self, source: int, to: int, frame: bytes, rule: Rule, now_ns: int) -> None:
        delay_ms = rule.delay_ms + self._random.uniform(-rule.jitter_ms, rule.jitter_ms)
        if rule.overtake and self._random.random() < rule.overtake:
            delay_ms = 0.0
        due_ns = now_ns + int(max(0.0, delay_ms) * 1e6)
        if rule.rate_bit_s:
            begin_ns = max(now_ns, self._free_ns.get((source, to), 0))
            waiting = (begin_ns - now_ns) * rule.rate_bit_s // 8_000_000_000
            if waiting > QUEUE_BYTES:
                self.seen["dropped"] += 1
                return
            end_ns = begin_ns + len(frame) * 8_000_000_000 // rule.rate_bit_s
            self._free_ns[(source, to)] = end_ns
            due_ns = max(due_ns, end_ns)
        if len(self._late) >= LATE_MAX:
            self.seen["dropped"] += 1
            return
        self._order += 1
        self.seen["delayed"] += 1
        heapq.heappush(self._late, Late(due_ns, self._order, to, frame))


# --- the process ----------------------------------------------------------------------------------


def tap(name: str) -> int:
    """Make a TAP device of that name in this process's network; it lives as long as the answer."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP))
    return fd


def serve(control_fd: int, names: list[str], seed: int) -> None:
    """Carry frames until the control socket closes."""
    control = socket.socket(fileno=control_fd)
    fds = [tap(name) for name in names]
    switch = Switch(len(names), seed)
    port_of = {fd: port for port, fd in enumerate(fds)}
    poller = select.epoll()
    for fd in (*fds, control.fileno()):
        poller.register(fd, select.EPOLLIN)
    control.send(b"{}")
    while True:
        due_ns = switch.next_ns()
        wait_s = -1.0 if due_ns is None else max(0.0, (due_ns - time.monotonic_ns()) / 1e9)
        for fd, _ in poller.poll(wait_s):
            if fd == control.fileno():
                if not _obey(control, switch):
                    return
                continue
            _carry(fd, port_of[fd], fds, switch)
        for to, frame in switch.due(time.monotonic_ns()):
            _write(fds[to], frame)


def _carry(fd: int, port: int, fds: list[int], switch: Switch) -> None:
    now_ns = time.monotonic_ns()
    for _ in range(64):
        try:
            frame = os.read(fd, FRAME_BYTES_MAX)
        except (BlockingIOError, OSError):
            return
        for to, one in switch.take(port, frame, now_ns):
            _write(fds[to], one)


def _write(fd: int, frame: bytes) -> None:
    # A machine whose interface is down takes nothing, as a cable without a plug.
    with contextlib.suppress(OSError):
        os.write(fd, frame)


def _obey(control: socket.socket, switch: Switch) -> bool:
    said = control.recv(65_536)
    if not said:
        return False
    told: dict[str, Any] = json.loads(said)
    if "rule" in told:
        switch.set([(a, b) for a, b in told["pairs"]], Rule(**told["rule"]))
    control.send(json.dumps(switch.seen).encode())
    return True


class Wires:
    """The handle on that process: rules by the machines' numbers."""

    def __init__(self, names: list[str], seed: int) -> None:
        import subprocess

        self.names = names
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, "-m", "tests.chaos.wires", str(theirs.fileno()), str(seed)]
        self.process = subprocess.Popen(
            [*words, *names], pass_fds=[theirs.fileno()], start_new_session=True
        )
        theirs.close()
        self._control.settimeout(20)
        self._answer()

    def set(self, pairs: Iterable[tuple[int, int]], rule: Rule = CLEAR) -> None:
        """Give these directions that rule, from now on."""
        self._ask({"pairs": list(pairs), "rule": asdict(rule)})

    def between(self, left: Iterable[int], right: Iterable[int], rule: Rule = CLEAR) -> None:
        """Both directions between two groups."""
        mine, theirs = list(left), list(right)
        both = [(a, b) for a in mine for b in theirs] + [(b, a) for a in mine for b in theirs]
        self.set([(a, b) for a, b in both if a != b], rule)

    def to(self, port: int, rule: Rule = CLEAR) -> None:
        """All that one machine receives."""
        self.set([(n, port) for n in range(len(self.names)) if n != port], rule)

    def off(self, port: int, rule: Rule = CLEAR) -> None:
        """All that one machine sends."""
        self.set([(port, n) for n in range(len(self.names)) if n != port], rule)

    def around(self, port: int, rule: Rule = CLEAR) -> None:
        """All that one machine sends and receives."""
        self.to(port, rule)
        self.off(port, rule)

    def clear(self) -> None:
        """Every direction works again."""
        ports = range(len(self.names))
        self.set([(a, b) for a in ports for b in ports if a != b])

    def seen(self) -> dict[str, int]:
        """How many frames passed, were dropped and were delayed."""
        return self._ask({})

    def close(self) -> None:
        """Unplug everything; the devices go with the process."""
        self._control.close()
        self.process.wait(timeout=20)

    def _ask(self, what: dict[str, Any]) -> dict[str, int]:
        self._control.send(json.dumps(what).encode())
        return self._answer()

    def _answer(self) -> dict[str, int]:
        said = self._control.recv(65_536)
        if not said:
            raise RuntimeError("the switch has ended; its words are above")
        told: dict[str, int] = json.loads(said)
        return told


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        # It stands for hardware: it must not be late because the machine has work to do.
        os.nice(-10)
    serve(int(sys.argv[1]), sys.argv[3:], int(sys.argv[2]))
