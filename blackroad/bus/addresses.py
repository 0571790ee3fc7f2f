"""What is known of where one node listens: all its addresses, and which to try first.

Pure.  An address is a guess until somebody answers there.  This file must not know sockets or
keys, nor who answered.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
ADDRESSES_MAX: Final = 16
ORDINARY, OVERLAY, CONTAINER, LOCAL = range(4)

_V4 = ipaddress.IPv4Network
# Addresses that container engines give out by default, the same ones on every machine.
_CONTAINER_NETS: Final = (_V4("172.17.0.0/16"), _V4("172.18.0.0/16"), _V4("10.88.0.0/16"),
                          _V4("10.42.0.0/16"), _V4("10.244.0.0/16"), _V4("192.168.122.0/24"),
                          _V4("10.0.3.0/24"))  # fmt: skip
_OVERLAY_NETS: Final = (_V4("100.64.0.0/10"),)
# An answer from another address has to come in at most this share of the time, and so much
# sooner, or it is not worth a move.  Both answers come back on one and the same way.
SHARE_PERCENT: Final = 75
SOONER_MS: Final = 10


def rank(address: IpAddress) -> int:
    """Return ORDINARY for an ordinary address, more for the kinds that rarely lead anywhere."""
    if address.is_link_local or address.is_loopback:
        return LOCAL
    if address.version == 4:
        if any(address in net for net in _CONTAINER_NETS):
            return CONTAINER
        if any(address in net for net in _OVERLAY_NETS):
            return OVERLAY
    return ORDINARY


def host_of(endpoint: str) -> str:
    """The host in "tcp://host:port", without brackets."""
    return endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def rank_of(endpoint: str) -> int:
    """Return the rank of an endpoint's address; a name is as good as an ordinary one."""
    try:
        return rank(ipaddress.ip_address(host_of(endpoint).partition("%")[0]))
    except ValueError:
        return ORDINARY


class Address:
    """One address; `told` by its owner, or only hinted at by somebody."""

    __slots__ = ("answered_ms", "endpoint", "order", "rank", "round_ms", "told")

    def __init__(self, endpoint: str, told: bool) -> None:
        self.endpoint = endpoint
        self.rank = rank_of(endpoint)
        self.told = told
        # Its place among those that its owner names; what it does not name comes after all.
        self.order = ADDRESSES_MAX
        # When somebody last answered there, and how long that took; nobody has while it is 0.
        self.answered_ms = 0
        self.round_ms = 0


class Addresses:
    """All addresses of one node, at most ADDRESSES_MAX."""

    def __init__(self) -> None:
        self._known: dict[str, Address] = {}

    def __contains__(self, endpoint: str) -> bool:
        return endpoint in self._known

    def __len__(self) -> int:
        return len(self._known)

    def of(self, endpoint: str) -> Address | None:
        """What is known of one address."""
        return self._known.get(endpoint)

    def learn(self, endpoints: Iterable[str], *, told: bool) -> bool:
        """Hear of addresses; return whether one is new, or told again after it was not any more.

        Inventions never displace what is told.
        """
        news = False
        before = {one.endpoint for one in self._known.values() if one.told}
        if told:
            for one in self._known.values():
                # Where it does not listen any more is a hint from now on.
                one.told, one.order = False, ADDRESSES_MAX
        for order, endpoint in enumerate(endpoints):
            known = self._known.get(endpoint)
            if known is None and (len(self._known) < ADDRESSES_MAX or self._make_room(told)):
                known = self._known[endpoint] = Address(endpoint, told)
                news = True
            if known is not None and told:
                news = news or endpoint not in before
                known.told, known.order = True, min(order, ADDRESSES_MAX)
        return news

    def _make_room(self, told: bool) -> bool:
        """Forget the oldest hint, or for what is told the oldest address that never answered."""
        for only_hints in (True, False):
            for one in self._known.values():
                if not one.answered_ms and not (one.told and (only_hints or not told)):
                    del self._known[one.endpoint]
                    return True
        return False

    def forget(self, endpoint: str) -> None:
        """Whoever listens there, it is not this node."""
        self._known.pop(endpoint, None)

    def answered(self, endpoint: str, now_ms: int, round_ms: int) -> None:
        """The node itself answered there, after so long."""
        self.learn((endpoint,), told=False)
        known = self._known.get(endpoint)
        if known is not None:
            known.answered_ms, known.round_ms = max(1, now_ms), round_ms

    def ordered(self) -> list[Address]:
        """All addresses, the likely ones first: ordinary ones, then where it once answered."""
        return sorted(
            self._known.values(),
            key=lambda one: (one.rank, not one.answered_ms, not one.told, one.order),
        )

    def told(self) -> list[str]:
        """Addresses that others may be told: named by the node, or where it answered."""
        return [one.endpoint for one in self.ordered() if one.told or one.answered_ms]

    def rivals(self, endpoint: str) -> list[str]:
        """Addresses that may be as good as that one, or better."""
        limit = rank_of(endpoint)
        return [
            one.endpoint for one in self.ordered() if one.rank <= limit and one.endpoint != endpoint
        ]

    def is_better(self, endpoint: str, than: str) -> bool:
        """Is that an address of a better kind?"""
        return rank_of(endpoint) < rank_of(than)

    def is_worth_it(self, endpoint: str, round_ms: int, here: str, here_ms: int) -> bool:
        """Is that address, of no worse kind, worth a move, after both have answered?

        What its owner names first is taken unless it is much slower; anything else only if it is
        much quicker.
        """
        if is_quicker(round_ms, here_ms):
            return True
        there_at, here_at = self._order(endpoint), self._order(here)
        return there_at < here_at and not is_quicker(here_ms, round_ms)

    def _order(self, endpoint: str) -> int:
        known = self._known.get(endpoint)
        return known.order if known is not None else ADDRESSES_MAX


def is_quicker(round_ms: int, than_ms: int) -> bool:
    """Is that so much quicker that it is worth a move?"""
    return (round_ms + SOONER_MS) * 100 < than_ms * SHARE_PERCENT
