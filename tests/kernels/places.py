"""Where kernel tests run: NumPy, and every OpenCL device of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blackroad.errors import EnvironmentProblem
from blackroad.kernels import opencl
from blackroad.kernels.backend import NUMPY, Backend, Buffer, Device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt


def devices() -> list[Device]:
    """Return every device found, opened; none where there is no driver."""
    try:
        return [opencl.OpenCLDevice(raw) for raw in opencl.devices()]
    except EnvironmentProblem:
        return []


DEVICES = devices()
BACKENDS: list[Backend] = [NUMPY, *DEVICES]


class SinglePrecision(Device):
    """A device that seems to have no float64."""

    def __init__(self, real: Device) -> None:
        self.real = real
        self.name = f"{real.name} in float32"
        self.has_fp64 = False

    def upload(self, array: npt.NDArray[Any]) -> Buffer:
        return self.real.upload(array)

    def empty(self, size_bytes: int) -> Buffer:
        return self.real.empty(size_bytes)

    def launch(
        self,
        text: str,
        function: str,
        items: int,
        arguments: Sequence[Buffer | np.generic],
        options: tuple[str, ...] = (),
    ) -> None:
        assert "-DREAL=double" not in options
        self.real.launch(text, function, items, arguments, options)

    def download(self, buffer: Buffer, count: int, dtype: str) -> npt.NDArray[Any]:
        return self.real.download(buffer, count, dtype)
