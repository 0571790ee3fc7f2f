"""This machine's network interfaces: on which to announce, and which addresses to name.

Edge: reads addresses through psutil and kinds from /sys/class/net.  `choose` is pure.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

ORDINARY: Final = "ordinary"
OVERLAY: Final = "overlay"
CONTAINER: Final = "container"
LOOPBACK: Final = "loopback"
LOOPBACK_ADDRESS: Final = "127.0.0.1"
INTERFACES_MAX: Final = 32

_UP, _IS_LOOPBACK, _POINT_TO_POINT, _MULTICAST = 0x1, 0x8, 0x10, 0x1000
_CONTAINER = re.compile(
    r"(docker\d|br-[0-9a-f]{12}$|veth|cni|flannel|cali|kube|podman|lxc|lxd)"
    r"|(virbr|vnet|vmnet|vboxnet)"
)
_OVERLAY = re.compile(r"(tun|tap|wg|tailscale|zt|ppp|utun|nebula|ipsec)")


class Interface(NamedTuple):
    """One interface that is up, with its addresses as text."""

    name: str
    kind: str
    multicast: bool
    v4: tuple[str, ...]
    v6: tuple[str, ...]


class Choice(NamedTuple):
    """Where to send multicast, and which addresses to announce, the likely ones first."""

    multicast: tuple[str, ...]
    addresses: tuple[str, ...]


def interfaces(root: Path = Path("/")) -> list[Interface]:
    """Return the interfaces that are up and connected, the quick ones first, wireless ones last."""
    import psutil

    found = []
    for name, entries in sorted(psutil.net_if_addrs().items()):
        flags = _flags(root, name)
        if not flags & _UP or not _has_carrier(root, name):
            continue
        texts = sorted({entry.address.split("%")[0] for entry in entries}, key=_order)
        v4 = tuple(text for text in texts if _version(text) == 4)
        v6 = tuple(text for text in texts if _version(text) == 6)
        if v4 or v6:
            found.append(Interface(name, kind_of(name, flags), bool(flags & _MULTICAST), v4, v6))
    found.sort(key=lambda item: _pace(root, item.name))
    return found[:INTERFACES_MAX]


def kind_of(name: str, flags: int) -> str:
    """Return what an interface is for, from its name and the kernel's flags."""
    if flags & _IS_LOOPBACK:
        return LOOPBACK
    if _CONTAINER.match(name):
        return CONTAINER
    if flags & _POINT_TO_POINT or _OVERLAY.match(name):
        return OVERLAY
    return ORDINARY


def choose(present: Sequence[Interface], wanted: Sequence[str] | None) -> Choice:
    """Return what to use of `present`; `wanted` names interfaces or addresses, None means all.

    Bridges of container engines get no multicast and are announced last, never alone.  Where
    only loopback is there, daemons of this machine still find each other.
    """
    if wanted is not None:
        asked = [item for item in present if _is_wanted(item, wanted)]
        places = [text for item in asked for text in _wanted_addresses(item, wanted)]
        return Choice(tuple(places), tuple(text for text in places if not _link_local(text)))
    multicast: list[str] = []
    for item in present:
        if item.multicast and item.kind in (ORDINARY, OVERLAY):
            local = [text for text in item.v6 if _link_local(text)]
            # One family is enough to be found, and IPv4 is what most networks let through.
            multicast += item.v4[:1] or local[:1] or item.v6[:1]
    if not multicast:
        return Choice((LOOPBACK_ADDRESS,), (LOOPBACK_ADDRESS,))
    addresses = []
    for kind in (ORDINARY, OVERLAY, CONTAINER):
        same = [item for item in present if item.kind == kind]
        for family in ("v4", "v6"):
            texts = [text for item in same for text in getattr(item, family)]
            addresses += sorted(texts, key=_link_local_v4_last)
    # An IPv6 link-local address means nothing on another machine.
    named = [text for text in addresses if ":" not in text or not _link_local(text)]
    return Choice(tuple(multicast), tuple(named))


def _is_wanted(item: Interface, wanted: Sequence[str]) -> bool:
    return item.name in wanted or any(text in wanted for text in (*item.v4, *item.v6))


def _wanted_addresses(item: Interface, wanted: Sequence[str]) -> list[str]:
    if item.name in wanted:
        return list(item.v4[:1] or item.v6[:1])
    return [text for text in (*item.v4, *item.v6) if text in wanted]


def _flags(root: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int((root / "sys/class/net" / name / "flags").read_text(), 16)
    # Without /sys every interface counts as an ordinary one.
    return _UP | (_IS_LOOPBACK if name.startswith("lo") else _MULTICAST)


def _has_carrier(root: Path, name: str) -> bool:
    """A bridge with nothing behind it, or a cable that is not plugged in, leads nowhere."""
    with contextlib.suppress(OSError, ValueError):
        return int((root / "sys/class/net" / name / "carrier").read_text()) != 0
    return True


def _pace(root: Path, name: str) -> tuple[int, int]:
    """Sort by this: wired before wireless, then the faster one first."""
    place = root / "sys/class/net" / name
    wireless = (place / "wireless").exists() or (place / "phy80211").exists()
    with contextlib.suppress(OSError, ValueError):
        return int(wireless), -int((place / "speed").read_text())
    return int(wireless), 0


def _version(text: str) -> int:
    try:
        return ipaddress.ip_address(text).version
    except ValueError:
        return 0


def _order(text: str) -> tuple[int, int]:
    version = _version(text)
    return version, int(ipaddress.ip_address(text)) if version else 0


def _link_local(text: str) -> bool:
    return ipaddress.ip_address(text).is_link_local


def _link_local_v4_last(text: str) -> bool:
    return ":" not in text and _link_local(text)
