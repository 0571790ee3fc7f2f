"""How a daemon looks for others, and what it can tell of the networks it is in.

Edge.  mDNS, a registry and the interfaces of this machine lead to hints; while nobody is heard it
says so and lists what it tried; and it answers questions about who can be reached.  This file must
not know tasks, nor believe anything that a hint says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blackroad.bus import messages as m
from blackroad.bus.addresses import CONTAINER, host_of, rank_of
from blackroad.discovery import interfaces as nets
from blackroad.discovery import reach as reaching
from blackroad.discovery.hints import Announcement, Hint
from blackroad.discovery.mdns import Mdns
from blackroad.discovery.reach import Reacher
from blackroad.discovery.registry_redis import Registry
from blackroad.ids import bytes32, text32
from blackroad.limits import FOREVER_MS, HINTS_MAX, PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN

if TYPE_CHECKING:
    from blackroad.bus.dialling import Attempt
    from blackroad.bus.transport import Transport
    from blackroad.config import Config
    from blackroad.discovery.membership import Membership
    from blackroad.router.effects import Lookup

INTERFACES_MS: Final = 10_000
# Each hint may cost a dozen connections: so many are followed at once, and then so many a second.
HINTS_BURST: Final = 64.0
HINTS_PER_S: Final = 10.0
# Said after so long without anybody, and then ever more rarely.
ALONE_MS: Final = (5_000, 60_000, 300_000, 1_800_000)
TRIED_MAX: Final = 32
PEERS_ASKED_MAX: Final = 64
ADDRESSES_ASKED_MAX: Final = 4
ASK_MS: Final = 1_800
# Queries of the driver's own, beyond those that the node relays.
OWN_QUERIES: Final = 2**62
ASKS_MAX: Final = 64
QUERIES: Final = frozenset({"net.status", "net.probe", "net.ask"})
EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})

Watch = Callable[[int, Callable[[], None]], None]
Answer = Callable[["Lookup", dict[str, Any]], None]
Refuse = Callable[["Lookup", str], None]


class NetArgs(msgspec.Struct, frozen=True):
    """Arguments of `net.probe` and `net.ask`: which node ("" for all), and what to ask it."""

    node: str = ""
    ask: str = "net.status"
    about: str = ""


class _Asked:
    """A question that is passed on to a node which its asker cannot reach."""

    __slots__ = ("body", "lookup", "node", "until_ms")

    def __init__(self, lookup: Lookup, node: bytes, until_ms: int) -> None:
        self.lookup = lookup
        self.node = node
        self.until_ms = until_ms
        self.body = b""


class Seeking:
    """All the ways in which one daemon looks for others."""

    def __init__(
        self,
        config: Config,
        transport: Transport,
        membership: Membership,
        log: Any,
        clocks: tuple[Callable[[], int], Callable[[], int]],
        own_endpoints: Callable[[], tuple[str, ...]],
    ) -> None:
        """`clocks` are the one that decides and the one of people, in milliseconds."""
        self._config = config
        self._transport = transport
        self._membership = membership
        self._log = log
        self._clock, self._wall = clocks
        self._own_endpoints = own_endpoints
        self._mdns: Mdns | None = None
        self._registry: Registry | None = None
        self._announcement: Announcement | None = None
        self._reacher = Reacher()
        self._budget, self._budget_ms = HINTS_BURST, clocks[0]()
        self._later: dict[str, Hint] = {}
        self._interfaces_ms = 0
        self._alone_since_ms = 0
        self._alone_said = 0
        self._asks: dict[int, _Asked] = {}
        self._ask_serial = OWN_QUERIES
        self.reply: Answer = lambda _lookup, _body: None
        self.refuse: Refuse = lambda _lookup, _text: None
        # What was found at addresses where nobody answered; told while nobody is heard.
        self._reached: dict[reaching.Target, str] = {}

    # --- start and end ----------------------------------------------------------------------------

    def start(self, watch: Watch, arch: str, door: tuple[int, bytes] = (0, b"")) -> None:
        """Announce this daemon and listen for others.

        Raises  ConfigError where the registry would be open to anybody.
        """
        config, transport = self._config, self._transport
        self._announcement = Announcement(
            node=text32(transport.me.node),
            ports=(transport.port, transport.telemetry_port, transport.bulk_port),
            versions=(PROTOCOL_VERSION_MIN, PROTOCOL_VERSION_MAX),
            arch=arch,
            cluster=text32(transport.me.cluster),
        )
        self.show_door(*door)
        now_ms = self._clock()
        self._alone_since_ms = now_ms
        self._interfaces_ms = now_ms + INTERFACES_MS
        watch(self._reacher.fileno(), self._reacher.read)
        if config.redis_url:
            self._registry = Registry(config.redis_url, self._announcement)
            self._registry.announce(transport.endpoints)
            watch(self._registry.fileno(), self._on_registry)
        if config.mdns:
            wanted = list(config.mdns_interfaces) or None
            if wanted is None and config.listen not in (None, *EVERYWHERE):
                # Who listens on one address can be reached on that one only.
                wanted = [str(config.listen)]
            self._mdns = Mdns(self._announcement, wanted)
            watch(self._mdns.fileno(), self._on_mdns)

    def show_door(self, port: int, key: bytes) -> None:
        """Announce where newcomers may knock, or that they may not any more (no key)."""
        told = self._announcement
        if told is None:
            return
        port = port if key and self._config.pending_joins else 0
        key = key if port else b""
        if (told.join_port, told.door_key) != (port, key):
            self._announcement = msgspec.structs.replace(told, join_port=port, door_key=key)
            if self._mdns is not None:
                self._mdns.announce(self._announcement)

    def close(self) -> None:
        """Say goodbye to the network."""
        for one in (self._registry, self._mdns, self._reacher):
            if one is not None:
                one.close()

    # --- hints ------------------------------------------------------------------------------------

    def _on_mdns(self) -> None:
        if self._mdns is None:
            return
        for hint in self._mdns.read():
            self._hint(hint)
        problem = self._mdns.take_problem()
        if problem:
            self._log.warning("mdns.problem", problem=problem)

    def _on_registry(self) -> None:
        if self._registry is None:
            return
        for hint in self._registry.read():
            self._hint(hint)
        note = self._registry.take_note()
        if note is not None:
            say = self._log.info if note[0] == "up" else self._log.warning
            say("registry.state", state=note[0], problem=note[1])

    def _hint(self, hint: Hint) -> None:
        """Follow a hint, if not too many came lately: those wait, and the oldest are given up."""
        now_ms = self._clock()
        if self._earned(now_ms):
            self._follow(hint, now_ms)
            return
        self._later.pop(hint.node, None)
        self._later[hint.node] = hint
        if len(self._later) > HINTS_MAX:
            del self._later[next(iter(self._later))]

    def _earned(self, now_ms: int) -> bool:
        earned = (now_ms - self._budget_ms) * HINTS_PER_S / 1000
        self._budget, self._budget_ms = min(HINTS_BURST, self._budget + earned), now_ms
        if self._budget < 1:
            return False
        self._budget -= 1
        return True

    def _follow(self, hint: Hint, now_ms: int) -> None:
        node = bytes32(hint.node)
        for endpoint in hint.endpoints:
            self._transport.hint(endpoint, now_ms, FOREVER_MS, node, hint.source)

    # --- time -------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """About once a second: children that ended, interfaces that came, nobody to be heard."""
        self._on_mdns()
        self._on_registry()
        # The newest first: an invention is said once, who is there says it again.
        for node in reversed(list(self._later)):
            if not self._earned(now_ms):
                break
            self._follow(self._later.pop(node), now_ms)
        if now_ms >= self._interfaces_ms:
            self._interfaces_ms = now_ms + INTERFACES_MS
            self._look_at_interfaces(now_ms)
        for serial, asked in list(self._asks.items()):
            if now_ms >= asked.until_ms:
                del self._asks[serial]
                self.refuse(asked.lookup, "unreachable: no answer in time")
        self._look_around(now_ms)

    def _look_at_interfaces(self, now_ms: int) -> None:
        """Networks come up after daemons: peers are told of addresses that are new."""
        endpoints = self._own_endpoints()
        if endpoints == self._transport.endpoints:
            return
        self._log.info("net.addresses", endpoints=list(endpoints))
        self._transport.announce(endpoints, now_ms)
        if self._registry is not None:
            self._registry.announce(endpoints)

    def _look_around(self, now_ms: int) -> None:
        """Say that nobody is heard, and what was tried; rarely, for it may be meant so."""
        if any(link.present for link in self._transport.links.values()):
            self._alone_since_ms, self._alone_said = now_ms, 0
            return
        if self._is_meant_alone() or self._alone_said >= len(ALONE_MS) + 1:
            return
        wait_ms = ALONE_MS[min(self._alone_said, len(ALONE_MS) - 1)]
        if now_ms - self._alone_since_ms < wait_ms:
            return
        self._alone_said += 1
        self._reach_unanswered(
            lambda: self._log.warning(
                "net.alone",
                silent_ms=self._clock() - self._alone_since_ms,
                tried=self._tried_in_words(),
                hint="`blackroad doctor net` looks closer",
            )
        )

    def _is_meant_alone(self) -> bool:
        """Nothing is looked for: then there is nothing to tell either."""
        return not (self._config.mdns or self._registry or self._transport.dialler.attempts())

    # --- what was tried ---------------------------------------------------------------------------

    def _reach_unanswered(self, done: Callable[[], None]) -> None:
        """Look with plain TCP at addresses where nobody answered, then go on."""
        attempts = self._transport.dialler.attempts()[: 4 * TRIED_MAX]
        targets = [one for one in map(_target, attempts) if one is not None]

        def reached(results: dict[reaching.Target, str]) -> None:
            self._reached = results
            done()

        if not self._reacher.ask(targets, reached):
            done()

    def _tried(self) -> list[dict[str, str]]:
        """Each address that is being tried, where it is from and what came of it."""
        rows = []
        for one in self._transport.dialler.attempts()[:TRIED_MAX]:
            target = _target(one)
            plain = self._reached.get(target, "") if target is not None else ""
            rows.append(
                {
                    "endpoint": one.endpoint,
                    "source": one.source,
                    "node": text32(one.node) if one.node else "",
                    "result": outcome(one.result, plain, closed=self._closed),
                }
            )
        return rows

    @property
    def _closed(self) -> bool:
        return self._transport.closed

    def _tried_in_words(self) -> list[str]:
        words = [f"mDNS: {self._mdns_in_words()}"]
        if self._registry is not None:
            problem = f" ({self._registry.problem})" if self._registry.problem else ""
            words.append(f"Redis registry: {self._registry.state or 'not asked yet'}{problem}")
        rows = self._tried()
        words += [f"{row['source']} {row['endpoint']}: {row['result']}" for row in rows]
        if not any(row["source"] == "static" for row in rows):
            words.append("no peer is named in the configuration (`peers`)")
        return words

    def _mdns_in_words(self) -> str:
        if self._mdns is None:
            return "off (`mdns = false`)"
        if self._mdns.problem:
            return self._mdns.problem
        if not self._mdns.places:
            return "not begun yet"
        heard = len(self._mdns.heard)
        who = f"{heard} node(s) heard" if heard else "nobody heard"
        return f"{who} on {', '.join(self._mdns.places)}"

    # --- questions --------------------------------------------------------------------------------

    def answer(self, lookup: Lookup) -> None:
        """Answer one of QUERIES through `reply` or `refuse`, now or when it is known.

        Raises  msgspec.MsgspecError, UsageError where its arguments make no sense.
        """
        args = msgspec.msgpack.decode(lookup.args or b"\x80", type=NetArgs)
        match lookup.name:
            case "net.status":
                self._reach_unanswered(lambda: self.reply(lookup, self.status()))
            case "net.probe":
                self._probe(lookup, args)
            case _:
                self._ask(lookup, args)

    def _probe(self, lookup: Lookup, args: NetArgs) -> None:
        """Connect to all ports of the peers, and tell which could be connected."""
        wanted = bytes32(args.node) if args.node else b""
        targets: dict[reaching.Target, tuple[str, str, int]] = {}
        links = [
            link for node, link in self._transport.links.items() if not wanted or node == wanted
        ]
        for link in links[:PEERS_ASKED_MAX]:
            for endpoint in self._addresses(link.node, link.endpoints):
                host, port = host_of(endpoint), int(endpoint.rpartition(":")[2])
                for number in (port, link.telemetry_port, link.bulk_port):
                    if number:
                        targets[host, number] = (text32(link.node), host, number)

        def done(results: dict[reaching.Target, str]) -> None:
            rows = [
                {"node": node, "host": host, "port": port, "result": results.get((host, port), "")}
                for node, host, port in targets.values()
            ]
            self.reply(lookup, {"probed": rows})

        if not self._reacher.ask(targets, done):
            self.refuse(lookup, "this daemon is busy with such questions; ask again")

    def _addresses(self, node: bytes, told: tuple[str, ...]) -> list[str]:
        """The addresses of a peer that matter: the one in use, then others that are likely."""
        known = [*self._transport.dialler.addresses(node), *told]
        own = {host_of(endpoint) for endpoint in self._transport.endpoints}
        in_use = self._transport.address(self._transport.links[node])
        likely = [
            one
            for one in dict.fromkeys(known)
            if one == in_use or (rank_of(one) < CONTAINER and host_of(one) not in own)
        ]
        return (likely or known)[:ADDRESSES_ASKED_MAX]

    def _ask(self, lookup: Lookup, args: NetArgs) -> None:
        """Ask a node that the asker cannot reach, and pass its answer on."""
        if args.ask not in ("net.status", "net.probe"):
            self.refuse(lookup, f"`{args.ask}` is not passed on")
            return
        node = bytes32(args.node)
        link = self._transport.links.get(node)
        if link is None or not link.open or len(self._asks) >= ASKS_MAX:
            self.refuse(lookup, "unreachable: that node is not linked here")
            return
        self._ask_serial += 1
        self._asks[self._ask_serial] = _Asked(lookup, node, self._clock() + ASK_MS)
        packed = msgspec.msgpack.encode({"node": args.about})
        self._transport.send(node, m.Query(self._ask_serial, b"", args.ask, packed))

    def take(self, node: bytes, found: list[m.Message]) -> list[m.Message]:
        """Take answers to questions that were passed on; return the rest of what a peer said."""
        if not self._asks:
            return found
        rest = []
        for one in found:
            if isinstance(one, m.Reply) and one.query in self._asks:
                self._on_reply(node, one)
            else:
                rest.append(one)
        return rest

    def _on_reply(self, node: bytes, reply: m.Reply) -> None:
        asked = self._asks[reply.query]
        if asked.node != node:
            return
        asked.body += reply.body
        if not reply.last:
            return
        del self._asks[reply.query]
        if reply.error:
            self.refuse(asked.lookup, reply.error)
            return
        try:
            body = msgspec.msgpack.decode(asked.body, type=dict[str, Any])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self.refuse(asked.lookup, "the node's answer cannot be read")
            return
        self.reply(asked.lookup, body)

    def status(self) -> dict[str, Any]:
        """All that this daemon knows of its networks, as plain data."""
        transport, now_ms = self._transport, self._clock()
        family, table, chain = reaching.input_chain()
        return {
            "node": text32(transport.me.node),
            "name": transport.me.name,
            "wall_ms": self._wall(),
            "closed": self._closed,
            "listen": self._config.listen,
            "ports": [transport.port, transport.telemetry_port, transport.bulk_port],
            "endpoints": list(transport.endpoints),
            "interfaces": [
                {"name": one.name, "kind": one.kind, "addresses": list(one.v4 + one.v6)}
                for one in nets.interfaces()
            ],
            "mdns": self._mdns_told(),
            "registry": self._registry_told(),
            "tried": self._tried(),
            "tried_words": self._tried_in_words(),
            "peers": [self._peer_told(node, now_ms) for node in list(transport.links)],
            "clones": [
                {"node": text32(node), "endpoints": there}
                for node, there in transport.pasts.shunned().items()
            ],
            "firewall": reaching.firewall(),
            "input_chain": [family, table, chain] if chain else [],
            "counters": {
                name: count
                for name, count in transport.counters.items()
                if name.startswith(("reject.", "rejected", "hint.", "hello.", "refused."))
            },
        }

    def _mdns_told(self) -> dict[str, Any]:
        if self._mdns is None:
            return {"on": False, "problem": "", "places": [], "heard": []}
        return {
            "on": True,
            "problem": self._mdns.problem,
            "places": list(self._mdns.places),
            "heard": list(self._mdns.heard),
            "refused": self._mdns.refused,
            "restarts": self._mdns.restarts,
        }

    def _registry_told(self) -> dict[str, Any]:
        if self._registry is None:
            return {"on": False, "state": "", "problem": "", "heard": []}
        return {
            "on": True,
            "state": self._registry.state,
            "problem": self._registry.problem,
            "heard": list(self._registry.heard),
        }

    def _peer_told(self, node: bytes, now_ms: int) -> dict[str, Any]:
        """What is known of the ways to one peer and back."""
        link = self._transport.links[node]
        peer = self._membership.peers.get(node)
        connected = self._transport.connected(node)
        return {
            "node": text32(node),
            "name": link.name,
            "state": peer.state.name.lower() if peer is not None else "unknown",
            # It greets us: its way to our inbox is free.
            "greets": link.in_session != 0,
            # It answered us, and its answers come on its own connection: both ways were free.
            "answers": link.open,
            "address": connected,
            "endpoints": list(link.endpoints),
            "known": self._transport.dialler.addresses(node),
            "ports": [_port(link.endpoints), link.telemetry_port, link.bulk_port],
            "telemetry_ms": now_ms - peer.heard_ms if peer is not None else -1,
        }


def outcome(dialled: str, plain: str, *, closed: bool) -> str:
    """Say in words what became of an address, from the greeting and from plain TCP."""
    if dialled == "cluster":
        return "another cluster's daemon answers"
    if dialled == "version":
        return "a daemon of another version answers, with no protocol in common"
    if dialled == "clone":
        return "a second machine with this node's identity answers"
    if dialled not in ("waits", "silent"):
        return f"refused: {dialled}"
    if dialled == "silent":
        return "connected, but the greeting is not answered (is the way back blocked?)"
    if plain == reaching.OPEN:
        if closed:
            return "connected, but not with a key of this cluster (or ours is not known there)"
        return "connected, but no blackroad daemon without keys answers there"
    return plain or "no connection yet"


def _target(attempt: Attempt) -> reaching.Target | None:
    host, port = host_of(attempt.endpoint), attempt.endpoint.rpartition(":")[2]
    return (host, int(port)) if host and port.isdigit() else None


def _port(endpoints: tuple[str, ...]) -> int:
    text = endpoints[0].rpartition(":")[2] if endpoints else ""
    return int(text) if text.isdigit() else 0
