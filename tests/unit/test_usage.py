"""How much of the machine is used: which interfaces count, and what odd counters say."""

from __future__ import annotations

from pathlib import Path

import pytest

from blackroad.discovery.usage import Usage, Used

HEAD = "Inter-|   Receive                |  Transmit\n face |bytes packets errs |bytes\n"


class Kernel:
    """The places where the kernel tells of what is used."""

    def __init__(self, base: Path) -> None:
        self.proc = base / "proc"
        (self.proc / "net").mkdir(parents=True)
        self.counters = self.proc / "net" / "dev"
        self.devices = base / "sys/class/net"
        self.devices.mkdir(parents=True)
        self.usage = Usage(base)

    def card(self, name: str) -> None:
        (self.devices / name / "device").mkdir(parents=True)

    def tell(self, **counts: tuple[int, int]) -> None:
        lines = [
            f"  {name}: {received} 1 0 0 0 0 0 0 {sent} 1 0 0 0 0 0 0\n"
            for name, (received, sent) in counts.items()
        ]
        self.counters.write_text(HEAD + "".join(lines))


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_speeds_are_differences(kernel: Kernel) -> None:
    kernel.card("eth0")
    kernel.tell(eth0=(1_000_000, 5_000), lo=(9, 9))
    assert kernel.usage.look(10_000) == Used(0, 0)
    kernel.tell(eth0=(1_000_000 + 5 * 1024 * 300, 5_000 + 5 * 1024 * 7), lo=(10**9, 10**9))
    assert kernel.usage.look(15_000) == Used(300, 7)


def test_bridges_do_not_count_what_a_card_counts(kernel: Kernel) -> None:
    kernel.card("eth0")
    kernel.tell(eth0=(0, 0), docker0=(0, 0))
    kernel.usage.look(0)
    kernel.tell(eth0=(1024 * 10, 0), docker0=(1024 * 10, 0))
    assert kernel.usage.look(1_000) == Used(10, 0)


def test_a_container_has_no_card(kernel: Kernel) -> None:
    kernel.tell(eth0=(0, 0), lo=(0, 0))
    kernel.usage.look(0)
    kernel.tell(eth0=(2048, 1024), lo=(10**9, 0))
    assert kernel.usage.look(1_000) == Used(2, 1)


def test_counters_that_begin_anew_are_no_speed(kernel: Kernel) -> None:
    kernel.card("wlan0")
    kernel.tell(wlan0=(10**9, 10**9))
    kernel.usage.look(0)
    kernel.tell(wlan0=(100, 100))
    assert kernel.usage.look(1_000) == Used(0, 0)
    kernel.card("usb0")
    kernel.tell(wlan0=(100, 100), usb0=(10**9, 10**9))
    assert kernel.usage.look(2_000) == Used(0, 0)


@pytest.mark.parametrize("text", ["", "garbage", "eth0: x y z", HEAD + "eth0: 1 2 3\n", "\0\0"])
def test_what_cannot_be_read_is_nothing(kernel: Kernel, text: str) -> None:
    kernel.counters.write_text(text)
    assert kernel.usage.look(0) == Used(0, 0)
    assert kernel.usage.look(1_000) == Used(0, 0)


def test_no_counters_at_all(kernel: Kernel) -> None:
    assert kernel.usage.look(1_000) == Used(0, 0)
    # Two looks at the same moment are no division by nothing.
    kernel.tell(eth0=(1, 1))
    assert kernel.usage.look(1_000) == Used(0, 0)


def stat(*counts: int) -> str:
    return f"cpu  {' '.join(map(str, counts))}\ncpu0 1 2 3\n"


def test_processor_is_what_did_not_rest(kernel: Kernel) -> None:
    #                   user nice system idle iowait irq softirq steal guest
    kernel.proc.joinpath("stat").write_text(stat(100, 0, 50, 800, 50, 0, 0, 0, 70))
    assert kernel.usage.look(1_000).cpu_percent == 0
    kernel.proc.joinpath("stat").write_text(stat(160, 0, 65, 815, 60, 0, 0, 0, 99))
    assert kernel.usage.look(2_000).cpu_percent == 75
    # Counters that begin anew, or run backwards, are no percentage.
    kernel.proc.joinpath("stat").write_text(stat(1, 0, 1, 9, 0, 0, 0, 0, 0))
    assert kernel.usage.look(3_000).cpu_percent == 0
    kernel.proc.joinpath("stat").write_text(stat(99, 0, 1, 5, 0, 0, 0, 0, 0))
    assert kernel.usage.look(4_000).cpu_percent == 100


def test_memory_is_what_is_not_available(kernel: Kernel) -> None:
    lines = "MemTotal:  8000000 kB\nMemFree:  100 kB\nMemAvailable:  6000000 kB\n"
    kernel.proc.joinpath("meminfo").write_text(lines)
    assert kernel.usage.look(0).memory_percent == 25


@pytest.mark.parametrize("text", ["", "MemTotal: 0 kB\nMemAvailable: 0 kB", "MemTotal: x kB", "a"])
def test_odd_memory_and_processor(kernel: Kernel, text: str) -> None:
    kernel.proc.joinpath("meminfo").write_text(text)
    kernel.proc.joinpath("stat").write_text(text)
    assert kernel.usage.look(0) == Used()
    assert kernel.usage.look(1) == Used()


def test_this_machine_tells(kernel: Kernel) -> None:
    usage = Usage()
    usage.look(0)
    told = usage.look(1_000)
    assert 0 < told.memory_percent <= 100
    assert 0 <= told.cpu_percent <= 100
