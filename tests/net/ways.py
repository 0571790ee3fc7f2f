"""What can happen to the networks of a lab: further links, docker0, firewalls, slow wires.

Routing rules stand in for a firewall: they drop what comes in as silently, on any kernel.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests.net.closed import Box, Lab, Said, until

OPEN = {
    "BLACKROAD_LISTEN": "0.0.0.0",
    "BLACKROAD_INSECURE_OPEN": "true",
    "BLACKROAD_CLUSTER": "ways",
}


def opened(lab: Lab, count: int, **settings: str) -> list[Box]:
    """Machines without keys, each open to its network and started by nobody yet."""
    return lab.add(count, **{**OPEN, **settings})


def ip(space: str, line: str) -> None:
    """Change a network of the lab."""
    subprocess.run(["ip", "-n", space, *line.split()], check=True)


def link(lab: Lab, boxes: Sequence[Box], name: str, net: str) -> None:
    """Join machines by one more switch; their addresses there end like the others."""
    switch = f"{lab.prefix}{name}"
    lab._space(switch)
    ip(switch, "link add br0 type bridge")
    ip(switch, "link set br0 up")
    for box in boxes:
        number = box.address.rpartition(".")[2]
        ip(box.space, f"link add {name} type veth peer name p{number} netns {switch}")
        ip(switch, f"link set p{number} master br0 up")
        ip(box.space, f"addr add {net}.{number}/24 dev {name}")
        ip(box.space, f"link set {name} up")


def docker0(box: Box) -> None:
    """The bridge that container engines make, with the address that it has everywhere."""
    ip(box.space, "link add docker0 type bridge")
    ip(box.space, "addr add 172.17.0.1/16 dev docker0")
    ip(box.space, "link add inner type veth peer name inner2")
    ip(box.space, "link set inner master docker0 up")
    ip(box.space, "link set inner2 up")
    ip(box.space, "link set docker0 up")


def slow(box: Box, name: str, rate: str = "40kbit") -> None:
    """Let little through what that machine sends there."""
    box.shell(f"tc qdisc add dev {name} root tbf rate {rate} burst 1600 latency 800ms")


def guard(box: Box) -> None:
    """Let rules come before the machine's own addresses: done once, before `block`."""
    ip(box.space, "rule add pref 100 lookup local")
    ip(box.space, "rule del pref 0")


def block(box: Box, source: str, port: int = 0, device: str = "eth0") -> None:
    """Drop what `source` sends to a TCP port of that machine, or all of its TCP."""
    what = f"ipproto tcp dport {port}" if port else "ipproto tcp dport 7000-7999"
    ip(box.space, f"rule add pref 10 iif {device} from {source} {what} blackhole")


def has_nft() -> bool:
    """Can a machine of the lab have a firewall of the usual kind?"""
    return shutil.which("nft") is not None


def firewall(box: Box, *rules: str) -> None:
    """Set up the usual chain for what comes in, with these rules in it."""
    lines = [
        "add table inet filter",
        "add chain inet filter input { type filter hook input priority 0; policy accept; }",
        *(f"add rule inet filter input {one}" for one in rules),
    ]
    for line in lines:
        box.shell(f"nft '{line}'")


def no_multicast(lab: Lab) -> None:
    """Have the lab's switch drop multicast, as some access points do."""
    for box in lab.boxes:
        number = box.address.rpartition(".")[2]
        words = ("bridge", "-n", lab._switch, "link", "set", "dev", f"p{number}")
        subprocess.run([*words, "mcast_flood", "off"], check=True)


_PEERS = """
import json
from blackroad.client import Client
with Client() as client:
    print(json.dumps(client._ask("net.status", {})["peers"]))
"""

# --- what nodes say -------------------------------------------------------------------------------


def seen(box: Box) -> dict[str, str]:
    """The states of the nodes that a machine knows, by name."""
    said = box.run("nodes", "--json")
    if said.code:
        return {}
    return {row["name"]: row["state"] for row in json.loads(said.out)["nodes"]}


def all_see_all(boxes: Sequence[Box]) -> bool:
    """Does each see each of the others alive?"""
    names = {box.name for box in boxes}
    return all(
        {name for name, state in seen(box).items() if state == "alive"} >= names for box in boxes
    )


def start(boxes: Sequence[Box], **settings: str) -> None:
    """Start the daemons, and wait until each answers its own machine."""
    for box in boxes:
        box.start(**settings)
    for box in boxes:
        until(box.serves, f"daemon on {box.name}")


def doctor(box: Box) -> tuple[int, dict[str, Any]]:
    """What `doctor net` finds there, and its exit code."""
    said: Said = box.run("doctor", "net", "--json")
    assert said.code in (0, 1), said.err
    return said.code, json.loads(said.out)


def addresses(box: Box) -> dict[str, str]:
    """Where that machine's daemon speaks to each of its peers; nobody else is asked."""
    words = ["ip", "netns", "exec", box.space, sys.executable, "-c", _PEERS]
    done = subprocess.run(
        words, env=box.environ, cwd=box.home, capture_output=True, text=True, check=True
    )
    return {peer["name"]: peer["address"] for peer in json.loads(done.stdout)}
