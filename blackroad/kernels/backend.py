"""Where a tile is computed: NumPy, which is always there, or a device with OpenCL text.

Kernels see only the few calls of `Device`; this file must not import a driver.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

GROUP_ITEMS: Final = 64
"""Work-items in a work-group: within every device we know, among them V3D (256)."""


class Backend:
    """A place to compute; `name` is what a result says about where it came from."""

    name: str = ""


class NumpyBackend(Backend):
    """NumPy in the calling thread."""

    name = "numpy"


NUMPY: Final = NumpyBackend()


class Buffer(Protocol):
    """Memory on a device."""

    @property
    def size(self) -> int:
        """Return its length in bytes."""
        ...


class Device(Backend, ABC):
    """A device that runs OpenCL text; several threads may share it.

    Raises  DeviceProblem from every method: no memory, build error, device lost.
    """

    has_fp64: bool

    @abstractmethod
    def upload(self, array: npt.NDArray[Any]) -> Buffer:
        """Copy an array to the device."""

    @abstractmethod
    def empty(self, size_bytes: int) -> Buffer:
        """Reserve memory of that size on the device."""

    @abstractmethod
    def launch(
        self,
        text: str,
        function: str,
        items: int,
        arguments: Sequence[Buffer | np.generic],
        options: tuple[str, ...] = (),
    ) -> None:
        """Run `function` of the program `text` for at least `items` work-items.

        More items than asked may start, so that groups are full; the function's first argument
        is a uint with the number asked for, and those beyond it must do nothing.
        """

    @abstractmethod
    def download(self, buffer: Buffer, count: int, dtype: str) -> npt.NDArray[Any]:
        """Wait for what was launched, and copy `count` elements back."""
