"""What the doctor concludes from what nodes say of each other."""

from __future__ import annotations

from typing import Any

import pytest

from blackroad.cli.doctor import told
from blackroad.cli.doctor_checks import Finding, findings, multicast_rule, rule
from blackroad.client.networks import View

PORTS = (7701, 7702, 7703)


def host(name: str) -> str:
    return f"10.0.0.{ord(name[0]) - 96}"


def peer(name: str, **changes: Any) -> dict[str, Any]:
    return {"node": name * 26, "name": name, "greets": True, "answers": True, **changes}


def status(name: str, *peers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "listen": "0.0.0.0",
        "ports": list(PORTS),
        "endpoints": [f"tcp://{host(name)}:7701"],
        "mdns": {"on": True, "problem": "", "places": [host(name)], "heard": []},
        "registry": {"on": False, "state": "", "problem": ""},
        "tried": [],
        "tried_words": ["mDNS: nobody heard"],
        "peers": list(peers),
        "firewall": "nft",
        "input_chain": [],
    }
    fields["mdns"]["heard"] = [one["node"] for one in peers]
    return {**fields, **changes}


def probes(to: str, *blocked: int, result: str = "no answer", at: str = "") -> list[dict[str, Any]]:
    return [
        {
            "node": to * 26,
            "host": at or host(to),
            "port": port,
            "result": result if port in blocked else "open",
        }
        for port in PORTS
    ]


def view(name: str, told_: dict[str, Any] | None, probed: Any = None, **changes: Any) -> View:
    return View(name * 26, name, told_, probed, state="alive")._replace(**changes)


def pair(**changes: Any) -> list[View]:
    return [
        view("a", status("a", peer("b"), **changes), probes("b")),
        view("b", status("b", peer("a")), probes("a")),
    ]


def kinds(views: list[View]) -> list[str]:
    return [one.kind for one in findings(views)]


def test_where_all_is_well_nothing_is_found() -> None:
    assert findings(pair()) == []
    assert told(pair(), []) == [
        "no problem found: 2 nodes asked, all ports open in both directions"
    ]


@pytest.mark.parametrize(
    ("blocked", "words"),
    [
        ((7702,), "port 7702 (telemetry) is blocked"),
        ((7701, 7703), "ports 7701 (messages) and 7703 (objects) are blocked"),
    ],
)
def test_blocked_ports_are_named_with_direction_and_rule(
    blocked: tuple[int, ...], words: str
) -> None:
    one, two = pair()
    found = findings([one._replace(probed=probes("b", *blocked)), two])
    assert [(each.kind, each.level) for each in found] == [("port", "problem")]
    assert found[0].text == f"a -> b: {words} (no answer at 10.0.0.2)"
    assert found[0].do == tuple(
        f"on b: nft insert rule inet filter input ip saddr 10.0.0.1 tcp dport {port} accept"
        for port in blocked
    )


def test_the_other_direction_is_the_other_one() -> None:
    one, two = pair()
    [found] = findings([one, two._replace(probed=probes("a", 7701, result="refused"))])
    assert found.text == "b -> a: port 7701 (messages) is blocked (refused at 10.0.0.1)"
    assert found.do[0].startswith("on a: ")


def test_one_address_that_works_is_enough() -> None:
    one, two = pair()
    rows = [*probes("b", *PORTS, at="172.17.0.1"), *probes("b")]
    assert findings([one._replace(probed=rows), two]) == []


def test_no_common_network_is_no_firewall() -> None:
    one, two = pair()
    rows = probes("b", *PORTS, result="no route", at="10.9.9.9")
    [found] = findings([one._replace(probed=rows), two])
    assert (found.kind, found.text) == ("route", "a -> b: no route (10.9.9.9)")


def test_a_dead_node_is_not_reported_as_a_firewall() -> None:
    one, two = pair()
    dead = two._replace(status=None, probed=None, state="dead")
    assert findings([one._replace(probed=probes("b", *PORTS)), dead]) == []


def test_a_node_that_cannot_be_asked_is_judged_from_here() -> None:
    one, two = pair()
    views = [one._replace(probed=probes("b", 7702)), two._replace(status=None, probed=None)]
    found = findings(views)
    assert [each.kind for each in found] == ["port", "unreached"]
    assert "could not be asked" in found[0].do[-1]
    assert found[1].level == "note"


def test_who_never_greets_is_blocked_on_the_way_here() -> None:
    one, two = pair()
    deaf = status("a", peer("b", greets=False))
    [found] = findings([one._replace(status=deaf), two])
    assert found.text.startswith("b -> a: port 7701 (messages) seems blocked")
    assert found.do[0].startswith("on a: ")


def test_an_unanswered_greeting_is_a_blocked_way_back() -> None:
    result = "connected, but the greeting is not answered (is the way back blocked?)"
    row = {"endpoint": "tcp://10.0.0.9:7701", "source": "mdns", "node": "", "result": result}
    [found] = findings(pair(tried=[row]))
    assert found.text.startswith("10.0.0.9:7701 -> a: port 7701 (messages) seems blocked")
    assert "ip saddr 10.0.0.9 tcp dport 7701" in found.do[0]


@pytest.mark.parametrize(
    ("result", "advice"),
    [
        ("refused", "is the daemon running"),
        ("no answer", "is off or elsewhere"),
        ("no machine there", "is off or elsewhere"),
        ("unknown name", "look up"),
        ("another cluster's daemon answers", "`peers`"),
        ("connected, but not with a key of this cluster", "`blackroad members`"),
    ],
)
def test_each_named_peer_that_fails_gets_its_advice(result: str, advice: str) -> None:
    row = {"endpoint": "tcp://attic:7701", "source": "static", "node": "", "result": result}
    [found] = findings(pair(tried=[row]))
    assert (found.kind, found.text) == ("peer", f"peer attic:7701: {result}")
    assert advice in found.do[0]
    hinted = {**row, "source": "mdns"}
    assert findings(pair(tried=[hinted])) == [], "inventions of strangers are no problem"


def test_alone_lists_what_was_tried() -> None:
    [found] = findings([view("a", status("a", listen="127.0.0.1"), [])])
    assert (found.kind, found.level) == ("alone", "problem")
    assert found.do[0] == "tried: mDNS: nobody heard"
    assert "loopback only" in found.do[1]


def test_multicast_that_is_blocked_here_is_a_problem() -> None:
    one, two = pair()
    mdns = {"on": True, "problem": "no mDNS: it does not come back", "places": [], "heard": []}
    found = findings([one._replace(status=status("a", peer("b"), mdns=mdns)), two])
    assert [(each.kind, each.level) for each in found] == [("multicast", "problem")]
    assert "udp dport 5353" in found[0].do[0]


def test_multicast_that_is_lost_between_neighbours_is_a_note() -> None:
    views = []
    for name, other in (("a", "b"), ("b", "a")):
        mdns = {"on": True, "problem": "", "places": [host(name)], "heard": []}
        views.append(view(name, status(name, peer(other), mdns=mdns), probes(other)))
    [found] = findings(views)
    assert (found.kind, found.level) == ("multicast", "note")
    far = {"on": True, "problem": "", "places": ["10.7.0.1"], "heard": []}
    views[1] = views[1]._replace(status=status("b", peer("a"), mdns=far))
    assert findings(views) == [], "multicast does not cross networks"


@pytest.mark.parametrize(
    ("ahead_ms", "within_ms", "words"),
    [
        (3_600_000, 2, "the clock of b is 1 h ahead of that of a"),
        (-5_000, 2, "the clock of b is 5 s behind that of a"),
        (2_500, 900, ""),
        (1_000, 1, ""),
    ],
)
def test_a_clock_that_is_off_is_named(ahead_ms: int, within_ms: int, words: str) -> None:
    one, two = pair()
    found = findings([one, two._replace(ahead_ms=ahead_ms, within_ms=within_ms)])
    assert [each.text for each in found] == ([words] if words else [])


@pytest.mark.parametrize(
    ("ahead_ms", "texts"),
    [
        ((0, -60_040, 20), ["the clock of b is 1 min behind those of a and c"]),
        ((0, 60_000, 60_100), ["the clock of a is 1 min behind those of b and c"]),
        ((0, 5_000, 10_000), [
            "the clock of b is 5 s ahead of that of a", "the clock of c is 10 s ahead of that of a",
        ]),
        ((0, 1_500, -1_500), []),
    ],
)  # fmt: skip
def test_the_clock_that_is_off_is_the_one_that_few_share(
    ahead_ms: tuple[int, int, int], texts: list[str]
) -> None:
    views = [
        view(name, status(name, *(peer(other) for other in "abc" if other != name)), ahead_ms=off)
        for name, off in zip("abc", ahead_ms, strict=True)
    ]
    found = findings(views)
    assert [one.text for one in found] == texts
    firsts = [one.do[0] for one in found]
    sure = len(texts) == 1
    assert all(first.endswith("timedatectl set-ntp true") for first in firsts)
    assert [", if it is wrong: " in first for first in firsts] == [not sure] * len(texts)


def test_clones_are_named() -> None:
    one, two = pair()
    assert kinds([one, two._replace(state="clone")]) == ["clone"]
    result = "a second machine with this node's identity answers"
    row = {"endpoint": "tcp://10.0.0.9:7701", "source": "mdns", "node": "", "result": result}
    [found] = findings(pair(tried=[row]))
    assert found.text.startswith("two machines use the identity of a")
    assert "10.0.0.9" in found.text


def test_a_clone_is_named_once_with_all_places_that_anybody_knows() -> None:
    def clone(*hosts: str) -> list[dict[str, Any]]:
        return [{"node": "c" * 26, "endpoints": [f"tcp://{one}:7701" for one in hosts]}]

    one, two = pair(clones=clone("10.0.0.3"), closed=True)
    assert two.status is not None
    two = two._replace(status={**two.status, "clones": clone("10.0.0.3", "10.0.0.9")})
    [found] = findings([one, two, view("c", None, state="clone")])
    assert found.text == (
        "two machines use the identity of c (cccccccc): at 10.0.0.3:7701 and 10.0.0.9:7701"
    )
    assert "cluster/" in found.do[0]
    assert "blackroad join" in found.do[0]


def test_who_is_a_clone_itself_hears_that_and_not_that_nobody_answers() -> None:
    one, _ = pair(clones=[])
    [found] = findings([one._replace(state="clone"), view("b", None)])
    assert found.text == "two machines use the identity of a (aaaaaaaa)"
    assert "cluster/" not in found.do[0]


def test_a_registry_that_is_down_is_a_problem() -> None:
    registry = {"on": True, "state": "denied", "problem": "Redis at x:1: WRONGPASS"}
    [found] = findings(pair(registry=registry))
    assert (found.kind, found.level) == ("registry", "problem")
    assert "WRONGPASS" in found.text


@pytest.mark.parametrize(
    ("firewall", "chain", "source", "expected"),
    [
        ("nft", ["ip", "mine", "in"], "10.0.0.1",
         "nft insert rule ip mine in ip saddr 10.0.0.1 tcp dport 7702 accept"),
        ("nft", [], "fd00::1",
         "nft insert rule inet filter input ip6 saddr fd00::1 tcp dport 7702 accept"),
        ("", [], "", "nft insert rule inet filter input tcp dport 7702 accept"),
        ("ufw", [], "10.0.0.1", "ufw allow proto tcp from 10.0.0.1 to any port 7702"),
        ("ufw", [], "", "ufw allow proto tcp from any to any port 7702"),
        ("iptables", [], "10.0.0.1", "iptables -I INPUT -p tcp -s 10.0.0.1 --dport 7702 -j ACCEPT"),
        ("iptables", [], "fd00::1",
         "ip6tables -I INPUT -p tcp -s fd00::1 --dport 7702 -j ACCEPT"),
        ("firewalld", [], "",
         "firewall-cmd --permanent --add-port=7702/tcp && firewall-cmd --reload"),
        ("firewalld", [], "10.0.0.1",
         "firewall-cmd --permanent --add-rich-rule='rule family=\"ipv4\" source "
         'address="10.0.0.1" port port="7702" protocol="tcp" accept\' && firewall-cmd --reload'),
    ],
)  # fmt: skip
def test_rules_are_written_for_the_firewall_that_is_there(
    firewall: str, chain: list[str], source: str, expected: str
) -> None:
    assert rule(status("a", firewall=firewall, input_chain=chain), 7702, source) == expected


def test_the_rule_for_multicast() -> None:
    told_ = status("a", firewall="ufw")
    assert multicast_rule(told_) == "ufw allow proto udp from any to any port 5353"


def test_findings_are_printed_with_what_to_do() -> None:
    lines = told(pair(), [Finding("x", "problem", "it is wrong", ("do this", "then that"))])
    assert lines == ["problem: it is wrong", "    do this", "    then that"]
    noted = told(pair(), [Finding("x", "note", "so so", ())])
    assert noted[0] == "note: so so"
    assert noted[1].startswith("no problem found: 2 nodes asked")
