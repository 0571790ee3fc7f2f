"""What is wrong with the networks of a mesh, found in what its daemons say of each other.

Pure.  Each finding names a direction, a port or a machine, and what to do there.  This file must
not know how it was asked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad.units import format_ms

if TYPE_CHECKING:
    from blackroad.client.networks import View

PROBLEM: Final = "problem"
NOTE: Final = "note"
CLOCK_OFF_MS: Final = 2_000
OPEN: Final = "open"
USES: Final = ("messages", "telemetry", "objects")
_V4_NEIGHBOURS: Final = 24
_NAMED_MAX: Final = 3
_TWIN: Final = "second machine"
_UNANSWERED: Final = "connected, but the greeting is not answered"


class Finding(NamedTuple):
    """One thing that is wrong, where, and what to do about it, line by line."""

    kind: str
    level: str
    text: str
    do: tuple[str, ...] = ()


def findings(views: Sequence[View]) -> list[Finding]:
    """Judge what the nodes say; the first of `views` is the node that was asked itself."""
    me = views[0]
    return [
        *_alone(me),
        *_unanswered(me),
        *_ports(views),
        *_one_sided(views),
        *_multicast(views),
        *_clones(views),
        *_clocks(views),
        *_registries(views),
        *_unreached(views),
    ]


# --- nobody ---------------------------------------------------------------------------------------


def _alone(me: View) -> list[Finding]:
    status = _status(me)
    if status["peers"]:
        return []
    do = [f"tried: {line}" for line in status["tried_words"]]
    if is_loopback(str(status["listen"])):
        do.append(
            "this daemon listens on loopback only: `blackroad init` or `blackroad join TOKEN` "
            "makes keys, and then it listens everywhere"
        )
    return [Finding("alone", PROBLEM, f"{me.name} hears no other node", tuple(do))]


def _unanswered(me: View) -> list[Finding]:
    """Addresses that were greeted in vain: what that says depends on how far it came."""
    found = []
    status = _status(me)
    for row in status["tried"]:
        place, result = row["endpoint"].removeprefix("tcp://"), row["result"]
        if result.startswith(_UNANSWERED):
            host = place.rpartition(":")[0].strip("[]")
            port = status["ports"][0]
            text = (
                f"{place} -> {me.name}: port {port} (messages) seems blocked: that daemon is "
                "connected and greeted, and its answer does not arrive"
            )
            do = (f"on {me.name}: {rule(status, port, host)}",)
            found.append(Finding("port", PROBLEM, text, do))
        elif row["source"] == "static":
            found.append(Finding("peer", PROBLEM, f"peer {place}: {result}", _advice(result)))
    return found


def _advice(result: str) -> tuple[str, ...]:
    if "another cluster" in result:
        return ("take it out of `peers`, or join this machine to that cluster",)
    if "key" in result:
        return ("is that machine a member (`blackroad members`)? else let it join",)
    if result == "refused":
        return ("nothing listens there: is the daemon running, and is that its port?",)
    if result in ("no answer", "no machine there"):
        return ("the machine is off or elsewhere, or a firewall drops what is sent there",)
    if result == "unknown name":
        return ("write an address, or a name that this machine can look up",)
    return ()


# --- ports ----------------------------------------------------------------------------------------


def _ports(views: Sequence[View]) -> list[Finding]:
    """Ports that one node could not connect at another one, by direction."""
    by_node = {view.node: view for view in views}
    found = []
    for view in views:
        for node in dict.fromkeys(row["node"] for row in view.probed or ()):
            rows = [row for row in view.probed or () if row["node"] == node]
            there = by_node.get(node)
            if there is not None and there.state not in ("dead", "left"):
                found += _blocked(view, there, rows)
    return found


def _blocked(here: View, there: View, rows: Sequence[dict[str, Any]]) -> list[Finding]:
    """What of the ports of one node another one could not connect, at its best address."""
    hosts = dict.fromkeys(row["host"] for row in rows)
    by_host = {host: [row for row in rows if row["host"] == host] for host in hosts}
    best = max(hosts, key=lambda host: sum(row["result"] == OPEN for row in by_host[host]))
    closed = [row for row in by_host[best] if row["result"] != OPEN]
    if not closed:
        return []
    ports = [int(row["port"]) for row in closed]
    results = ", ".join(dict.fromkeys(str(row["result"]) for row in closed))
    all_rows = len(closed) == len(by_host[best])
    words = " and ".join(f"{port} ({_use(by_host[best], port)})" for port in ports)
    many = "ports" if len(ports) > 1 else "port"
    if all_rows and ("no route" in results or "no machine" in results):
        text = f"{here.name} -> {there.name}: {results} ({best})"
        return [Finding("route", PROBLEM, text, _route_advice(here, there))]
    text = (
        f"{here.name} -> {there.name}: {many} {words} {'are' if len(ports) > 1 else 'is'} "
        f"blocked ({results} at {best})"
    )
    source = _source(here, best)
    do = tuple(f"on {there.name}: {rule(there.status, port, source)}" for port in ports)
    if there.status is None:
        do += (f"(the firewall of {there.name} could not be asked; this is the rule for nft)",)
    return [Finding("port", PROBLEM, text, do)]


def _use(rows: Sequence[dict[str, Any]], port: int) -> str:
    """What a port is for: a node's three are probed in this order."""
    known = [int(row["port"]) for row in rows]
    return str(USES[known.index(port) % len(USES)])


def _route_advice(here: View, there: View) -> tuple[str, ...]:
    return (f"{here.name} and {there.name} share no network: connect them, or add a route",)


def _source(here: View, towards: str) -> str:
    """The address from which `here` most likely comes to `towards`; "" where that is unclear."""
    status = here.status or {"endpoints": []}
    for endpoint in status["endpoints"]:
        host = str(endpoint).removeprefix("tcp://").rpartition(":")[0].strip("[]")
        if _neighbours(host, towards):
            return host
    return ""


def _one_sided(views: Sequence[View]) -> list[Finding]:
    """Nodes that greet but do not answer, where plain TCP found nothing."""
    found = []
    for view in views:
        if view.status is None:
            continue
        open_to = {row["node"] for row in view.probed or () if row["result"] == OPEN}
        for peer in view.status["peers"]:
            there = next((one for one in views if one.node == peer["node"]), None)
            if there is None or there.state in ("dead", "left") or peer["node"] not in open_to:
                continue
            if peer["answers"] and not peer["greets"]:
                port = view.status["ports"][0]
                text = (
                    f"{there.name} -> {view.name}: port {port} (messages) seems blocked: "
                    f"{there.name} can be connected, but it never greets {view.name}"
                )
                do = (f"on {view.name}: {rule(view.status, port, '')}",)
                found.append(Finding("port", PROBLEM, text, do))
    return found


# --- multicast, clones, clocks, registry ----------------------------------------------------------


def _multicast(views: Sequence[View]) -> list[Finding]:
    found = []
    told = [view for view in views if view.status is not None]
    for view in told:
        mdns = _status(view)["mdns"]
        if mdns["on"] and mdns["problem"]:
            do = (f"on {view.name}: {multicast_rule(_status(view))}",)
            text = f"{view.name}: {mdns['problem']}"
            found.append(Finding("multicast", PROBLEM, text, do))
    sound = [
        view
        for view in told
        if _status(view)["mdns"]["on"]
        and not _status(view)["mdns"]["problem"]
        and _status(view)["mdns"]["places"]
    ]
    for at, view in enumerate(sound):
        for other in sound[at + 1 :]:
            if _share_network(view, other) and not (_hears(view, other) or _hears(other, view)):
                text = (
                    f"multicast does not pass between {view.name} and {other.name}, though both "
                    "are in one network: they found each other in another way"
                )
                passes = (
                    "let 224.0.0.251 port 5353 (UDP) pass: on a switch or access point look for "
                    "IGMP snooping or client isolation",
                    f"on both: {multicast_rule(_status(view))}",
                )
                found.append(Finding("multicast", NOTE, text, passes))
    return found


def _hears(view: View, other: View) -> bool:
    return other.node in _status(view)["mdns"]["heard"]


def _share_network(view: View, other: View) -> bool:
    return any(
        _neighbours(one, two)
        for one in _status(view)["mdns"]["places"]
        for two in _status(other)["mdns"]["places"]
    )


def _clones(views: Sequence[View]) -> list[Finding]:
    """Identities in use twice, with all places that anybody knows."""
    places: dict[str, dict[str, None]] = {}
    for view in views:
        status = view.status or {}
        for clone in status.get("clones", ()):
            places.setdefault(clone["node"], {}).update(dict.fromkeys(clone["endpoints"]))
        twins = [row["endpoint"] for row in status.get("tried", ()) if _TWIN in row["result"]]
        if view.state == "clone" or twins:
            places.setdefault(view.node, {}).update(dict.fromkeys(twins))
    names = {view.node: view.name for view in views}
    closed = bool(_status(views[0]).get("closed"))
    return [
        _clone(names.get(node, node[:8]), node, list(there), closed)
        for node, there in places.items()
    ]


def _clone(name: str, node: str, endpoints: Sequence[str], closed: bool) -> Finding:
    at = " and ".join(one.removeprefix("tcp://") for one in endpoints)
    where = (f", one at {at}" if len(endpoints) == 1 else f": at {at}") if at else ""
    rest, then = ("identity.json and journal.sqlite", "start it")
    if closed:
        rest, then = (
            "identity.json, journal.sqlite and cluster/",
            "start it, `blackroad join TOKEN`",
        )
    do = (
        f"on the copy: stop the daemon, remove {rest} from its state directory, {then}",
        "then restart the daemon on the other one: until then the peers speak to neither",
    )
    text = f"two machines use the identity of {name} ({node[:8]}){where}"
    return Finding("clone", PROBLEM, text, do)


def _clocks(views: Sequence[View]) -> list[Finding]:
    """Clocks that are off; where most nodes agree, the others are the ones that are."""
    asked = [view for view in views if view.status is not None]
    groups = [[other for other in asked if _same_time(view, other)] for view in asked]
    right = max(groups, key=len)
    most = 2 * len(right) > len(asked)
    if not most:
        right = groups[0]
    found = []
    for view in asked:
        if view in right:
            continue
        ahead_ms = view.ahead_ms - right[0].ahead_ms
        way = "ahead of" if ahead_ms > 0 else "behind"
        off = format_ms(round(abs(ahead_ms), -2))
        text = f"the clock of {view.name} is {off} {way} {_those(right)}"
        set_it = "timedatectl set-ntp true"
        do = (
            f"on {view.name}: {set_it}" if most else f"on {view.name}, if it is wrong: {set_it}",
            "work goes on meanwhile, for leases do not rest on it; tokens and memberships expire "
            "by it",
        )
        found.append(Finding("clock", PROBLEM, text, do))
    return found


def _same_time(one: View, other: View) -> bool:
    off_ms = abs(one.ahead_ms - other.ahead_ms)
    return off_ms - one.within_ms - other.within_ms <= CLOCK_OFF_MS


def _those(right: Sequence[View]) -> str:
    """Whose clocks are taken for right, in words."""
    if len(right) == 1:
        return f"that of {right[0].name}"
    if len(right) <= _NAMED_MAX:
        return f"those of {' and '.join(sorted(view.name for view in right))}"
    return f"those of {len(right)} others"


def _registries(views: Sequence[View]) -> list[Finding]:
    found = []
    for view in views:
        registry = (view.status or {}).get("registry", {"on": False})
        if registry["on"] and registry["state"] not in ("up", ""):
            text = f"{view.name}: the registry is {registry['state']}: {registry['problem']}"
            found.append(Finding("registry", PROBLEM, text, ("see `redis_url`",)))
    return found


def _unreached(views: Sequence[View]) -> list[Finding]:
    """Nodes that nobody could ask: what they see of the others is not known."""
    names = [view.name for view in views if view.status is None and view.state not in _GONE]
    if not names or views[0].state == "clone":
        return []
    text = f"not asked, for no way led there: {', '.join(names)}"
    return [Finding("unreached", NOTE, text, ("run `blackroad doctor net` there as well",))]


# Nobody speaks to a clone, and that is told already.
_GONE: Final = frozenset({"dead", "left", "clone"})


# --- firewall rules -------------------------------------------------------------------------------


def rule(status: dict[str, Any] | None, port: int, source: str) -> str:
    """The command that lets `source` (anybody for "") connect that TCP port, for its firewall."""
    told = status or {}
    return _rule(str(told.get("firewall", "nft")), told.get("input_chain"), "tcp", port, source)


def multicast_rule(status: dict[str, Any]) -> str:
    """The command that lets mDNS in."""
    return _rule(str(status["firewall"]), status.get("input_chain"), "udp", 5353, "")


def _rule(kind: str, chain: Sequence[str] | None, protocol: str, port: int, source: str) -> str:
    six = ":" in source
    match kind:
        case "ufw":
            whence = source or "any"
            return f"ufw allow proto {protocol} from {whence} to any port {port}"
        case "firewalld":
            family = "ipv6" if six else "ipv4"
            if not source:
                return f"firewall-cmd --permanent --add-port={port}/{protocol} && {_RELOAD}"
            rich = (
                f'rule family="{family}" source address="{source}" port port="{port}" '
                f'protocol="{protocol}" accept'
            )
            return f"firewall-cmd --permanent --add-rich-rule='{rich}' && {_RELOAD}"
        case "iptables":
            program = "ip6tables" if six else "iptables"
            whence = f"-s {source} " if source else ""
            return f"{program} -I INPUT -p {protocol} {whence}--dport {port} -j ACCEPT"
        case _:
            where = " ".join(chain) if chain else "inet filter input"
            whence = f"{'ip6' if six else 'ip'} saddr {source} " if source else ""
            return f"nft insert rule {where} {whence}{protocol} dport {port} accept"


_RELOAD: Final = "firewall-cmd --reload"


# --- small ----------------------------------------------------------------------------------------


def _status(view: View) -> dict[str, Any]:
    assert view.status is not None
    return view.status


def is_loopback(text: str) -> bool:
    """Is this an address that only this machine can reach?"""
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


def _neighbours(one: str, two: str) -> bool:
    """Are these addresses most likely in one network?"""
    try:
        first, second = ipaddress.ip_address(one), ipaddress.ip_address(two)
    except ValueError:
        return False
    if first.version != second.version:
        return False
    length = _V4_NEIGHBOURS if first.version == 4 else 64
    return second in ipaddress.ip_network(f"{first}/{length}", strict=False)
