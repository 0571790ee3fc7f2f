"""Answers to queries that only the driver can give: output of tasks, objects, its own counters.

Edge.  What a node knows by itself is answered in `queries.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from blackroad.bus import messages as m
from blackroad.bus.fields import OptionalNode
from blackroad.errors import UsageError
from blackroad.ids import U63, Digest, short
from blackroad.queries import pages

if TYPE_CHECKING:
    from blackroad.bus.transport import Transport
    from blackroad.node import Node
    from blackroad.router import effects as fx
    from blackroad.running import Running
    from blackroad.runtime.exchange import Exchange
    from blackroad.runtime.objects import ObjectStore


class LogArgs(msgspec.Struct, frozen=True):
    """Arguments of `logs`: the start of a task's id, and the first byte that is wanted."""

    task: str
    offset: U63 = 0


class ObjectArgs(msgspec.Struct, frozen=True):
    """Arguments of `put` and `get`: which object, and for `get` who has it."""

    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=2**50)]
    node: OptionalNode = b""


KEPT_MAX = 256


class Answering:
    """Serves Lookup effects."""

    def __init__(
        self,
        node: Node,
        transport: Transport,
        running: Running,
        store: ObjectStore,
        exchange: Exchange,
        clock: Callable[[], int],
        journal: Callable[[], dict[str, Any]],
        edges: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._node = node
        self._transport = transport
        self._running = running
        self._store = store
        self._exchange = exchange
        self._clock = clock
        self._journal = journal
        self._edges = edges
        # Questions about networks are answered by who looks at them.
        self.net: Callable[[fx.Lookup], None] = lambda _lookup: None
        # What a doctor asks is found out in a child process.
        self.checkup: Callable[[], dict[str, Any]] | None = None
        # What happened is known to who is told of it.
        self.events: Callable[[bytes], dict[str, Any]] | None = None
        self._waiting: dict[bytes, list[fx.Lookup]] = {}
        # What was put or brought here stays until newer ones need the room.
        self._kept: OrderedDict[tuple[bytes, str], int] = OrderedDict()
        self._kept_bytes = store.limit_bytes // 2

    def answer(self, lookup: fx.Lookup) -> None:
        """Answer one query, now or when its object has arrived."""
        try:
            match lookup.name:
                case "logs":
                    self._logs(lookup, msgspec.msgpack.decode(lookup.args, type=LogArgs))
                case "net.status" | "net.probe" | "net.ask":
                    self.net(lookup)
                case "driver":
                    self.reply(lookup, self.statistics())
                case "checkup" if self.checkup is not None:
                    self.reply(lookup, self.checkup())
                case "events" if self.events is not None:
                    self.reply(lookup, self.events(lookup.args))
                case "put" | "get":
                    self._bring(lookup, msgspec.msgpack.decode(lookup.args, type=ObjectArgs))
                case _:
                    self.refuse(lookup, f"this daemon knows no query `{lookup.name}`")
        except (msgspec.MsgspecError, UsageError, ValueError, RecursionError) as error:
            self.refuse(lookup, f"query `{lookup.name}`: {error}")

    def _logs(self, lookup: fx.Lookup, args: LogArgs) -> None:
        page = self._running.printed(args.task, args.offset)
        if page is None:
            at = args.offset
            self.reply(lookup, {"text": "", "offset": at, "end": at, "cut": 0})
            return
        text = page.data.decode("utf-8", "replace")
        self.reply(lookup, {"text": text, "offset": page.start, "end": page.end, "cut": page.cut})

    def _bring(self, lookup: fx.Lookup, args: ObjectArgs) -> None:
        """Fetch an object from the asking client (put), or from the node that has it (get)."""
        ref = m.Ref(args.digest, args.size)
        self._waiting.setdefault(ref.digest, []).append(lookup)
        self._store.pin(ref.digest, lookup.name)
        if lookup.name == "put":
            self._exchange.fetch(ref, self._node.me, lookup.to, self._clock())
        else:
            self._exchange.fetch(ref, args.node, b"", self._clock())

    def arrived(self, digest: bytes) -> None:
        """An object is here: whoever asked for it is told."""
        for lookup in self._waiting.pop(digest, ()):
            key = (digest, lookup.name)
            if key in self._kept:
                self._store.unpin(digest, lookup.name)
            self._kept[key] = self._store.size(digest) or 0
            self.reply(lookup, {"ok": True})
        while len(self._kept) > KEPT_MAX or sum(self._kept.values()) > self._kept_bytes:
            (oldest, name), _ = self._kept.popitem(last=False)
            self._store.unpin(oldest, name)

    def failed(self, digest: bytes, text: str) -> None:
        """An object cannot be had."""
        for lookup in self._waiting.pop(digest, ()):
            self._store.unpin(digest, lookup.name)
            self.refuse(lookup, f"the object could not be fetched: {text}")

    def statistics(self) -> dict[str, Any]:
        """What the edges of this daemon count, as plain data."""
        return {
            "transport": dict(self._transport.counters),
            "objects": dict(self._exchange.counters),
            "stored_bytes": self._store.used_bytes,
            "journal": self._journal(),
            **self._edges(),
            "links": {
                short(node): {"open": link.open, "gaps": link.gaps, "dropped": link.dropped}
                for node, link in self._transport.links.items()
            },
        }

    def reply(self, lookup: fx.Lookup, body: dict[str, Any]) -> None:
        """Give an answer to whoever asked."""
        self._send(lookup, msgspec.msgpack.encode(body), "")

    def refuse(self, lookup: fx.Lookup, text: str) -> None:
        """Say why there is no answer."""
        self._send(lookup, b"", text)

    def _send(self, lookup: fx.Lookup, body: bytes, error: str) -> None:
        for page in pages(lookup.query, self._node.me, body, error):
            if lookup.peer:
                self._transport.send(lookup.to, page)
            else:
                self._transport.tell(lookup.to, page)
