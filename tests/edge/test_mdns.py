"""mDNS with real children on loopback, and with children that misbehave."""

from __future__ import annotations

import asyncio
import importlib.metadata
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blackroad.discovery import interfaces as nets
from blackroad.discovery import line_child, mdns, mdns_child
from blackroad.discovery.hints import Announcement, Hint
from blackroad.discovery.interfaces import Choice, Interface, choose, kind_of
from blackroad.discovery.mdns import Mdns
from blackroad.ids import text32

pytestmark = pytest.mark.edge

LOOPBACK = ["127.0.0.1"]
# Nobody else on this machine shares this cluster, so no other daemon disturbs the tests.
CLUSTER = text32(os.urandom(16))


def announcement(port: int, cluster: str = CLUSTER, digest: str = "d" * 26) -> Announcement:
    node = text32(os.urandom(16))
    return Announcement(node, (port, port + 1, port + 2), (1, 1), "x86_64", digest, cluster)


def until(daemons: list[Mdns], done: Callable[[], bool], take: Callable[[int, Hint], None]) -> None:
    """Read from all daemons until `done`, for at most half a minute."""
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline, "nothing was heard in time"
        select.select(daemons, [], [], 0.1)
        for number, daemon in enumerate(daemons):
            for hint in daemon.read():
                take(number, hint)


@pytest.fixture
def opened() -> Iterator[list[Mdns]]:
    daemons: list[Mdns] = []
    yield daemons
    for daemon in daemons:
        daemon.close()


def test_daemons_of_one_machine_find_each_other(opened: list[Mdns]) -> None:
    mine = [announcement(7701), announcement(7801)]
    stranger = announcement(7901, cluster=text32(os.urandom(16)))
    opened += [Mdns(each, LOOPBACK) for each in (*mine, stranger)]
    heard: list[dict[str, Hint]] = [{}, {}, {}]
    gone: list[str] = []

    def take(number: int, hint: Hint) -> None:
        heard[number][hint.node] = hint

    until(opened, lambda: bool(heard[0]) and bool(heard[1]), take)
    assert heard[0] == {
        mine[1].node: Hint(
            node=mine[1].node,
            endpoints=("tcp://127.0.0.1:7801",),
            source="mdns",
            ports=(7801, 7802, 7803),
            versions=(1, 1),
            arch="x86_64",
            caps_digest="d" * 26,
        )
    }
    assert set(heard[1]) == {mine[0].node}

    changed = Announcement(mine[1].node, mine[1].ports, (1, 1), "x86_64", "e" * 26, CLUSTER)
    opened[1].announce(changed)
    until(opened, lambda: heard[0][changed.node].caps_digest == "e" * 26, take)

    opened[1].close()

    def left() -> bool:
        gone.extend(opened[0].take_gone())
        return bool(gone)

    until([opened[0]], left, take)
    assert gone == [changed.node]
    assert heard[2] == {}
    assert [daemon.take_problem() for daemon in opened] == ["", "", ""]


def test_a_killed_child_is_replaced_behind_the_same_descriptor(
    opened: list[Mdns], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_child, "BACK_OFF_S", (0.0, 0.0, 0.0))
    mine = [announcement(7701), announcement(7801)]
    first = Mdns(mine[0], LOOPBACK)
    opened.append(first)
    descriptor, killed = first.fileno(), first.pid
    os.kill(killed, signal.SIGKILL)
    opened.append(Mdns(mine[1], LOOPBACK))
    heard: set[tuple[int, str]] = set()
    until(opened, lambda: len(heard) == 2, lambda number, hint: heard.add((number, hint.node)))
    assert heard == {(0, mine[1].node), (1, mine[0].node)}
    assert first.fileno() == descriptor
    assert first.pid not in (0, killed)
    assert first.take_problem() == ""


def test_no_child_outlives_its_parent() -> None:
    script = (
        "import signal\n"
        "from blackroad.discovery.mdns import Mdns\n"
        "from blackroad.discovery.hints import Announcement\n"
        "m = Mdns(Announcement('a' * 26, (1, 2, 3), (1, 1), 'x86_64'), ['127.0.0.1'])\n"
        "print(m.pid, flush=True)\n"
        "signal.pause()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(mdns.__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env)
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    try:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert select.select([child], [], [], 30)[0], "the child outlived its parent"
    finally:
        os.close(child)
        parent.stdout.close()


def test_an_interface_that_is_not_there_is_named(opened: list[Mdns]) -> None:
    daemon = Mdns(announcement(7701), ["wlan77"])
    opened.append(daemon)
    problem = ""

    def told() -> bool:
        nonlocal problem
        problem = problem or daemon.take_problem()
        return bool(problem)

    until([daemon], told, lambda number, hint: None)
    assert problem == "no mDNS yet: no interface is or has wlan77"


# --- children that misbehave --------------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Run `script` instead of the child; `line` is what the parent wrote first."""
    monkeypatch.setattr(line_child, "command", lambda *_: ["sh", "-c", f"read line; {script}"])
    monkeypatch.setattr(line_child, "BACK_OFF_S", (0.0, 0.0, 0.0))


def problem_of(daemon: Mdns) -> str:
    problem = ""

    def told() -> bool:
        nonlocal problem
        problem = problem or daemon.take_problem()
        return bool(problem)

    until([daemon], told, lambda number, hint: None)
    return problem


@pytest.mark.parametrize("script", ["exit 1", "kill -9 $$", "yes x | tr -d '\\n'"])
def test_a_child_that_keeps_ending_is_given_up_and_said_once(
    opened: list[Mdns], monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    stand_in(monkeypatch, script)
    daemon = Mdns(announcement(7701), LOOPBACK)
    opened.append(daemon)
    problem = problem_of(daemon)
    assert problem.startswith("mDNS is off: its process")
    assert "4 times in a row" in problem
    assert (daemon.read(), daemon.take_problem(), daemon.pid) == ([], "", 0)


def test_a_missing_package_is_said_once_and_not_tried_again(
    opened: list[Mdns], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "zeroconf.py").write_text("raise ImportError('No module named zeroconf')")
    daemon = Mdns(announcement(7701), LOOPBACK, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    opened.append(daemon)
    assert "`pip install zeroconf`" in problem_of(daemon)
    until([daemon], lambda: daemon.pid == 0, lambda number, hint: None)
    assert (daemon.read(), daemon.take_problem(), daemon.pid) == ([], "", 0)


def test_a_library_that_fails_is_told_with_its_own_words_and_tried_again(
    opened: list[Mdns], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(line_child, "BACK_OFF_S", (0.0, 0.0, 0.0))
    package = tmp_path / "zeroconf"
    package.mkdir()
    (package / "__init__.py").write_text(
        "__version__ = '9.9.9'\nIPVersion = DNSQuestionType = type('Any', (), {'V4Only': 1})\n"
    )
    (package / "asyncio.py").write_text(
        "AsyncServiceBrowser = None\n"
        "def AsyncZeroconf(**_):\n    raise RuntimeError('no multicast at all')\n"
    )
    daemon = Mdns(announcement(7701), LOOPBACK, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    opened.append(daemon)
    assert problem_of(daemon) == "mDNS stopped: RuntimeError: no multicast at all"
    # The same words of the next three children are not repeated.
    assert problem_of(daemon) == (
        "mDNS is off: its process ended, 4 times in a row (last: mDNS stopped: RuntimeError: no "
        "multicast at all); name peers in the configuration"
    )


def test_an_old_zeroconf_is_refused(opened: list[Mdns], tmp_path: Path) -> None:
    (tmp_path / "zeroconf.py").write_text("__version__ = '0.149.16'")
    daemon = Mdns(announcement(7701), LOOPBACK, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    opened.append(daemon)
    assert "`pip install 'zeroconf>=0.149.17'`" in problem_of(daemon)
    installed = tuple(int(part) for part in importlib.metadata.version("zeroconf").split("."))
    assert installed >= mdns_child.ZEROCONF_MIN


def test_what_a_child_says_is_checked_line_by_line(
    opened: list[Mdns], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = announcement(7801)
    txt = peer.txt(["10.0.0.9"])
    lines = [
        "not json",
        json.dumps({"seen": 5}),
        json.dumps({"seen": {"txt": txt | {"id": "../x"}}}),
        json.dumps({"seen": {"txt": txt | {"id": "b" * 300}}}),
        json.dumps({"seen": {"txt": txt | {"a": "127.0.0.1"}}}),
        json.dumps({"seen": {"txt": dict.fromkeys(map(str, range(17)), "x")}}),
        json.dumps({"gone": "a\u001b[2Jb"}),
        json.dumps({"problem": "mind\u001b the gap"}),
        json.dumps({"seen": {"txt": txt}, "new field": 1}),
    ]
    quoted = " ".join(f"'{line}'" for line in lines)
    stand_in(monkeypatch, f"printf '%s\\n' {quoted}; read line")
    daemon = Mdns(announcement(7701), None)
    opened.append(daemon)
    hints: list[Hint] = []
    until([daemon], lambda: bool(hints), lambda number, hint: hints.append(hint))
    assert [(hint.node, hint.endpoints) for hint in hints] == [
        (peer.node, ("tcp://10.0.0.9:7801",))
    ]
    assert daemon.refused == 6
    assert daemon.take_gone() == ["a [2Jb"]
    assert daemon.take_problem() == "mind the gap"


def test_loopback_hints_count_only_where_loopback_is_all_we_use(
    opened: list[Mdns], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = json.dumps({"seen": {"txt": announcement(7801).txt(["127.0.0.1"])}})
    ready = json.dumps({"ready": ["127.0.0.1"]})
    stand_in(monkeypatch, f"printf '%s\\n' '{seen}' '{ready}' '{seen}'; read line")
    daemon = Mdns(announcement(7701), LOOPBACK)
    opened.append(daemon)
    hints: list[Hint] = []
    until([daemon], lambda: bool(hints), lambda number, hint: hints.append(hint))
    assert (len(hints), daemon.refused) == (1, 1)


def test_the_child_gets_the_wish_and_every_change_of_it(
    opened: list[Mdns], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(
        monkeypatch,
        f"echo \"$line\" > {tmp_path}/1; echo '{{}}'; "
        f'read line; echo "$line" > {tmp_path}/2; echo \'{{"gone":"x"}}\'',
    )
    mine = announcement(7701)
    daemon = Mdns(mine, ["eth0"])
    opened.append(daemon)
    daemon.announce(mine)
    second = announcement(7702)
    daemon.announce(second)
    until([daemon], lambda: bool(daemon.take_gone()), lambda number, hint: None)
    wishes = [json.loads((tmp_path / name).read_text()) for name in "12"]
    assert [wish["announce"]["node"] for wish in wishes] == [mine.node, second.node]
    assert wishes[0]["interfaces"] == ["eth0"]


def test_closing_twice_is_fine() -> None:
    daemon = Mdns(announcement(7701), LOOPBACK)
    daemon.close()
    daemon.close()
    assert daemon.read() == []


def test_silence_after_the_first_announcement_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mdns_child, "OWN_VOICE_S", 0)
    for heard, lines in ((True, 0), (False, 1)):
        out = io.StringIO()
        service = mdns_child._Service(out)
        service._choice = Choice(("10.0.0.1",), ("10.0.0.1",))
        service._heard_self = heard
        asyncio.run(service._check_own_voice())
        assert out.getvalue().count("port 5353 on 10.0.0.1 does not come back") == lines


def test_a_voice_that_comes_back_ends_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """The firewall was opened: what is said again is heard."""
    monkeypatch.setattr(mdns_child, "OWN_VOICE_S", 0)
    monkeypatch.setattr(mdns_child, "VOICE_AGAIN_S", 0)
    out = io.StringIO()
    service = mdns_child._Service(out)
    service._own_name = "me"
    said = 0

    async def say_again() -> None:
        nonlocal said
        said += 1
        if said == 3:
            service._changed(None, "", "me", None)

    monkeypatch.setattr(service, "_say_again", say_again)
    asyncio.run(service._mind_own_voice())
    problem, sound = map(json.loads, out.getvalue().splitlines())
    assert (said, sound) == (3, {"sound": True})
    daemon = Mdns(None, ["none"])
    try:
        daemon._take(json.dumps(problem).encode())
        assert "port 5353" in daemon.take_problem()
        daemon._take(json.dumps(sound).encode())
        assert (daemon.problem, daemon.take_problem()) == ("", "")
    finally:
        daemon.close()


# --- which interfaces ---------------------------------------------------------------------------

LO = Interface("lo", nets.LOOPBACK, False, ("127.0.0.1",), ("::1",))
ETH = Interface("eth0", nets.ORDINARY, True, ("192.168.1.5",), ("fd00::5", "fe80::5"))
WIFI = Interface("wlan0", nets.ORDINARY, True, ("192.168.2.5", "169.254.3.3"), ())
V6 = Interface("eth1", nets.ORDINARY, True, (), ("fd01::5", "fe80::6"))
DOCKER = Interface("docker0", nets.CONTAINER, True, ("172.17.0.1",), ())
VPN = Interface("wg0", nets.OVERLAY, False, ("10.8.0.2",), ())


@pytest.mark.parametrize(
    ("present", "wanted", "multicast", "addresses"),
    [
        ([DOCKER, ETH, LO, VPN, WIFI], None, ["192.168.1.5", "192.168.2.5"],
         ["192.168.1.5", "192.168.2.5", "169.254.3.3", "fd00::5", "10.8.0.2", "172.17.0.1"]),
        ([V6, LO], None, ["fe80::6"], ["fd01::5"]),
        ([LO], None, ["127.0.0.1"], ["127.0.0.1"]),
        ([LO, DOCKER], None, ["127.0.0.1"], ["127.0.0.1"]),
        ([], None, ["127.0.0.1"], ["127.0.0.1"]),
        ([ETH, LO, WIFI], ["127.0.0.1"], ["127.0.0.1"], ["127.0.0.1"]),
        ([ETH, LO, WIFI], ["wlan0"], ["192.168.2.5"], ["192.168.2.5"]),
        ([ETH, LO, WIFI], ["192.168.1.5", "wlan0"], ["192.168.1.5", "192.168.2.5"],
         ["192.168.1.5", "192.168.2.5"]),
        ([ETH, LO, DOCKER], ["docker0"], ["172.17.0.1"], ["172.17.0.1"]),
        ([ETH, LO], ["wlan0"], [], []),
    ],
)  # fmt: skip
def test_where_to_announce_and_what(
    present: list[Interface], wanted: list[str] | None, multicast: list[str], addresses: list[str]
) -> None:
    assert choose(present, wanted) == Choice(tuple(multicast), tuple(addresses))


@pytest.mark.parametrize(
    ("name", "flags", "kind"),
    [("lo", 0x9, "loopback"), ("eth0", 0x1003, "ordinary"), ("br0", 0x1003, "ordinary"),
     ("br-lan", 0x1003, "ordinary"), ("br-0123456789ab", 0x1003, "container"),
     ("docker0", 0x1003, "container"), ("veth12", 0x1003, "container"), ("wg0", 0x91, "overlay"),
     ("usb0", 0x11, "overlay"), ("tailscale0", 0x1091, "overlay"), ("wlan0", 0x1003, "ordinary")],
)  # fmt: skip
def test_kinds_of_interfaces(name: str, flags: int, kind: str) -> None:
    assert kind_of(name, flags) == kind


def test_interfaces_of_this_machine(tmp_path: Path) -> None:
    assert any("127.0.0.1" in item.v4 for item in nets.interfaces())
    (tmp_path / "sys/class/net/lo").mkdir(parents=True)
    (tmp_path / "sys/class/net/lo/flags").write_text("0x8\n")
    assert "lo" not in [item.name for item in nets.interfaces(tmp_path)]
