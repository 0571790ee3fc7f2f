"""A hostile stranger on the same network: discovery is bounded, and the bus does not notice."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from blackroad.bus.identity import cluster_digest
from blackroad.discovery.mdns_child import MEMORY_BYTES_MAX
from blackroad.ids import text32
from blackroad.limits import HINTS_MAX
from tests.net import ways
from tests.net.closed import REPOSITORY, Box, Lab, lab, missing, until

LACKS = missing()
pytestmark = [
    pytest.mark.edge,
    pytest.mark.slow,
    pytest.mark.skipif(bool(LACKS), reason=LACKS or "all is there"),
]
MIB = 1024 * 1024
GROWTH_BYTES_MAX = 40 * MIB


@pytest.fixture
def room() -> Iterator[Lab]:
    with lab() as made:
        yield made


def memory(box: Box) -> tuple[int, int]:
    """What the daemon and its mDNS child hold."""
    assert box.process is not None
    daemon = psutil.Process(box.process.pid)
    child = 0
    for one in daemon.children(recursive=True):
        try:
            if "blackroad.discovery.mdns_child" in one.cmdline():
                child = one.memory_info().rss
        except psutil.Error:
            continue
    return daemon.memory_info().rss, child


SAMPLE = """
import json, sys, time
from blackroad.client import Client
silent, states, until = [], set(), time.monotonic() + float(sys.argv[1])
with Client() as client:
    while time.monotonic() < until:
        for row in client.nodes()["nodes"]:
            if row["name"] == "n2":
                silent.append(row["silent_ms"])
                states.add(row["state"])
        time.sleep(0.01)
silent.sort()
print(json.dumps({"p50": silent[len(silent) // 2], "p99": silent[len(silent) * 99 // 100],
                  "max": silent[-1], "states": sorted(states), "samples": len(silent)}))
"""


def sampled(box: Box, seconds: float) -> subprocess.Popen[str]:
    """How long n2's Heartbeats were away, looked at a hundred times a second."""
    words = ["ip", "netns", "exec", box.space, sys.executable, "-c", SAMPLE, str(seconds)]
    return subprocess.Popen(words, env=box.environ, cwd=box.home, stdout=subprocess.PIPE, text=True)


def test_ten_thousand_inventions_cost_the_bus_nothing(room: Lab) -> None:
    one, two, stranger = ways.opened(room, 3)
    ways.start([one, two])
    until(lambda: ways.all_see_all([one, two]), "mesh")
    calm = json.loads(sampled(one, 3.0).communicate()[0])
    before = memory(one)
    words = ["ip", "netns", "exec", stranger.space, sys.executable, "-m"]
    cluster = text32(cluster_digest("ways"))
    attack = subprocess.Popen(
        [*words, "tests.net.hostile_mdns", stranger.address, cluster],
        env=stranger.environ,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    sampling = sampled(one, 10.0)
    peak = before
    while attack.poll() is None or sampling.poll() is None:
        now = memory(one)
        peak = (max(peak[0], now[0]), max(peak[1], now[1]))
        select.select([], [], [], 0.1)
    rough = json.loads(sampling.communicate()[0])
    _, told = ways.doctor(one)
    status = told["nodes"][0]["status"]
    report = {
        "packets": int(attack.communicate()[0]),
        "daemon_mib": [round(before[0] / MIB, 1), round(peak[0] / MIB, 1)],
        "child_mib": [round(before[1] / MIB, 1), round(peak[1] / MIB, 1)],
        "silent_ms_calm": calm,
        "silent_ms_under_attack": rough,
        "heard": len(status["mdns"]["heard"]),
        "refused": status["mdns"]["refused"],
        "restarts": status["mdns"]["restarts"],
        "counters": status["counters"],
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    assert rough["states"] == ["alive"], "the bus noticed"
    assert peak[0] - before[0] < GROWTH_BYTES_MAX
    assert peak[1] <= MEMORY_BYTES_MAX
    assert len(status["mdns"]["heard"]) <= HINTS_MAX
    assert len(status["tried"]) <= HINTS_MAX
    # And a new node is still found, if only by its name: the flood is over, and so is its harm.
    stranger.start(BLACKROAD_PEERS=one.address)
    until(lambda: ways.all_see_all([one, two, stranger]), "the newcomer")
