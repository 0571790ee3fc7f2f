"""All of a daemon's security in one place: its keys, its guard, its door, and who keeps the list.

Edge.  Without keys a gate only says so: the daemon is open then, and on loopback.  With keys it
makes sure before the first word that strangers are turned away, and that whoever is revoked is cut
off at once.  This file must not know tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from blackroad.bus import codec
from blackroad.bus import messages as m
from blackroad.bus.guard import Guard
from blackroad.bus.members import Member, Role, body_of
from blackroad.bus.sockets import Bus, Socket, bind, bind_again, drain_door, send
from blackroad.bus.transport import Identity, Transport, closed_cluster_digest, cluster_digest
from blackroad.errors import BlackroadError, EnvironmentProblem, RemoteProtocolError, UsageError
from blackroad.ids import short
from blackroad.limits import FOREVER_MS
from blackroad.queries import pages
from blackroad.starting import boot_ms, own_endpoints, wall_ms
from blackroad.store.keyring import Keyring

if TYPE_CHECKING:
    from pathlib import Path

    from blackroad.bus.members import Record
    from blackroad.config import Config
    from blackroad.keeper import Keeper
    from blackroad.store.identity import Life

TICK_MS: Final = 1_000
TOLD_MS: Final = 60_000
RELOAD: Final = "cluster.reload"
PREFIX: Final = "cluster."
_GOSSIP: Final = frozenset({m.Members, m.AskMembers, m.DoorKey, m.Rotate})
_NOTHING: Final[Mapping[bytes, m.Message]] = {}
Watch = Callable[[Socket, Callable[[], None]], None]


class Gate:
    """The edge of one daemon towards everybody else."""

    def __init__(self, config: Config, state_dir: Path) -> None:
        """Read the keys, if there are some.

        Raises  StateDirectoryProblem where they are damaged; UsageError where they are not enough.
        """
        self.keyring = Keyring(state_dir)
        self.closed = self.keyring.load()
        self.guard: Guard | None = None
        self.keeper: Keeper | None = None
        # What the daemon has to do where others were cut off, and where all has to be made anew.
        self.on_cut: list[Callable[[bytes], None]] = []
        self.on_reload: Callable[[], None] = lambda: None
        self.log: Any = None
        self._config = config
        self._door: Socket | None = None
        self._door_port = 0
        self._told_total = 0
        self._told_ms = -FOREVER_MS
        self._due_ms = 0
        self._expelled = False
        self._unheard = False
        self._watch: Watch = lambda _socket, _handler: None
        self._unwatch: Callable[[Socket], None] = lambda _socket: None
        if self.closed:
            self._check_role()

    def _check_role(self) -> None:
        role = self.keyring.role
        if role is not None and role < Role.NODE:
            raise UsageError(
                f"this machine's key has the role `{role.name.lower()}`: it may use the cluster "
                f"`{self.keyring.name}`, not work in it",
                hint="join it with a token of the role `node` (`blackroad token create --role "
                "node` on an admin)",
            )

    # --- start ------------------------------------------------------------------------------------

    def open_bus(self) -> Bus:
        """Make the bus that fits the keys, and the judge before anything listens."""
        if not self.closed:
            return Bus()
        own = self.keyring.own
        bus = Bus(own)
        self.guard = Guard(bus, own.curve_public, self.keyring.members, boot_ms, wall_ms)
        return bus

    def open_transport(self, bus: Bus, life: Life, name: str) -> Transport:
        """Listen; and let nobody be heard before every socket has withstood an attack.

        Raises  EnvironmentProblem where one of them has not, or a port is in use.
        """
        config = self._config
        listen = config.listen or "127.0.0.1"
        cluster = (
            closed_cluster_digest(self.keyring.cluster_id)
            if self.closed
            else cluster_digest(config.cluster)
        )
        transport = Transport(
            bus,
            Identity(life.node, life.inc, name, cluster),
            listen,
            config.port,
            config.telemetry_port,
            config.bulk_port,
            self.guard,
        )
        transport.endpoints = own_endpoints(listen, transport.port)
        self._bus, self._transport, self._listen = bus, transport, listen
        if self.guard is not None:
            self._keep(transport)
            watch, telemetry = self.guard.watch, transport.telemetry
            watch("the port for messages", transport.inbox, listen, transport.port)
            watch("the port for objects", transport.bulk, listen, transport.bulk_port)
            watch(_TELEMETRY, telemetry.publisher, listen, telemetry.port, listens=True)
            self._open_door()
            self.guard.attack()
        return transport

    def _keep(self, transport: Transport) -> None:
        from blackroad.keeper import Keeper

        self.keeper = Keeper(
            self.keyring,
            send=transport.send,
            linked=lambda: [node for node, link in transport.links.items() if link.open],
            endpoints=lambda: transport.endpoints,
            door_endpoints=self.door_endpoints,
            pending_joins=self._config.pending_joins,
            wall_ms=wall_ms,
            clock=boot_ms,
        )
        self.keeper.on_changed = self._on_changed
        self.keeper.on_door = self._reopen_door
        self.keeper.on_reload = lambda: self.on_reload()
        transport.on_open = self._on_open

    def _open_door(self) -> None:
        """Let newcomers knock, where this node may let somebody in."""
        secret, port = self.keyring.door[1], self._door_port
        self._close_door()
        if self.guard is None or self.keeper is None or self.keeper.door is None:
            return
        door = self._bus.door(secret)
        if port:
            self._door_port = bind_again(door, self._listen, port, "join_port")
        else:
            self._door_port = bind(door, self._listen, self._config.join_port, "join_port")
        self._door = door
        self.guard.watch("the join port", door, self._listen, self._door_port, door=True)

    def _close_door(self) -> None:
        door, self._door, self._door_port = self._door, None, 0
        if door is not None and self.guard is not None:
            self._unguard("the join port")
            self._unwatch(door)
            self._bus.drop(door)

    def _unguard(self, what: str) -> None:
        monitor = self.guard.unwatch(what) if self.guard is not None else None
        if monitor is not None:
            self._unwatch(monitor)

    def door_endpoints(self) -> tuple[str, ...]:
        """Where newcomers reach this node; nothing where it lets nobody in."""
        return own_endpoints(self._listen, self._door_port) if self._door_port else ()

    @property
    def door_port(self) -> int:
        """The port of the join socket, 0 where there is none."""
        return self._door_port

    def door_shown(self) -> tuple[int, bytes]:
        """The port and the key of the door as everybody may know them; (0, b"") for none."""
        key = self.keeper.door_told() if self.keeper is not None else b""
        return (self._door_port, key) if key and self._door_port else (0, b"")

    def watch_all(self, watch: Watch, unwatch: Callable[[Socket], None]) -> None:
        """Have everything of the gate's waited for, now and when it changes."""
        self._watch, self._unwatch = watch, unwatch
        if self.guard is not None:
            watch(self.guard.judge, self.guard.serve)
            for monitor in self.guard.monitors():
                watch(monitor, self.guard.read_failures)
        if self._door is not None:
            watch(self._door, self._on_door)

    # --- newcomers --------------------------------------------------------------------------------

    def _on_door(self) -> None:
        """Read what newcomers say."""
        keeper, door = self.keeper, self._door
        if keeper is None or door is None or keeper.door is None:
            return
        now_ms = boot_ms()
        for key, frames, address in drain_door(door):
            try:
                if len(frames) != 3 or not key:
                    raise RemoteProtocolError("door: three frames are due")
                codec.decode_header(frames[1])
                found, _ = codec.DOOR.decode(frames[2])
                if len(found) != 1:
                    raise RemoteProtocolError("door: one message at a time")
            except RemoteProtocolError:
                self._turned_away("door.breach", address)
                continue
            answer = keeper.door.handle(found[0], key, address, now_ms, wall_ms())
            body = codec.frame_of((codec.encode(answer),))
            send(door, (frames[0], codec.encode_header(0, 0), body))
            if isinstance(answer, m.Denied):
                self._turned_away("door.denied", address)

    def _turned_away(self, kind: str, address: str) -> None:
        if self.guard is not None:
            self.guard.turned_away(kind, address)

    # --- members ----------------------------------------------------------------------------------

    def _on_open(self, node: bytes) -> None:
        if self.keeper is not None:
            self.keeper.on_link(node, boot_ms())

    def sift(self, node: bytes, found: list[m.Message]) -> list[m.Message]:
        """Take what a peer says of members; return the rest."""
        if not any(type(one) in _GOSSIP for one in found):
            return found
        if self.keeper is not None:
            now_ms = boot_ms()
            for one in found:
                if type(one) in _GOSSIP:
                    self.keeper.on_gossip(node, one, now_ms)
        return [one for one in found if type(one) not in _GOSSIP]

    def order(self, client: bytes, query: m.Query) -> None:
        """Carry out an order about the cluster, and answer it."""
        body, error = b"", ""
        try:
            body = self._carried_out(client, query)
        except BlackroadError as problem:
            error = problem.message + (f" ({problem.hint})" if problem.hint else "")
        for page in pages(query.query, self._transport.me.node, body, error):
            self._transport.tell(client, page)

    def _carried_out(self, client: bytes, query: m.Query) -> bytes:
        role = self._transport.visitors.role_of(client)
        if query.target not in (b"", self._transport.me.node):
            raise RemoteProtocolError("orders about the cluster are not passed on to other nodes")
        if query.name == RELOAD:
            if role < Role.ADMIN:
                raise RemoteProtocolError(f"`{RELOAD}` is for programs on this machine")
            self.on_reload()
            return b"\x80"
        if self.keeper is None:
            raise RemoteProtocolError(
                "this daemon has no keys yet: `blackroad init` makes a cluster, `blackroad join "
                "TOKEN` joins one"
            )
        return self.keeper.order(query, role)

    def _on_changed(self, news: list[Record]) -> None:
        # Whoever is revoked is told that, and nothing else.
        last = {
            what.node: m.Members(self.keyring.members.digest, (record,))
            for record in news
            if isinstance(what := body_of(record), Member) and what.revoked
        }
        self.cut(boot_ms(), last)

    def _reopen_door(self) -> None:
        """The door has another key, or this node none for it any more."""
        self._open_door()
        self.watch_all(self._watch, self._unwatch)

    def cut(self, now_ms: int, last: Mapping[bytes, m.Message] = _NOTHING) -> None:
        """Drop everybody who is no member any more, and be unheard by them but for `last`."""
        gone = self._transport.cut(now_ms, last)
        for node in gone:
            self.log.warning("cluster.cut", node=short(node))
            for told in self.on_cut:
                told(node)
        if gone:
            self._unguard(_TELEMETRY)
            self._unheard = True
        if self._unheard:
            self._hang_up_listeners()

    def _hang_up_listeners(self) -> None:
        """Make the telemetry anew, to which only members can come back."""
        telemetry = self._transport.telemetry
        try:
            telemetry.rebind()
        except EnvironmentProblem as error:
            # Another program was faster; tried again with the next tick.
            self.log.error("telemetry.unheard", error=error.message, hint=error.hint)
            return
        self._unheard = False
        if self.guard is not None:
            publisher, port = telemetry.publisher, telemetry.port
            monitor = self.guard.watch(_TELEMETRY, publisher, self._listen, port, listens=True)
            self._watch(monitor, self.guard.read_failures)

    # --- time -------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Let the keeper work; notice who expired; say now and then who was turned away."""
        if self.guard is None or self.keeper is None:
            return
        self.keeper.tick(now_ms)
        if now_ms < self._due_ms:
            return
        self._due_ms = now_ms + TICK_MS
        self.guard.tick()
        self.cut(now_ms)
        self._look_at_self()
        total = self.guard.refusals.total
        if total != self._told_total and now_ms - self._told_ms >= TOLD_MS:
            self._told_total, self._told_ms = total, now_ms
            self.log.warning("guard.refused", **self.guard.refusals.told())

    def _look_at_self(self) -> None:
        """Say it, once, when this node itself is no member any more."""
        expelled = self.keyring.role is None
        if expelled and not self._expelled:
            self.log.error(
                "cluster.expelled",
                cluster=self.keyring.name,
                hint="this machine's key was revoked or has expired: nobody there speaks with it; "
                "join again with `blackroad join TOKEN`",
            )
        self._expelled = expelled

    def next_deadline_ms(self) -> int:
        """When `tick` next has something to do."""
        if self.guard is None or self.keeper is None:
            return FOREVER_MS
        return min(self._due_ms, self.keeper.next_deadline_ms())

    def told(self) -> dict[str, Any]:
        """What is to be known of all this, as plain data."""
        if self.guard is None:
            return {"closed": False}
        role = self.keyring.role
        return {
            "closed": True,
            "cluster": self.keyring.name,
            "role": role.name.lower() if role is not None else "none",
            "members": len(self.keyring.members.members()),
            "keeper": self.keeper.status() if self.keeper is not None else {},
            "door_port": self._door_port,
            "asked": self.guard.asked,
            "refused": self.guard.refusals.told(),
        }


_TELEMETRY: Final = "the port for telemetry"
