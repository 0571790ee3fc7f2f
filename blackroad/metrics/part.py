"""A node's figures, health and targets, served; made only where `metrics_port` switches it on.

Edge.  Binds what the rest of this folder decides to one daemon's node and loop.  A page is made at
most once a second, however often it is asked for.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from blackroad.discovery.membership import PeerState
from blackroad.errors import ConfigError, InvariantBroken
from blackroad.ids import short
from blackroad.metrics.gather import gather
from blackroad.metrics.names import LABEL_CHARS_MAX
from blackroad.metrics.page import CONTENT_TYPE, Page
from blackroad.metrics.rules import JSON, Answer, Door, Request, Routes
from blackroad.metrics.server import Server, bind
from blackroad.metrics.tally import Tally
from blackroad.metrics.targets import Place, host_of, listed
from blackroad.starting import boot_ms

if TYPE_CHECKING:
    from pathlib import Path

    from blackroad.bus.transport import Transport
    from blackroad.config import Config
    from blackroad.events import Event
    from blackroad.node import Node
    from blackroad.router.records import Task
    from blackroad.watching import Watching

CACHE_MS: Final = 1_000
TOKEN_CHARS_MIN: Final = 16
TOKEN_CHARS_MAX: Final = 256
REFUSED_GAP_MS: Final = 60_000


class Around(NamedTuple):
    """What a daemon shows of itself: its node, its edges' counters, and where nodes are reached.

    `hosts` of a peer, or of this node itself, are given the best one first.
    """

    node: Node
    edges: Callable[[], Mapping[str, Any]]
    hosts: Callable[[bytes], Sequence[str]]
    tell: Callable[..., None]


def read_token(path: Path) -> str:
    """Read the secret that the figures are asked for with.

    Raises  ConfigError where the file is not there, is open to everybody, or holds no token.
    """
    make = f"(umask 077; head -c 24 /dev/urandom | base64 > {path})"
    try:
        with path.open("rb") as file:
            everybody = os.fstat(file.fileno()).st_mode & stat.S_IRWXO
            raw = file.read(4 * TOKEN_CHARS_MAX)
    except OSError as error:
        raise ConfigError(
            f"metrics_token_file {path}: cannot be read: {error.strerror}",
            hint=f"make one with `{make}`",
        ) from error
    if everybody:
        raise ConfigError(
            f"metrics_token_file {path}: every user of this machine may open it",
            hint=f"`chmod 600 {path}`, and make another token if it was read meanwhile",
        )
    token = raw.decode("ascii", "replace").strip()
    right = TOKEN_CHARS_MIN <= len(token) <= TOKEN_CHARS_MAX
    if not right or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"metrics_token_file {path}: holds no token of {TOKEN_CHARS_MIN} to "
            f"{TOKEN_CHARS_MAX} letters, digits and signs",
            hint=f"make one with `{make}`",
        )
    return token


def names_of(config: Config) -> tuple[str, ...]:
    """The names by which this server may be asked for."""
    own = [name for name in (config.name, socket.gethostname()) if name]
    return tuple(dict.fromkeys([*own, *(f"{name}.local" for name in own), *config.metrics_names]))


def hosts_of(transport: Transport, me: bytes, node: bytes) -> list[str]:
    """The hosts that a node is reached at, the one in use first."""
    if node == me:
        return [host_of(one) for one in transport.endpoints]
    link = transport.links.get(node)
    if link is None:
        return []
    return [host_of(one) for one in (transport.address(link), *link.endpoints)]


def part(watching: Watching) -> Metrics:
    """Serve what one daemon shows.

    Raises  ConfigError, PortInUse.
    """
    node, transport, sources = watching.node, watching.transport, watching.sources
    if node is None or transport is None or sources is None:
        raise InvariantBroken("figures of a node that is not there")
    metrics = Metrics(watching.config, boot_ms)
    there = partial(hosts_of, transport, node.me)
    metrics.open(Around(node, watching.figures, there, watching.tell))
    sources.watch(metrics.fileno(), metrics.turn)
    watching.serves = metrics.said
    return metrics


class Metrics:
    """The server of one daemon, and what it counts."""

    def __init__(self, config: Config, clock: Callable[[], int]) -> None:
        """Listen; nothing is answered before `open`.

        Raises  ConfigError, PortInUse.
        """
        path = config.metrics_token_file
        token = read_token(path) if path is not None else ""
        self.tally = Tally()
        self._clock = clock
        self._around: Around | None = None
        self._page = b""
        self._page_ms = 0
        self._spent_s = 0.0
        self._series = self._cut = 0
        self._refused = 0
        self._refused_told_ms = -REFUSED_GAP_MS
        listener = bind(config.metrics_listen, config.metrics_port or 0)
        host, port = listener.getsockname()[:2]
        # As it is told to other nodes.
        self.said = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        loopback = host.startswith("127.") or host == "::1"
        door = Door(names_of(config), token, loopback=loopback)
        routes = {"/metrics": self._metrics, "/health": self._health, "/sd": self._targets}
        self._server = Server(listener, Routes(door, routes, "/health"), clock)

    def open(self, around: Around) -> None:
        """From now on there is something to tell."""
        self._around = around

    def fileno(self) -> int:
        """What the daemon watches for this server."""
        return self._server.fileno()

    def turn(self) -> None:
        """Serve whoever is ready."""
        self._server.turn()

    def tick(self, now_ms: int) -> None:
        """Once a second: drop who is slow, tell of those who were refused."""
        self._server.tick(now_ms)
        codes = self._server.codes
        refused = codes.get(401, 0) + codes.get(403, 0)
        if (
            refused > self._refused
            and self._around is not None
            and now_ms - self._refused_told_ms >= REFUSED_GAP_MS
        ):
            self._around.tell("metrics.refused", times=refused - self._refused)
            self._refused, self._refused_told_ms = refused, now_ms

    def ended(self, tasks: Sequence[Task]) -> None:
        """Count tasks of this owner that have ended."""
        self.tally.ended(tasks, self._clock())

    def event(self, event: Event) -> None:
        """Count an event."""
        self.tally.told(event.name, event.severity)

    def close(self) -> None:
        """Stop serving."""
        self._server.close()

    # --- routes -----------------------------------------------------------------------------------

    def _metrics(self, request: Request, proves: bool) -> Answer:
        around = self._around
        if around is None:
            return _NOT_YET
        now_ms = self._clock()
        if not self._page or now_ms - self._page_ms >= CACHE_MS:
            began_s = time.perf_counter()
            page = Page()
            gather(page, around.node, around.edges(), self.tally, now_ms)
            self._own(page)
            self._page = page.body()
            self._page_ms = now_ms
            self._series, self._cut = page.series, page.cut
            self._spent_s = time.perf_counter() - began_s
        return Answer(200, self._page, CONTENT_TYPE)

    def _own(self, page: Page) -> None:
        server = self._server
        codes = [((str(code),), count) for code, count in sorted(server.codes.items())]
        page.many("blackroad_http_requests_total", codes)
        page.many(
            "blackroad_http_dropped_total",
            [((why,), count) for why, count in server.dropped.items()],
        )
        page.one("blackroad_http_connections", len(server))
        page.one("blackroad_page_seconds", round(self._spent_s, 6))
        page.one("blackroad_series", self._series)
        page.one("blackroad_series_cut", self._cut)

    def _health(self, request: Request, proves: bool) -> Answer:
        around = self._around
        if around is None:
            return _NOT_YET
        node = around.node
        problems = [
            problem
            for problem, holds in (
                ("no coordinator", not node.election.follows),
                ("no room in the state directory", node.owner.full),
                ("another machine has this node's id", node.lives.is_clone(node.me)),
            )
            if holds
        ]
        told: dict[str, Any] = {"status": "degraded" if problems else "ok"}
        if proves:
            told |= {
                "node": short(node.me),
                "name": node.name,
                "coordinator": short(node.election.follows) if node.election.follows else None,
                "draining": node.worker.draining,
                "problems": problems,
            }
        return Answer(503 if problems else 200, msgspec.json.encode(told) + b"\n", JSON)

    def _targets(self, request: Request, proves: bool) -> Answer:
        around = self._around
        if around is None:
            return _NOT_YET
        return Answer(200, listed(self._places(around)), JSON)

    def _places(self, around: Around) -> Iterable[Place]:
        node = around.node
        there = [node.me]
        # Who is silent or dead stays: that it cannot be read is what a scrape should show.
        peers = node.membership.peers.values()
        there += [one.node for one in peers if one.state is not PeerState.LEFT]
        for id_ in sorted(there):
            caps = node.capabilities.get(id_)
            if caps is not None and caps.metrics:
                name = caps.name[:LABEL_CHARS_MAX]
                yield Place(short(id_), name, caps.arch, caps.metrics, around.hosts(id_))


_NOT_YET: Final = Answer(503, b"this node is starting\n")
