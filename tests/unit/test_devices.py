"""Which devices are believed in, from what children reported."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from blackroad.discovery.devices import Seen, is_software, merge

CARD = Seen(
    kind="gpu",
    name="NVIDIA GeForce RTX 3060",
    memory_bytes=12 * 2**30,
    compute_units=28,
    fp64=True,
    platform="NVIDIA CUDA",
    vendor="NVIDIA Corporation",
    vendor_id=0x10DE,
    driver="570.1",
    index=0,
    gflops=9000.0,
)


def like(seen: Seen, **changes: Any) -> Seen:
    return msgspec.structs.replace(seen, **changes)


RUSTICL = like(CARD, platform="rusticl", driver="25.0.7", vendor="Mesa", gflops=500.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "cpu", "name": "pthread-Cortex-A76"},
        {"name": "llvmpipe (LLVM 15.0.6, 256 bits)", "platform": "rusticl"},
        {"name": "softpipe"},
        {"name": "NVIDIA card", "platform": "Portable Computing Language"},
        {"driver": "swrast 1.0"},
        {"vendor": "SwiftShader"},
    ],
)
def test_software_never_counts_as_a_gpu(changes: dict[str, Any]) -> None:
    assert is_software(like(CARD, **changes))
    [(device, _)] = merge([like(CARD, **changes)], [])
    assert (device.kind, device.software, device.problem) == ("cpu", True, "")


def test_a_real_gpu_does() -> None:
    [(device, gflops)] = merge([CARD], [])
    assert (device.kind, device.software, gflops) == ("gpu", False, 9000.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"memory_bytes": 0}, "claims 0 bytes"),
        ({"memory_bytes": -1}, "claims -1 bytes"),
        ({"memory_bytes": 2**60}, "claims 1152921504606846976 bytes"),
        ({"compute_units": 0}, "claims 0 compute units"),
        ({"compute_units": 2**31}, "compute units"),
        ({"problem": "crashed", "memory_bytes": 0}, "crashed"),
    ],
)
def test_devices_that_lie_have_a_problem(changes: dict[str, Any], says: str) -> None:
    [(device, gflops)] = merge([like(CARD, **changes)], [])
    assert says in device.problem
    assert gflops == 0.0
    assert 0 <= device.memory_bytes <= 2**48


def test_one_card_behind_two_opencl_drivers_is_one_card() -> None:
    for order in ([CARD, RUSTICL], [RUSTICL, CARD]):
        found = {device.platform: device.problem for device, _ in merge(order, [])}
        assert found == {
            "NVIDIA CUDA": "",
            "rusticl": "the same card is used through NVIDIA CUDA",
        }


def test_mesa_is_used_where_the_makers_driver_fails() -> None:
    found = merge([like(CARD, problem="computes wrong numbers"), RUSTICL], [])
    assert [device.problem for device, _ in found] == ["computes wrong numbers", ""]


def test_the_same_device_twice_is_kept_once() -> None:
    assert len(merge([CARD, like(CARD)], [])) == 1
    assert len(merge([CARD, like(CARD, index=1)], [])) == 2


def test_nvidias_library_adds_only_cards_that_opencl_did_not_run() -> None:
    card = like(CARD, backend="cuda", gflops=0.0)
    second = like(card, index=1)
    found = [device.backend for device, _ in merge([CARD], [card, second])]
    assert found == ["opencl", "cuda"]
    broken = like(CARD, problem="crashed")
    found = [device.backend for device, _ in merge([broken], [card])]
    assert found == ["opencl", "cuda"]


def test_texts_from_drivers_are_made_printable() -> None:
    [(device, _)] = merge([like(CARD, name="a\x1b[2J\n" + "b" * 200, kind="custom")], [])
    assert device.name.isprintable()
    assert len(device.name) == 128
    assert device.kind == "accelerator"
