"""The OpenCL device of this process: chosen once, with its context, queue and built programs.

Any driver counts, a GPU's or a CPU's.  BLACKROAD_OPENCL_DEVICE chooses: empty for the best one
found (GPUs first), `off`, or `platform:device`, each part a piece of a name or a number.  This
file must not know any kernel; pyopencl is imported when a device is first asked for.
"""

from __future__ import annotations

import os
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from blackroad.errors import DeviceProblem, EnvironmentProblem, MissingPackage
from blackroad.kernels.backend import GROUP_ITEMS, Buffer, Device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    import pyopencl

CHOICE_VARIABLE: Final = "BLACKROAD_OPENCL_DEVICE"
LOSSES_MAX: Final = 3
BUILD_LOG_CHARACTERS_MAX: Final = 600

_SHORT_NAMES: Final = {
    "Portable Computing Language": "PoCL",
    "NVIDIA CUDA": "NVIDIA",
    "AMD Accelerated Parallel Processing": "AMD",
    "Intel(R) OpenCL Graphics": "Intel",
    "Intel(R) OpenCL": "Intel",
}


class OpenCLDevice(Device):
    """One device as this process uses it: a context, an in-order queue, programs by their text.

    A program that failed to build is not tried again.  `lost` is set by an error after which the
    context cannot be trusted; `open_device` then makes a new one.
    """

    def __init__(self, raw: pyopencl.Device) -> None:
        import pyopencl as cl

        self.name = f"opencl:{short_name(raw)}"
        self.has_fp64 = "cl_khr_fp64" in raw.extensions.split()
        self.lost = False
        self.process_id = os.getpid()
        self._allocation_max_bytes = int(raw.max_mem_alloc_size)
        self._lock = threading.Lock()
        self._functions: dict[tuple[str, ...], pyopencl.Kernel | DeviceProblem] = {}
        with self._asked("open a context"):
            self._context = cl.Context([raw])
            self._queue = cl.CommandQueue(self._context)

    def upload(self, array: npt.NDArray[Any]) -> Buffer:
        import pyopencl as cl

        self._check_size(array.nbytes)
        flags = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
        with self._asked(f"take {array.nbytes} bytes"):
            return cl.Buffer(self._context, flags, hostbuf=array)

    def empty(self, size_bytes: int) -> Buffer:
        import pyopencl as cl

        self._check_size(size_bytes)
        with self._asked(f"reserve {size_bytes} bytes"):
            return cl.Buffer(self._context, cl.mem_flags.READ_WRITE, size_bytes)

    def launch(
        self,
        text: str,
        function: str,
        items: int,
        arguments: Sequence[Buffer | np.generic],
        options: tuple[str, ...] = (),
    ) -> None:
        import numpy as np

        whole_groups = -(-items // GROUP_ITEMS) * GROUP_ITEMS
        # Setting arguments and enqueueing is one act, or two threads would mix their arguments.
        with self._lock:
            compiled = self._function(text, function, options)
            with self._asked(f"run `{function}`"):
                values = [np.uint32(items), *cast("Sequence[Any]", arguments)]
                compiled(self._queue, (whole_groups,), (GROUP_ITEMS,), *values)

    def download(self, buffer: Buffer, count: int, dtype: str) -> npt.NDArray[Any]:
        import numpy as np
        import pyopencl as cl

        array = np.empty(count, dtype)
        with self._asked("give back its result"):
            cl.enqueue_copy(self._queue, array, cast("pyopencl.Buffer", buffer))
        return array

    def _function(self, text: str, function: str, options: tuple[str, ...]) -> pyopencl.Kernel:
        key = (text, function, *options)
        found = self._functions.get(key)
        if found is None:
            found = self._functions[key] = self._built(text, function, options)
        if isinstance(found, DeviceProblem):
            raise DeviceProblem(found.message, hint=found.hint)
        return found

    def _built(
        self, text: str, function: str, options: tuple[str, ...]
    ) -> pyopencl.Kernel | DeviceProblem:
        import pyopencl as cl

        try:
            with warnings.catch_warnings():
                # Drivers chatter about every build; what matters comes with the exception.
                warnings.simplefilter("ignore")
                program = cl.Program(self._context, text).build(list(options))
            return cl.Kernel(program, function)
        except cl.Error as error:
            log = str(error)[:BUILD_LOG_CHARACTERS_MAX]
            return DeviceProblem(
                f"{self.name} cannot build `{function}`: {log}",
                hint=f"use the backend `numpy`, or set {CHOICE_VARIABLE} to another device",
            )

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._allocation_max_bytes:
            raise DeviceProblem(
                f"{self.name} takes {self._allocation_max_bytes} bytes at once, not {size_bytes}",
                hint="split the input into more pieces",
            )

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """Turn a driver's error into DeviceProblem; all but a lack of memory lose the device."""
        import pyopencl as cl

        if self.lost:
            raise DeviceProblem(f"{self.name} was lost", hint="run again")
        try:
            yield
        except cl.Error as error:
            self.lost = not isinstance(error, cl.MemoryError)
            raise DeviceProblem(
                f"{self.name} failed to {what}: {error}",
                hint="run again, or use the backend `numpy`",
            ) from error


_lock = threading.Lock()
_opened: dict[str, OpenCLDevice] = {}
_losses: dict[str, int] = {}
_refused: dict[str, EnvironmentProblem] = {}


def open_device() -> OpenCLDevice:
    """Return this process's device, opening it when first asked for.

    Cost    The first call loads the drivers, 0.1 to 0.5 s; later ones nothing, also when none
            was found.
    Raises  MissingPackage without pyopencl; DeviceProblem when no device fits the choice, it was
            lost three times, or it was opened before this process was forked.
    """
    choice = os.environ.get(CHOICE_VARIABLE, "").strip()
    with _lock:
        device = _opened.get(choice)
        if device is not None and device.process_id != os.getpid():
            raise DeviceProblem(
                f"{device.name} was opened before this process was forked, which hangs drivers",
                hint="start processes with the method `spawn`",
            )
        if device is not None and device.lost:
            _count_loss(choice, device)
            device = None
        if choice in _refused:
            known = _refused[choice]
            raise type(known)(known.message, hint=known.hint)
        if device is None:
            device = _opened[choice] = _open(choice)
        return device


def _count_loss(choice: str, device: OpenCLDevice) -> None:
    del _opened[choice]
    _losses[choice] = _losses.get(choice, 0) + 1
    if _losses[choice] >= LOSSES_MAX:
        _refused[choice] = DeviceProblem(
            f"{device.name} was lost {LOSSES_MAX} times and is left alone by this process",
            hint="see the system log for the driver; a new process tries again",
        )


def _open(choice: str) -> OpenCLDevice:
    try:
        return OpenCLDevice(_chosen(choice))
    except EnvironmentProblem as problem:
        _refused[choice] = problem
        raise


def _chosen(choice: str) -> pyopencl.Device:
    if choice.lower() == "off":
        raise DeviceProblem(
            f"OpenCL is switched off by {CHOICE_VARIABLE}", hint=f"unset {CHOICE_VARIABLE}"
        )
    found = devices()
    if not found:
        raise DeviceProblem(
            "no OpenCL driver offers a device",
            hint="install one, for example `apt install pocl-opencl-icd`; see `blackroad kernels`",
        )
    platform, _, device = choice.partition(":")
    fitting = [raw for raw in found if _fits(platform, raw.platform.name, _platform_names(found))]
    fitting = [raw for raw in fitting if _fits(device, raw.name, [raw.name for raw in fitting])]
    if not fitting:
        listed = ", ".join(f"`{raw.platform.name}:{raw.name}`" for raw in found)
        raise DeviceProblem(
            f"no OpenCL device fits {CHOICE_VARIABLE}={choice}", hint=f"there are: {listed}"
        )
    return min(fitting, key=_rank)


def devices() -> list[pyopencl.Device]:
    """Return every usable device of every platform, in the drivers' order.

    Raises  MissingPackage without pyopencl.
    """
    # Drivers cache what they build.  A second cache on top gained nothing when measured, and its
    # lock file is one more thing that processes can wait for.
    os.environ.setdefault("PYOPENCL_NO_CACHE", "1")
    try:
        import pyopencl as cl
    except ImportError as error:
        raise MissingPackage(
            f"pyopencl cannot be imported: {error}", hint="pip install 'blackroad[opencl]'"
        ) from error
    try:
        platforms = cl.get_platforms()
    except cl.Error:
        return []
    found: list[pyopencl.Device] = []
    for platform in platforms:
        # A platform without devices raises instead of returning an empty list.
        try:
            listed = platform.get_devices()
        except cl.Error:
            continue
        found += [raw for raw in listed if raw.available and raw.compiler_available]
    return found


def _platform_names(found: list[pyopencl.Device]) -> list[str]:
    return list(dict.fromkeys(raw.platform.name for raw in found))


def _fits(wanted: str, name: str, listed: list[str]) -> bool:
    """Tell whether `wanted` means `name`: a piece of it, or its number in the list."""
    if wanted.isdecimal() and int(wanted) < len(listed):
        return listed.index(name) == int(wanted)
    return wanted.lower() in name.lower()


def _rank(raw: pyopencl.Device) -> tuple[int, int]:
    import pyopencl as cl

    # The type is a set of bits: PoCL sets several.
    if raw.type & cl.device_type.GPU:
        kind = 0
    elif raw.type & cl.device_type.ACCELERATOR:
        kind = 1
    else:
        kind = 2
    return kind, -int(raw.max_compute_units) * max(1, int(raw.max_clock_frequency))


def short_name(raw: pyopencl.Device) -> str:
    """Return platform and type in a few characters: "PoCL cpu", "NVIDIA gpu"."""
    import pyopencl as cl

    platform = raw.platform.name.strip()
    kind = "gpu" if raw.type & cl.device_type.GPU else "accelerator"
    kind = "cpu" if raw.type & cl.device_type.CPU else kind
    return f"{_SHORT_NAMES.get(platform, platform)} {kind}"
