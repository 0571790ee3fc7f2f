"""Every kernel by name, and the one call that computes with the best backend of this process.

Kernel modules are imported when first asked for, NumPy and pyopencl when first computed with:
importing this file costs a few milliseconds.  It must not know tasks, nodes or the command line.
"""

from __future__ import annotations

from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Final

from blackroad.errors import EnvironmentProblem, UnknownKernel, UsageError
from blackroad.kernels.backend import NUMPY, Backend
from blackroad.kernels.contract import REGISTERED, Kernel, kernel
from blackroad.kernels.parameters import Parameter, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Backend",
    "Kernel",
    "Parameter",
    "describe",
    "get",
    "kernel",
    "last_backend",
    "last_fallback",
    "names",
    "run",
]

BACKENDS: Final = ("auto", "numpy", "opencl")

_OURS: Final = ("collatz", "convolve", "mandelbrot", "monte_carlo_pi")
_backend: ContextVar[str] = ContextVar("backend", default="")
_fallback: ContextVar[str] = ContextVar("fallback", default="")


def names() -> list[str]:
    """Return the names of all kernels, sorted."""
    return sorted({*_OURS, *REGISTERED})


def get(name: str) -> Kernel:
    """Return the kernel of that name.

    Raises  UnknownKernel, whose hint gives the nearest names.
    """
    if name in _OURS and name not in REGISTERED:
        import_module(f"blackroad.kernels.{name}")
    found = REGISTERED.get(name)
    if found is None:
        near = nearest(name, names())
        meant = f"did you mean `{near}`? " if near else ""
        raise UnknownKernel(
            f"there is no kernel `{name}`", hint=f"{meant}there are: {', '.join(names())}"
        )
    return found


def describe() -> list[dict[str, object]]:
    """Return every kernel's contract as plain data, sorted by name."""
    return [get(name).describe() for name in names()]


def run(name: str, params: Mapping[str, object], backend: str = "auto") -> object:
    """Check and compute in this process; `auto` means a device if one works, else NumPy.

    What it took in the end, and why, is told by `last_backend` and `last_fallback`.

    Raises  UnknownKernel, KernelInputError; with `opencl`, DeviceProblem and MissingPackage.
    """
    if backend not in BACKENDS:
        raise UsageError(
            f"there is no backend `{backend}`", hint=f"use one of {', '.join(BACKENDS)}"
        )
    chosen = get(name)
    values = chosen.check(params)
    reason = ""
    if backend != "numpy":
        try:
            return _on_device(chosen, values)
        except EnvironmentProblem as problem:
            if backend == "opencl":
                raise
            reason = problem.message
    result = chosen.run(values, NUMPY)
    _remember(NUMPY.name, reason)
    return result


def _on_device(chosen: Kernel, values: Mapping[str, object]) -> object:
    from blackroad.kernels.opencl import open_device

    device = open_device()
    result = chosen.run(values, device)
    _remember(device.name, "")
    return result


def _remember(name: str, reason: str) -> None:
    _backend.set(name)
    _fallback.set(reason)


def last_backend() -> str:
    """Return where this thread's last `run` computed: "numpy", or such as "opencl:PoCL cpu"."""
    return _backend.get()


def last_fallback() -> str:
    """Return why this thread's last `run` took NumPy although a device was welcome, or ""."""
    return _fallback.get()
