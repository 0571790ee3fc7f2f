"""Where the figures of all nodes are read, for whoever asks at one of them."""

from __future__ import annotations

import json

import pytest

from blackroad.metrics.targets import Place, host_of, listed, split, target_of

HOSTILE = '"},{"targets":["evil:1"]\x1b[31m'


def place(said: str, *hosts: str, name: str = "attic") -> Place:
    return Place("k3f7x2ab", name, "aarch64", said, hosts)


@pytest.mark.parametrize(
    ("said", "hosts", "target"),
    [
        # For its own machine only: that is ours when it is reached by loopback.
        ("127.0.0.1:7710", ("127.0.0.1",), "127.0.0.1:7710"),
        ("127.0.0.1:7710", ("192.168.1.5",), ""),
        ("[::1]:7710", ("::1",), "[::1]:7710"),
        # At all addresses: the one that the bus reaches it at.
        ("0.0.0.0:7710", ("192.168.1.5", "10.0.0.1"), "192.168.1.5:7710"),
        ("0.0.0.0:7710", ("", "10.0.0.1"), "10.0.0.1:7710"),
        ("[::]:7710", ("2001:db8::1",), "[2001:db8::1]:7710"),
        ("0.0.0.0:7710", (), ""),
        # At one address: that one.
        ("192.168.1.5:7710", ("10.0.0.1",), "192.168.1.5:7710"),
        ("", ("192.168.1.5",), ""),
        ("evil.example:80", ("192.168.1.5",), ""),
        ("0.0.0.0:0", ("192.168.1.5",), ""),
        ("0.0.0.0:70000", ("192.168.1.5",), ""),
        ("0.0.0.0:²", ("192.168.1.5",), ""),
        ("7710", ("192.168.1.5",), ""),
    ],
)
def test_the_address_to_scrape(said: str, hosts: tuple[str, ...], target: str) -> None:
    assert target_of(place(said, *hosts)) == target


def test_the_list_is_what_prometheus_reads() -> None:
    body = listed([place("0.0.0.0:7710", "192.168.1.5"), place("", "192.168.1.6")])
    assert json.loads(body) == [
        {
            "targets": ["192.168.1.5:7710"],
            "labels": {"node": "k3f7x2ab", "node_name": "attic", "arch": "aarch64"},
        }
    ]


def test_no_name_adds_a_target() -> None:
    [row] = json.loads(listed([place("0.0.0.0:7710", "192.168.1.5", name=HOSTILE)]))
    assert row["targets"] == ["192.168.1.5:7710"]
    assert row["labels"]["node_name"] == HOSTILE


def test_hosts_of_endpoints() -> None:
    assert host_of("tcp://192.168.1.5:7701") == "192.168.1.5"
    assert host_of("tcp://[2001:db8::1]:7701") == "2001:db8::1"
    assert host_of("") == ""
    assert split("[::1]:80")[1] == 80
