"""Where peers might be: suggestions from mDNS and from the configuration, checked and merged.

Pure.  A hint is never believed: it only says where to knock.  Who answers is decided by keys,
which this file does not know.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from blackroad.bus.addresses import ADDRESSES_MAX, host_of, rank
from blackroad.bus.addresses import IpAddress as Address
from blackroad.capabilities import normal_arch
from blackroad.errors import ConfigError, UsageError
from blackroad.ids import bytes32, text32
from blackroad.limits import HINTS_MAX

DEFAULT_PORT: Final = 7701
DOOR_KEY_BYTES: Final = 32
STATIC_PEERS_MAX: Final = 256
_TEXT_MAX: Final = 1024

_NODE = re.compile(r"[a-z2-7]{26}")
_DIGEST = re.compile(r"[a-z2-7]{8,64}")
_KEY = re.compile(r"[a-z2-7]{52}")
_ARCH = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_VERSIONS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_HOST = re.compile(
    r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?", re.ASCII
)


class Hint(Struct, frozen=True):
    """A place where a peer may listen; `node` is "" where only the address is known.

    `endpoints` are the inbox addresses, the likely ones first; `ports` are inbox, telemetry and
    bulk.  `caps_digest` and `arch` are what the peer said of itself.
    """

    node: str
    endpoints: tuple[str, ...]
    source: str
    ports: tuple[int, int, int] = (0, 0, 0)
    versions: tuple[int, int] = (0, 0)
    arch: str = ""
    caps_digest: str = ""


class Door(NamedTuple):
    """Where somebody who is not in a cluster yet may ask to be let in, and the key to expect."""

    cluster: str
    node: str
    endpoints: tuple[str, ...]
    key: bytes


class Announcement(Struct, frozen=True):
    """What a daemon says of itself over mDNS; everything else is asked for over ZeroMQ.

    Where newcomers may knock, `join_port` and `door_key` say where and what key to expect.

    Shapes  `node` 26 characters as `ids.text32` writes them; digests the same, 8 to 64; `door_key`
            32 bytes or none.
    """

    node: str
    ports: tuple[int, int, int]
    versions: tuple[int, int]
    arch: str
    caps_digest: str = ""
    cluster: str = ""
    join_port: int = 0
    door_key: bytes = b""

    def txt(self, addresses: Sequence[str]) -> dict[str, str]:
        """Return the TXT record, below 400 bytes; addresses in the order to be tried."""
        kept, length = [], 0
        for address in addresses:
            length += len(address) + 1
            if length <= 180:
                kept.append(address)
        pairs = {
            "id": self.node,
            "v": f"{self.versions[0]}-{self.versions[1]}",
            "p": ",".join(str(port) for port in self.ports),
            "m": self.arch,
            "d": self.caps_digest,
            "c": self.cluster,
            "j": str(self.join_port) if self.join_port and self.door_key else "",
            "k": text32(self.door_key) if self.join_port else "",
            "a": ",".join(kept),
        }
        return {key: value for key, value in pairs.items() if value}


def from_txt(
    txt: Mapping[str, str],
    addresses: Sequence[str],
    *,
    own: Announcement,
    loopback: bool = False,
) -> Hint | None:
    """Return the hint in an advertisement, or None where it is malformed, foreign or our own.

    `addresses` are those of the DNS records; `loopback` allows 127.0.0.1, which a stranger on
    the network has no business to suggest.
    """
    node, ports = txt.get("id", ""), _ports(txt.get("p", ""))
    if not _NODE.fullmatch(node) or node == own.node or ports is None:
        return None
    if txt.get("c", "") != own.cluster:
        return None
    given = [*txt.get("a", "").split(","), *addresses][: 2 * ADDRESSES_MAX]
    usable = usable_addresses(given, loopback=loopback)
    if not usable:
        return None
    found = _VERSIONS.fullmatch(txt.get("v", ""))
    return Hint(
        node=node,
        endpoints=tuple(endpoint(address, ports[0]) for address in usable),
        source="mdns",
        ports=ports,
        versions=(int(found[1]), int(found[2])) if found else (0, 0),
        arch=_matching(_ARCH, normal_arch(txt.get("m", "")[:32])),
        caps_digest=_matching(_DIGEST, txt.get("d", "")),
    )


def door_from_txt(
    txt: Mapping[str, str], addresses: Sequence[str], *, loopback: bool = False
) -> Door | None:
    """Return the door that an advertisement tells of, or None where there is none to be used."""
    node, cluster, port = txt.get("id", ""), txt.get("c", ""), txt.get("j", "")
    if not _NODE.fullmatch(node) or not _DIGEST.fullmatch(cluster):
        return None
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65_535:
        return None
    if not _KEY.fullmatch(txt.get("k", "")):
        return None
    try:
        key = bytes32(txt["k"])
    except UsageError:
        return None
    given = [*txt.get("a", "").split(","), *addresses][: 2 * ADDRESSES_MAX]
    usable = usable_addresses(given, loopback=loopback)
    if not usable or len(key) != DOOR_KEY_BYTES:
        return None
    return Door(cluster, node, tuple(endpoint(address, int(port)) for address in usable), key)


def from_registry(entry: bytes, *, own: Announcement) -> Hint | None:
    """Return the hint in one entry of a registry, by the rules of advertisements."""
    try:
        told = msgspec.json.decode(entry, type=_Entry)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if len(told.ports) != 3:
        return None
    hosts = [host_of(place) for place in told.endpoints if len(place) <= _TEXT_MAX]
    txt = {"id": told.node, "p": ",".join(map(str, told.ports)), "c": own.cluster}
    hint = from_txt(txt, hosts, own=own)
    return None if hint is None else msgspec.structs.replace(hint, source="redis")


def registry_entry(own: Announcement, endpoints: Sequence[str]) -> bytes:
    """Return what a registry tells others of this node."""
    return msgspec.json.encode(_Entry(own.node, tuple(endpoints[:ADDRESSES_MAX]), own.ports))


def from_static(peers: Sequence[str]) -> list[Hint]:
    """Return a hint for each peer that the configuration names, in its order.

    A peer is a host name or address, with or without "tcp://" and a port (7701 if none).

    Raises  ConfigError naming the entry that cannot be read.
    """
    if len(peers) > STATIC_PEERS_MAX:
        raise ConfigError(
            f"peers: {len(peers)} entries, at most {STATIC_PEERS_MAX} are allowed",
            hint="a node needs a few peers to start from; it learns the others from them",
        )
    found = {_static_endpoint(peer): None for peer in peers}
    return [Hint(node="", endpoints=(place,), source="static") for place in found]


def usable_addresses(given: Sequence[str], *, loopback: bool = False) -> list[str]:
    """Return the addresses worth dialling, each once, the likely ones first."""
    found: dict[str, int] = {}
    for text in given:
        # A scope after "%" could be any text at all.
        address = None if "%" in text else _address(text)
        if address is None or address.is_multicast or address.is_unspecified:
            continue
        if address.is_loopback and not loopback:
            continue
        if address.version == 6 and address.is_link_local:
            # It means nothing without the name of an interface of ours.
            continue
        if address == ipaddress.IPv4Address("255.255.255.255"):
            continue
        found.setdefault(str(address), rank(address))
    return sorted(found, key=lambda text: found[text])[:ADDRESSES_MAX]


def endpoint(host: str, port: int) -> str:
    """Return the ZeroMQ endpoint of a host name or address."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


class _Entry(Struct, frozen=True):
    """One node as a registry keeps it."""

    node: Annotated[str, Meta(max_length=64)]
    endpoints: Annotated[tuple[str, ...], Meta(max_length=ADDRESSES_MAX)]
    ports: Annotated[tuple[int, ...], Meta(max_length=3)]


class HintTable:
    """All hints of this moment, one per node, within a bound.

    What the configuration names always stays; of what mDNS suggests the oldest goes first, so
    that a flood of inventions cannot keep a new peer out for long.
    """

    def __init__(self, limit: int = HINTS_MAX) -> None:
        self._limit = limit
        self._static: dict[str, Hint] = {}
        self._by_node: dict[str, Hint] = {}
        self.evicted = 0

    def learn(self, hint: Hint) -> bool:
        """Take in a hint; True where it says something new."""
        if not hint.node:
            news = [place for place in hint.endpoints if place not in self._static]
            for place in news:
                self._static[place] = Hint("", (place,), hint.source, hint.ports)
            return bool(news)
        before = self._by_node.pop(hint.node, None)
        if before is None and len(self._by_node) >= self._limit:
            del self._by_node[next(iter(self._by_node))]
            self.evicted += 1
        # Put at the end: it is the youngest now.
        self._by_node[hint.node] = hint
        return before != hint

    def forget(self, node: str) -> None:
        """Drop what was suggested for a node that has said goodbye."""
        self._by_node.pop(node, None)

    def all(self) -> list[Hint]:
        """Return a hint per node, then the configured places that no node has claimed."""
        claimed = {place for hint in self._by_node.values() for place in hint.endpoints}
        nodes = [self._by_node[node] for node in sorted(self._by_node)]
        return nodes + [hint for place, hint in self._static.items() if place not in claimed]

    def __len__(self) -> int:
        return len(self._by_node) + len(self._static)


def _ports(text: str) -> tuple[int, int, int] | None:
    parts = text.split(",")
    if len(parts) != 3 or not all(re.fullmatch(r"[0-9]{1,5}", part, re.ASCII) for part in parts):
        return None
    inbox, telemetry, bulk = (int(part) for part in parts)
    fine = all(1 <= port <= 65_535 for port in (inbox, telemetry, bulk))
    return (inbox, telemetry, bulk) if fine else None


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _matching(pattern: re.Pattern[str], text: str) -> str:
    return text if pattern.fullmatch(text) else ""


def _static_endpoint(peer: str) -> str:
    hint = "write a host or host:port, like attic.local, 192.168.1.5:7701 or [fd00::2]:7701"
    text = peer.strip().removeprefix("tcp://") if len(peer) <= _TEXT_MAX else ""
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?", text, re.ASCII)
    plain = re.fullmatch(r"([^:\[\]/]+)(?::([0-9]{1,5}))?", text)
    found = bracketed or plain
    host, port = (found[1], int(found[2] or DEFAULT_PORT)) if found else (text, DEFAULT_PORT)
    address = _address(host)
    if address is not None:
        host = str(address)
    elif bracketed or not _HOST.fullmatch(host) or len(host) > 253 or _looks_numeric(host):
        raise ConfigError(f"peers: {peer!r:.100} is not the address of a node", hint=hint)
    if not 1 <= port <= 65_535:
        raise ConfigError(f"peers: {peer!r:.100} has a port outside 1..65535", hint=hint)
    if address is not None and (address.is_multicast or address.is_unspecified):
        raise ConfigError(f"peers: {peer!r:.100} is no address of one machine", hint=hint)
    return endpoint(host.lower(), port)


def _looks_numeric(host: str) -> bool:
    """Tell a mistyped address such as 192.168.1.500 from a name."""
    return bool(re.fullmatch(r"[0-9.]+", host))
