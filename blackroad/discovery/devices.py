"""Which devices to believe in: what drivers claim, held against what is possible.

Pure.  This file knows what the children reported and how a kernel ended, never a driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from blackroad.capabilities import DEVICES_MAX, NOTE_MAX, Device, printable

_SOFTWARE_WORDS: Final = ("llvmpipe", "lavapipe", "softpipe", "swrast", "swiftshader", "pocl",
                          "portable computing language")  # fmt: skip
# Mesa's own OpenCL platforms, behind the makers' where both show one card.
_SECOND_CHOICE: Final = ("rusticl", "clover")
_DEVICE_BYTES_MAX: Final = 2**48


class Seen(Struct):
    """One device as a child reported it, before anything is believed."""

    kind: str
    name: str
    memory_bytes: int
    compute_units: int
    fp64: bool
    platform: str
    vendor: str
    vendor_id: int
    driver: str
    index: int
    backend: str = "opencl"
    problem: str = ""
    gflops: float = 0.0


def is_software(seen: Seen) -> bool:
    """Tell whether the device is the processor in disguise."""
    words = f"{seen.name} {seen.platform} {seen.driver} {seen.vendor}".lower()
    return seen.kind == "cpu" or any(word in words for word in _SOFTWARE_WORDS)


def merge(opencl: Sequence[Seen], nvidia: Sequence[Seen]) -> list[tuple[Device, float]]:
    """Return each device once, with its GFLOP/s: a card that two drivers show is one card."""
    kept: list[Seen] = []
    for seen in opencl:
        same = (seen.platform, seen.name, seen.index)
        if same not in [(other.platform, other.name, other.index) for other in kept]:
            kept.append(msgspec.structs.replace(seen))
    _second_choices(kept)
    _liars(kept)
    # NVIDIA's own OpenCL shows the same cards, and was tried with a kernel.
    tried = [seen.name for seen in kept if _is_good_gpu(seen)]
    for card in nvidia:
        if card.name in tried:
            tried.remove(card.name)
        else:
            kept.append(card)
    return [(_device(seen), 0.0 if seen.problem else seen.gflops) for seen in kept[:DEVICES_MAX]]


def _second_choices(devices: Sequence[Seen]) -> None:
    """Set aside what Mesa shows of cards that their maker's driver runs."""
    makers = {
        seen.vendor_id: seen.platform
        for seen in devices
        if _is_good_gpu(seen) and seen.platform.lower() not in _SECOND_CHOICE
    }
    for seen in devices:
        if seen.platform.lower() in _SECOND_CHOICE and seen.vendor_id in makers:
            maker = makers[seen.vendor_id]
            seen.problem = seen.problem or f"the same card is used through {maker}"


def _liars(devices: Sequence[Seen]) -> None:
    """Give a problem to every device whose own numbers cannot be."""
    for seen in devices:
        if not 0 < seen.memory_bytes <= _DEVICE_BYTES_MAX:
            seen.problem = seen.problem or f"claims {seen.memory_bytes} bytes of memory"
        if not 0 < seen.compute_units <= 2**20:
            seen.problem = seen.problem or f"claims {seen.compute_units} compute units"
        seen.memory_bytes = min(max(seen.memory_bytes, 0), _DEVICE_BYTES_MAX)
        seen.compute_units = min(max(seen.compute_units, 0), 2**20)


def _is_good_gpu(seen: Seen) -> bool:
    return seen.kind == "gpu" and not is_software(seen) and not seen.problem


def _device(seen: Seen) -> Device:
    software = is_software(seen)
    kind = seen.kind if seen.kind in ("gpu", "cpu") else "accelerator"
    return Device(
        kind="cpu" if software else kind,
        name=printable(seen.name) or "unnamed",
        backend=seen.backend,
        memory_bytes=min(max(seen.memory_bytes, 0), _DEVICE_BYTES_MAX),
        compute_units=seen.compute_units,
        fp64=seen.fp64,
        software=software,
        platform=printable(seen.platform),
        driver=printable(seen.driver),
        index=min(max(seen.index, 0), 255),
        problem=printable(seen.problem, NOTE_MAX),
    )
