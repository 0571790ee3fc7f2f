"""What a kernel takes: typed parameters, and the reading of what a caller gave for them.

Values may come from Python, from a message or as text from a command line.  This file must not
know any kernel, nor a device; NumPy is imported only when an array has to be read.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

Kind = Literal["int", "float", "choice", "array", "choice or array"]

TEXT_CHARACTERS_MAX: Final = 64
EXACT_FLOAT_MAX: Final = 2**53
INT_DIGITS_MAX: Final = 40
INEXACT: Final = "a float beyond 2**53 is not exact: pass an int or text"
MATRIX_TEXT_CHARACTERS_MAX: Final = 65_536


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED: Final = _Required()


class Wrong(Exception):
    """A value does not fit its parameter; `hint` may say what would."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


class Parameter(NamedTuple):
    """One parameter of a kernel: name, kind, default and what is allowed.

    Units   `minimum` and `maximum` bound the value; for an array, the number of its elements.
    """

    name: str
    kind: Kind
    default: object = REQUIRED
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""
    help: str = ""
    choices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()

    def allowed(self) -> str:
        """Say in words what this parameter takes."""
        kinds = {"int": "an integer", "float": "a finite number"}
        if self.kind in kinds:
            unit = f" {self.unit}" if self.unit else ""
            return f"{kinds[self.kind]} {_range(self.minimum, self.maximum)}".rstrip() + unit
        parts = []
        if "choice" in self.kind:
            parts.append("one of " + ", ".join(f"`{choice}`" for choice in self.choices))
        if "array" in self.kind:
            parts.append(self._allowed_array())
        return ", or ".join(parts)

    def _allowed_array(self) -> str:
        if self.kind == "array":
            words = f"a {' or '.join(self.dtypes)} array of shape {' or '.join(self.shapes)}"
        else:
            words = f"a matrix of finite numbers of shape {' or '.join(self.shapes)}"
        most = "" if self.maximum is None else f" and at most {_number(self.maximum)}"
        return f"{words} with at least 1{most} elements"

    def read(self, value: object) -> Any:
        """Return `value` in the form that kernels compute with.

        Raises  Wrong when it has another type, shape, dtype or range than allowed.
        """
        if self.kind == "int":
            return self._in_range(read_int(value), value)
        if self.kind == "float":
            return self._in_range(read_float(value), value)
        if self.kind == "array":
            return self._read_array(value)
        return self._read_choice(value)

    def _in_range(self, number: float | None, given: object) -> float:
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if number is None or not low <= number <= high:
            inexact = isinstance(given, float) and EXACT_FLOAT_MAX < abs(given) <= high
            raise self.wrong(given, INEXACT if inexact else "")
        return number

    def _read_choice(self, value: object) -> object:
        if isinstance(value, str) and not value.lstrip().startswith("["):
            if value in self.choices:
                return value
            near = nearest(value, self.choices)
            raise self.wrong(value, f"did you mean `{near}`?" if near else "")
        if "array" in self.kind:
            return self._read_matrix(value)
        raise self.wrong(value)

    def _read_array(self, value: object) -> npt.NDArray[Any]:
        import numpy as np

        if not isinstance(value, np.ndarray):
            convert = f"numpy.asarray(…, dtype={self.dtypes[0]!r})"
            raise self.wrong(value, f"pass a NumPy array, for example {convert}")
        if value.dtype.name not in self.dtypes:
            raise self.wrong(value, f"convert it first, for example .astype({self.dtypes[0]!r})")
        self._check_shape(value.shape, value)
        return np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))

    def _read_matrix(self, value: object) -> npt.NDArray[Any]:
        """Read an array, nested lists or their JSON text as a float32 matrix."""
        import numpy as np

        try:
            rows = _from_json(value) if isinstance(value, str) else value
            matrix = np.asarray(rows)
        except (ValueError, RecursionError):
            raise self.wrong(value) from None
        if matrix.dtype.kind not in "iuf":
            raise self.wrong(value)
        self._check_shape(matrix.shape, value)
        with np.errstate(over="ignore"):
            matrix = np.ascontiguousarray(matrix, dtype=np.float32)
        if not np.isfinite(matrix).all():
            raise self.wrong(value, "every number must fit a float32")
        return matrix

    def _check_shape(self, sides: tuple[int, ...], given: object) -> None:
        dimensions = {shape.count(",") + 1 for shape in self.shapes}
        most = math.inf if self.maximum is None else self.maximum
        if len(sides) not in dimensions or not 1 <= math.prod(sides) <= most:
            raise self.wrong(given)

    def wrong(self, given: object, hint: str = "") -> Wrong:
        """Make the exception that says what was given and what is allowed."""
        return Wrong(f"`{self.name}` is {shown(given)}, but must be {self.allowed()}", hint)


def read_int(value: object) -> int | None:
    """Return the integer that `value` means exactly, or None: 10_000_000, "1e7", 1e7."""
    if _is_bool(value):
        return None
    if isinstance(value, str):
        return _int_from_text(value.strip())
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= EXACT_FLOAT_MAX else None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _int_from_text(text: str) -> int | None:
    from decimal import Decimal, InvalidOperation

    if len(text) > TEXT_CHARACTERS_MAX:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    # The exponent is looked at first: "1e999999999" must not be written out.
    if not number.is_finite() or number.adjusted() > INT_DIGITS_MAX:
        return None
    return int(number) if number == number.to_integral_value() else None


def read_float(value: object) -> float | None:
    """Return `value` as a finite float, or None."""
    if _is_bool(value) or not isinstance(value, (str, int, float, *_scalar_types())):
        return None
    try:
        number = float(cast("float", value))
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_bool(value: object) -> bool:
    # NumPy's own is no subclass of ours, and was called `bool_` until NumPy 2.
    return type(value).__name__ in ("bool", "bool_")


def _scalar_types() -> tuple[type, ...]:
    import sys

    # Whoever hands us a NumPy scalar has imported NumPy already.
    numpy = sys.modules.get("numpy")
    return () if numpy is None else (numpy.integer, numpy.floating)


def _from_json(text: str) -> object:
    import json

    if len(text) > MATRIX_TEXT_CHARACTERS_MAX:
        raise ValueError("too long")
    rows: object = json.loads(text)
    return rows


def nearest(word: str, words: Iterable[str]) -> str:
    """Return the one of `words` that `word` probably meant, or an empty text."""
    from difflib import get_close_matches

    found = get_close_matches(word.lower(), list(words), n=1, cutoff=0.6)
    return found[0] if found else ""


def shown(value: object) -> str:
    """Describe a value that was given, in a few words, whatever its size."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and shape and dtype is not None:
        return f"a {dtype} array of shape {shape}"
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, int):
        return _number(value) if value.bit_length() <= 128 else "a huge integer"
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, str | bytes):
        return repr(value[:37]) + "…" if len(value) > 40 else repr(value)
    return f"a {type(value).__name__}"


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"from {_number(low)} to {_number(high)}"
    if low is not None:
        return f"of at least {_number(low)}"
    return "" if high is None else f"of at most {_number(high)}"


def _number(value: float) -> str:
    return f"{value:_}" if isinstance(value, int) else f"{value:g}"
