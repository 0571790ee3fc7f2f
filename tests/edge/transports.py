"""Transports of one process that talk over loopback, and a raw socket that says anything."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.local import LocalLink
from blackroad.bus.sockets import Bus, Poller, Socket
from blackroad.bus.transport import Identity, Transport, cluster_digest
from blackroad.ids import incarnation
from blackroad.limits import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN

WAIT_S = 30.0


class Speaker:
    """One node's transport, and all that it heard."""

    def __init__(
        self,
        net: Net,
        number: int,
        counter: int,
        cluster: str,
        ports: tuple[int, int, int],
        low: int = 0x5EED,
    ) -> None:
        self.node = number.to_bytes(16, "big")
        self.inc = incarnation(counter, low)
        self.heard: list[tuple[bytes, m.Message]] = []
        self.clients: list[tuple[bytes, m.Message]] = []
        self.beats: list[m.Heartbeat] = []
        self.met: list[tuple[bytes, int, int, int]] = []
        self.refused: list[m.Reject] = []
        self._net = net
        self.bus = Bus()
        identity = Identity(self.node, self.inc, f"n{number}", cluster_digest(cluster))
        self.transport = Transport(self.bus, identity, "127.0.0.1", *ports)
        self.transport.endpoints = (f"tcp://127.0.0.1:{self.transport.port}",)
        self.transport.on_met = lambda *met: self.met.append(met)
        self.transport.on_refused = lambda _node, reject: self.refused.append(reject)

    @property
    def endpoint(self) -> str:
        """Where its inbox is."""
        return self.transport.endpoints[0]

    @property
    def ports(self) -> tuple[int, int, int]:
        """All three of its ports."""
        one = self.transport
        return one.port, one.telemetry_port, one.bulk_port

    def knows(self, *others: Speaker) -> bool:
        """Whether it may send to all of them."""
        links = self.transport.links
        return all(one.node in links and links[one.node].open for one in others)

    def waited_for(self) -> list[Socket]:
        """What its loop waits for."""
        return [self.transport.inbox, self.transport.telemetry.subscriber]

    def turn(self) -> None:
        """What a daemon does in one turn of its loop."""
        now_ms = self._net.now_ms()
        one = self.transport
        for node, client, found in one.receive(now_ms):
            if client:
                self.clients += [(client, message) for message in found]
            else:
                self.heard += [(node, message) for message in found]
        self.beats += one.heartbeats()
        if now_ms >= one.next_deadline_ms():
            one.tick(now_ms)
        one.flush(now_ms)

    def close(self) -> None:
        """End its life without a word."""
        self.bus.close()


class Net:
    """Some speakers on loopback, and a clock that can be put forward."""

    def __init__(self) -> None:
        self.speakers: list[Speaker] = []
        self._raws: list[Raw] = []
        self._ahead_ms = 0

    def now_ms(self) -> int:
        """The time of this little world."""
        return time.monotonic_ns() // 1_000_000 + self._ahead_ms

    def skip(self, ms: int) -> None:
        """Put the clock forward."""
        self._ahead_ms += ms

    def speaker(
        self,
        number: int,
        *,
        counter: int = 1,
        cluster: str = "shelf",
        ports: tuple[int, int, int] = (0, 0, 0),
        low: int = 0x5EED,
    ) -> Speaker:
        """Start a life of node `number`."""
        one = Speaker(self, number, counter, cluster, ports, low)
        self.speakers.append(one)
        return one

    def raw(self, there: Speaker, *, port: int = 0) -> Raw:
        """A socket that is connected to a speaker and bound by no rule."""
        one = Raw(f"tcp://127.0.0.1:{port or there.transport.port}")
        self._raws.append(one)
        return one

    def end(self, one: Speaker) -> None:
        """End one life."""
        self.speakers.remove(one)
        one.close()

    def meet(self, first: Speaker, *others: Speaker) -> None:
        """Let all of them find each other through the first."""
        for one in others:
            one.transport.hint(first.endpoint, self.now_ms())
        everybody = (first, *others)
        self.until(
            lambda: all(
                one.knows(*(other for other in everybody if other is not one)) for one in everybody
            )
        )

    def until(self, done: Callable[[], Any], *, skip_ms: int = 0) -> None:
        """Turn every loop until `done`; each round may put the clock forward."""
        deadline = time.monotonic() + WAIT_S
        poller = Poller()
        for one in self.speakers:
            for socket in one.waited_for():
                poller.watch(socket)
        while True:
            self.turn()
            if done():
                return
            assert time.monotonic() < deadline, "it did not come to that in time"
            self.skip(skip_ms)
            poller.wait(5)

    def turn(self) -> None:
        """One turn of every loop."""
        for one in self.speakers:
            one.turn()

    def close(self) -> None:
        """End everything."""
        for raw in self._raws:
            raw.close()
        for one in self.speakers:
            one.close()


class Raw:
    """A DEALER that sends whatever it is told to."""

    def __init__(self, endpoint: str, **options: int) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.SNDTIMEO, int(WAIT_S * 1000))
        for name, value in options.items():
            self.socket.set(getattr(zmq, name), value)
        self.socket.connect(endpoint)

    def send(self, *frames: bytes) -> None:
        """Send one multipart."""
        self.socket.send_multipart(frames)

    def say(self, *messages: m.Message, session: int = 0, sequence: int = 0) -> None:
        """Send a valid multipart."""
        encoded = [codec.encode(message) for message in messages]
        self.send(codec.encode_header(session, sequence), codec.frame_of(encoded))

    def heard(self, limit_s: float = WAIT_S) -> list[list[Any]]:
        """Wait for one multipart and return its messages as plain lists."""
        assert self.socket.poll(int(limit_s * 1000)), "no answer came in time"
        frames = self.socket.recv_multipart()
        return [one for frame in frames[1:] for one in msgspec.msgpack.decode(frame)]

    def close(self) -> None:
        """Hang up."""
        self.socket.close()
        self._context.term()


class RawProgram:
    """A program of the same machine that sends whatever it is told to."""

    def __init__(self, path: Path) -> None:
        self._link = LocalLink(str(path))
        assert self._link.connect(), f"nobody listens at {path}"

    def send(self, *packets: bytes) -> None:
        """Send these packets as they are."""
        assert self._link.send(packets)

    def say(self, *messages: m.Message) -> None:
        """Send one sound packet."""
        self.send(codec.frame_of([codec.encode(message) for message in messages]))

    def packets(self, limit_s: float = WAIT_S) -> list[bytes]:
        """Wait until something comes; return all that is there, nothing after `limit_s`."""
        select.select([self._link.fd], [], [], limit_s)
        return list(self._link.receive())

    def heard(self, limit_s: float = WAIT_S) -> list[list[Any]]:
        """Wait for packets and return their messages as plain lists."""
        packets = self.packets(limit_s)
        assert packets, "no answer came in time"
        return [one for packet in packets for one in msgspec.msgpack.decode(packet)]

    def close(self) -> None:
        """Hang up."""
        self._link.close()


def hello(node: bytes, inc: int, endpoint: str, **changes: Any) -> m.Hello:
    """A greeting of some node in the cluster `shelf`."""
    fields: dict[str, Any] = {
        "version_min": PROTOCOL_VERSION_MIN,
        "version_max": PROTOCOL_VERSION_MAX,
        "cluster": cluster_digest("shelf"),
        "node": node,
        "inc": inc,
        "your_inc": 0,
        "name": "raw",
        "endpoints": (endpoint,),
        "telemetry_port": 0,
        "bulk_port": 0,
    }
    return m.Hello(**{**fields, **changes})


def replies(count: int, size: int = 0) -> list[m.Reply]:
    """Messages that can be told apart, each a little longer than `size` bytes."""
    return [m.Reply(number, b"", 0, True, bytes(size)) for number in range(count)]
