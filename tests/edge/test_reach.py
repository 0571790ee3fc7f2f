"""What plain TCP tells of an address, and what a machine tells of its firewall."""

from __future__ import annotations

import select
import socket
from pathlib import Path

import pytest

from blackroad.discovery import reach as reaching
from blackroad.discovery.reach import Reacher, find_input_chain, firewall, reach

pytestmark = pytest.mark.edge


def test_open_refused_and_unknown_are_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as other:
            free = other.getsockname()[1]
        targets = [("127.0.0.1", port), ("127.0.0.1", free), ("nowhere.invalid", 1), ("::1x", 1)]
        assert reach(targets) == dict(
            zip(targets, ["open", "refused", "unknown name", "unknown name"], strict=True)
        )


def test_silence_is_told_after_the_limit() -> None:
    # A backlog that is full takes no further connection, and says nothing.
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        port = server.getsockname()[1]
        fillers = [socket.socket() for _ in range(8)]
        for one in fillers:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        assert reach([("127.0.0.1", port)], 0.2) == {("127.0.0.1", port): "no answer"}
        for one in fillers:
            one.close()


def test_a_loop_is_told_when_it_is_finished() -> None:
    reacher = Reacher()
    results: list[dict[reaching.Target, str]] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = ("127.0.0.1", server.getsockname()[1])
        assert reacher.ask([target], results.append)
        assert reacher.ask([], results.append)
        while len(results) < 2:
            assert select.select([reacher.fileno()], [], [], 20)[0], "nothing came of it"
            reacher.read()
    assert results == [{target: "open"}, {}]
    reacher.read()
    reacher.close()


def test_too_many_questions_are_refused() -> None:
    reacher = Reacher()
    taken = [reacher.ask([("nowhere.invalid", 1)], lambda _results: None) for _ in range(40)]
    assert taken[0]
    assert not taken[-1]
    reacher.close()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("run/firewalld.pid", "1", "firewalld"),
        ("etc/ufw/ufw.conf", "# x\nENABLED=yes\n", "ufw"),
    ],
)
def test_firewalls_are_found(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    assert firewall(tmp_path) == expected


def test_the_programs_decide_where_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc/ufw").mkdir(parents=True)
    (tmp_path / "etc/ufw/ufw.conf").write_text("ENABLED=no\n")
    there = {"iptables"}
    monkeypatch.setattr(reaching.shutil, "which", lambda name: name if name in there else None)
    assert firewall(tmp_path) == "iptables"
    there.add("nft")
    assert firewall(tmp_path) == "nft"
    there.clear()
    assert firewall(tmp_path) == ""


def test_the_chain_for_what_comes_in_is_found() -> None:
    listing = """table inet mine {
\tchain out {
\t\ttype filter hook output priority filter; policy accept;
\t}
\tchain in {
\t\ttype filter hook input priority filter; policy drop;
\t}
}
table bridge other {
\tchain input {
\t\ttype filter hook input priority 0; policy drop;
\t}
}
"""
    assert find_input_chain(listing) == ("inet", "mine", "in")
    assert find_input_chain("table bridge b {\n chain c {\n hook input\n") == ("", "", "")
    assert find_input_chain("") == ("", "", "")
