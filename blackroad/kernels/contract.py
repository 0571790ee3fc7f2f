"""What a kernel is: parameters, tiles, a NumPy reference and OpenCL text, under one name.

A kernel module defines one subclass of `Kernel` under the decorator `kernel`.  This file must not
know any kernel by name, nor a driver.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from blackroad.errors import KernelInputError, invariant
from blackroad.kernels.backend import Device
from blackroad.kernels.parameters import REQUIRED, Parameter, Wrong, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from blackroad.kernels.backend import Backend

    Array = npt.NDArray[Any]

TILE_WORK_MIN: Final = 20_000.0
"""Least work of a tile, so that sending it costs less than computing it (see `Kernel.work`)."""


class Kernel(ABC):
    """A named computation; equal input gives equal output, on any machine, as often as asked.

    The public methods check what they are given; the methods that a kernel writes, further down,
    receive parameters that `check` has returned.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    parameters: ClassVar[tuple[Parameter, ...]]
    tolerance: ClassVar[str]
    opencl: ClassVar[str]
    pure: ClassVar[bool] = True

    def check(self, params: Mapping[str, object]) -> dict[str, Any]:
        """Return the parameters read and completed with defaults; touches no device.

        Raises  KernelInputError naming every parameter that is unknown, missing or wrong, what
                was given and what is allowed.
        """
        problems = [self._unknown(name) for name in params if name not in self._by_name()]
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            try:
                values[parameter.name] = self._value(parameter, params)
            except Wrong as wrong:
                problems.append(wrong)
        if not problems:
            try:
                self.check_together(values)
            except Wrong as wrong:
                problems.append(wrong)
        if problems:
            hints = list(dict.fromkeys(wrong.hint for wrong in problems if wrong.hint))
            raise KernelInputError(
                f"kernel `{self.name}`: " + "; ".join(wrong.problem for wrong in problems),
                hint="; ".join(hints) or f"`blackroad kernels` lists what `{self.name}` takes",
            )
        return values

    def pieces(self, params: Mapping[str, object], target_pieces: int) -> list[dict[str, Any]]:
        """Split into at most `target_pieces` tiles, each accepted by `run`; never into none."""
        values = self.check(params)
        most = max(1, int(self.estimate(values) // TILE_WORK_MIN))
        parts = max(1, min(target_pieces, most))
        return [values] if parts == 1 else self.split(values, parts)

    def work(self, params: Mapping[str, object]) -> float:
        """Return the amount of work: about the µs that NumPy takes on one x86 core of 2022."""
        return self.estimate(self.check(params))

    def run(self, params: Mapping[str, object], backend: Backend) -> object:
        """Compute one tile, or the whole, on `backend`.

        Raises  KernelInputError before a device is touched; DeviceProblem when one fails.
        """
        values = self.check(params)
        if isinstance(backend, Device):
            return self.compute_on(values, backend)
        return self.compute(values)

    def reference(self, params: Mapping[str, object]) -> object:
        """Compute with NumPy alone: what every device is judged by."""
        return self.compute(self.check(params))

    def gather(
        self,
        params: Mapping[str, object],
        pieces: Sequence[Mapping[str, object]],
        results: Sequence[object],
    ) -> object:
        """Combine the results of `pieces`, in their order, into the result of the whole."""
        invariant(len(pieces) == len(results) > 0, "one result per tile", len(pieces), len(results))
        return self.combine(self.check(params), results)

    def agrees(self, params: Mapping[str, object], a: object, b: object) -> str | None:
        """Return None if two results are equal within `tolerance`, else what differs."""
        try:
            return self.compare(self.check(params), a, b)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return f"the results have another form than `{self.name}` gives: {error!r}"

    def describe(self) -> dict[str, object]:
        """Return the contract as plain data."""
        return {
            "name": self.name,
            "summary": self.summary,
            "pure": self.pure,
            "backends": ["opencl", "numpy"],
            "tolerance": self.tolerance,
            "parameters": [_described(parameter) for parameter in self.parameters],
        }

    # --- what a kernel writes -------------------------------------------------------------------

    def check_together(self, values: Mapping[str, Any]) -> None:
        """Raise Wrong when parameters that are right alone do not fit each other."""
        return

    @abstractmethod
    def estimate(self, values: Mapping[str, Any]) -> float:
        """Return the work of `values`."""

    @abstractmethod
    def split(self, values: Mapping[str, Any], parts: int) -> list[dict[str, Any]]:
        """Return at most `parts` tiles, at least one."""

    @abstractmethod
    def compute(self, values: Mapping[str, Any]) -> Any:
        """Compute with NumPy."""

    @abstractmethod
    def compute_on(self, values: Mapping[str, Any], device: Device) -> Any:
        """Compute on a device."""

    @abstractmethod
    def combine(self, values: Mapping[str, Any], results: Sequence[Any]) -> Any:
        """Return the result of the whole, given those of the tiles in order."""

    @abstractmethod
    def compare(self, values: Mapping[str, Any], a: Any, b: Any) -> str | None:
        """Return what differs beyond the tolerance, or None."""

    # --- inside ---------------------------------------------------------------------------------

    def _by_name(self) -> dict[str, Parameter]:
        return {parameter.name: parameter for parameter in self.parameters}

    def _unknown(self, name: object) -> Wrong:
        near = nearest(str(name), self._by_name())
        hint = f"did you mean `{near}`?" if near else ""
        return Wrong(f"there is no parameter `{name}`", hint)

    def _value(self, parameter: Parameter, params: Mapping[str, object]) -> Any:
        if parameter.name in params:
            return parameter.read(params[parameter.name])
        if parameter.default is REQUIRED:
            raise Wrong(f"`{parameter.name}` is missing and must be {parameter.allowed()}")
        return parameter.default


def _described(parameter: Parameter) -> dict[str, object]:
    required = parameter.default is REQUIRED
    row = parameter._asdict() | {"required": required, "allowed": parameter.allowed()}
    for name in ("choices", "dtypes", "shapes"):
        row[name] = list(row[name])
    return row | {"default": None if required else parameter.default}


def even_parts(total: int, parts: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of at most `parts` runs that cover `total`, alike to within one."""
    parts = max(1, min(parts, total))
    for index in range(parts):
        first, last = total * index // parts, total * (index + 1) // parts
        yield first, last - first


def keep(index: npt.NDArray[np.intp], *arrays: Array) -> tuple[Array, ...]:
    """Return each array with only the elements at `index`: work that is done is dropped."""
    return tuple(array.take(index) for array in arrays)


REGISTERED: Final[dict[str, Kernel]] = {}

K = TypeVar("K", bound=Kernel)


def kernel(cls: type[K]) -> type[K]:
    """Register a kernel class under its name; a name can be taken only once."""
    known = REGISTERED.get(cls.name)
    invariant(
        known is None or type(known).__module__ == cls.__module__,
        f"two kernels are called `{cls.name}`",
    )
    REGISTERED[cls.name] = cls()
    return cls
