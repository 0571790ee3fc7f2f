"""Where the figures of all nodes are read: the list that Prometheus asks for over HTTP.

Pure.  A node says in its capabilities where it serves figures, as "address:port"; which host it is
reached at, the bus knows.

Source  Prometheus, HTTP service discovery.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from blackroad.metrics.names import LABEL_CHARS_MAX


class Place(NamedTuple):
    """One node: what it said of its figures, and the hosts it is reached at, the best one first."""

    node: str
    name: str
    arch: str
    said: str
    hosts: Sequence[str]


def listed(places: Iterable[Place]) -> bytes:
    """The list as JSON; nodes whose figures cannot be read from elsewhere are left out."""
    rows: list[dict[str, Any]] = []
    for place in places:
        target = target_of(place)
        if target:
            labels = {"node": place.node, "node_name": place.name, "arch": place.arch}
            rows.append(
                {
                    "targets": [target],
                    "labels": {key: text[:LABEL_CHARS_MAX] for key, text in labels.items()},
                }
            )
    return msgspec.json.encode(rows)


def target_of(place: Place) -> str:
    """The address to scrape, "" where there is none for whoever asks here."""
    address, port = split(place.said)
    if not port:
        return ""
    if address.is_unspecified:
        host = next((host for host in place.hosts if host), "")
    elif address.is_loopback:
        # Its figures are for its own machine: that is ours if it is reached there.
        near = any(_is_loopback(host) for host in place.hosts)
        host = str(address) if near else ""
    else:
        host = str(address)
    if not host:
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NOWHERE = ipaddress.IPv4Address("0.0.0.0")


def split(said: str) -> tuple[Address, int]:
    """Read "127.0.0.1:7705" or "[::1]:7705", as a peer said it; port 0 where it is neither."""
    host, _, port = said.rpartition(":")
    try:
        number = int(port) if port.isascii() and port.isdecimal() else 0
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return _NOWHERE, 0
    return address, number if number <= 65_535 else 0


def host_of(endpoint: str) -> str:
    """The host of "tcp://host:port", without the brackets of IPv6."""
    host = endpoint.partition("://")[2].rpartition(":")[0]
    return host.removeprefix("[").removesuffix("]")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
