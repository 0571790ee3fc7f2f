"""Choice of a device, and what happens when one fails."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from blackroad.errors import EXIT_ENVIRONMENT, DeviceProblem, MissingPackage
from blackroad.kernels import collatz, opencl, registry
from blackroad.kernels.backend import GROUP_ITEMS, Device

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RANGE = {"start": 1, "count": 100}
STEPS = 3142


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin like a new process, with no choice made."""
    monkeypatch.delenv(opencl.CHOICE_VARIABLE, raising=False)
    for table in ("_opened", "_losses", "_refused"):
        monkeypatch.setattr(opencl, table, {})


def choose(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    monkeypatch.setenv(opencl.CHOICE_VARIABLE, choice)


@pytest.mark.parametrize("backend_name", ["auto", "opencl"])
def test_a_device_is_used_and_named(device: Device, backend_name: str) -> None:
    result: Any = registry.run("collatz", RANGE, backend_name)
    assert result["total_steps"] == STEPS
    assert registry.last_backend().startswith("opencl:")
    assert registry.last_fallback() == ""


def test_the_device_is_opened_once(device: Device) -> None:
    assert opencl.open_device() is opencl.open_device()


def test_a_device_can_be_chosen(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    for raw in opencl.devices():
        platform, name = raw.platform.name, raw.name
        for choice in (f"{platform}:{name}", platform.upper()[:6], f":{name[-4:]}"):
            choose(monkeypatch, choice)
            assert opencl._fits(choice.partition(":")[0], platform, [])
            assert opencl.open_device().name.startswith("opencl:")
    choose(monkeypatch, "0:0")
    assert opencl.open_device().name == f"opencl:{opencl.short_name(opencl.devices()[0])}"


@pytest.mark.parametrize(
    ("wanted", "name", "fits"),
    [
        ("", "PoCL", True),
        ("pocl", "PoCL", True),
        ("0", "PoCL", True),
        ("1", "PoCL", False),
        ("1", "RTX 4090", True),
        ("4090", "RTX 4090", True),
        ("4090", "PoCL", False),
    ],
)
def test_a_choice_is_a_piece_of_a_name_or_a_number(wanted: str, name: str, fits: bool) -> None:
    assert opencl._fits(wanted, name, ["PoCL", "RTX 4090"]) is fits


def test_off_means_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "OFF")
    result: Any = registry.run("collatz", RANGE)
    assert result["total_steps"] == STEPS
    assert registry.last_backend() == "numpy"
    assert registry.last_fallback() == "OpenCL is switched off by BLACKROAD_OPENCL_DEVICE"
    with pytest.raises(DeviceProblem, match="switched off") as caught:
        registry.run("collatz", RANGE, "opencl")
    assert caught.value.exit_code == EXIT_ENVIRONMENT


def test_a_choice_that_fits_nothing(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "nobody:nothing")
    with pytest.raises(DeviceProblem) as caught:
        registry.run("collatz", RANGE, "opencl")
    assert caught.value.message == "no OpenCL device fits BLACKROAD_OPENCL_DEVICE=nobody:nothing"
    assert caught.value.hint.startswith("there are: `")
    registry.run("collatz", RANGE, "auto")
    assert registry.last_fallback() == caught.value.message


def test_a_refusal_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(opencl, "devices", lambda: asked.append(1) or [])
    for _ in range(3):
        with pytest.raises(DeviceProblem, match="no OpenCL driver offers a device"):
            opencl.open_device()
    assert asked == [1]


def test_without_pyopencl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(MissingPackage) as caught:
        registry.run("collatz", RANGE, "opencl")
    assert caught.value.hint == "pip install 'blackroad[opencl]'"
    registry.run("collatz", RANGE, "auto")
    assert registry.last_backend() == "numpy"
    assert registry.last_fallback().startswith("pyopencl cannot be imported")


def test_a_build_error(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collatz.Collatz, "opencl", "__kernel void collatz() { nonsense; }")
    for _ in range(2):
        with pytest.raises(DeviceProblem, match="cannot build `collatz`") as caught:
            registry.run("collatz", RANGE, "opencl")
        assert "nonsense" in caught.value.message
        assert caught.value.hint
    result: Any = registry.run("collatz", RANGE, "auto")
    assert (result["total_steps"], registry.last_backend()) == (STEPS, "numpy")
    assert "cannot build `collatz`" in registry.last_fallback()
    monkeypatch.undo()
    registry.run("collatz", RANGE, "opencl")


def test_a_function_that_is_not_in_the_program(device: Device) -> None:
    text = "__kernel void one(const uint items) {}"
    with pytest.raises(DeviceProblem, match="cannot build `two`"):
        opencl.open_device().launch(text, "two", 1, [])


def test_a_lost_device_is_opened_anew_three_times(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = opencl.OpenCLDevice.download

    def lost(self: Any, buffer: Any, count: int, dtype: str) -> Any:
        # More than the buffer holds: the driver itself refuses.
        return download(self, buffer, 2 * count, dtype)

    seen = []
    monkeypatch.setattr(opencl.OpenCLDevice, "download", lost)
    for _ in range(opencl.LOSSES_MAX):
        seen.append(opencl.open_device())
        result: Any = registry.run("collatz", RANGE, "auto")
        assert (result["total_steps"], registry.last_backend()) == (STEPS, "numpy")
        assert "failed to give back its result" in registry.last_fallback()
    assert len(set(map(id, seen))) == opencl.LOSSES_MAX
    monkeypatch.setattr(opencl.OpenCLDevice, "download", download)
    with pytest.raises(DeviceProblem, match="lost 3 times"):
        registry.run("collatz", RANGE, "opencl")


def test_what_does_not_fit_the_device(device: Device) -> None:
    opened = opencl.open_device()
    with pytest.raises(DeviceProblem, match="bytes at once"):
        opened.empty(2**60)
    assert not opened.lost


def test_a_forked_process_leaves_the_device_alone(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = opencl.open_device()
    monkeypatch.setattr(os, "getpid", lambda: opened.process_id + 1)
    registry.run("collatz", RANGE, "auto")
    assert registry.last_backend() == "numpy"
    assert "before this process was forked" in registry.last_fallback()


def test_items_beyond_those_asked_for_do_nothing(device: Device) -> None:
    text = """
    __kernel void mark(const uint items, __global int *seen)
    { if (get_global_id(0) < items) seen[get_global_id(0)] = 1; else seen[items] += 1000000; }
    """
    asked = GROUP_ITEMS + 1
    buffer = device.upload(np.zeros(asked + 1, np.int32))
    device.launch(text, "mark", asked, [buffer])
    seen = device.download(buffer, asked + 1, "int32")
    assert seen[:asked].all()
    assert seen[asked] > 0


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads change places as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("eager_threads")
def test_threads_share_a_device(device: Device) -> None:
    chosen = registry.get("monte_carlo_pi")
    jobs = [{"samples": 1_000, "seed": seed} for seed in range(2_000)]
    opencl.open_device()

    def compute(job: dict[str, int]) -> object:
        return registry.run("monte_carlo_pi", job, "opencl")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(compute, jobs))
    assert found == [chosen.reference(job) for job in jobs]


def test_processes_build_at_once(device: Device, tmp_path: Path) -> None:
    program = (
        "from blackroad.kernels import registry\n"
        "registry.run('mandelbrot', {'width': 9, 'height': 9}, 'opencl')\n"
        "print(registry.last_backend())\n"
    )
    environment = {**os.environ, "POCL_CACHE_DIR": str(tmp_path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = [process.communicate(timeout=120)[0].strip() for process in running]
    assert said == [opencl.open_device().name] * 4
