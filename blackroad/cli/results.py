"""What a task returned, for people, for programs and for files.

NumPy is imported only where a result holds an array.  This file must not know tasks or the mesh.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blackroad.cli import output
from blackroad.cli.arguments import pillow
from blackroad.cli.report import clean
from blackroad.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

SHOWN_ELEMENTS_MAX: Final = 16
REPR_CHARS_MAX: Final = 100_000


# --- shown --------------------------------------------------------------------------------------


def as_text(value: object) -> str:
    """Write a result for people: JSON where it is data, a summary of an array, else its repr."""
    if _is_array(value):
        return _summary_text(summary(value))
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError):
        text = clean(repr(value))
    left = len(text) - REPR_CHARS_MAX
    return text if left <= 0 else f"{text[:REPR_CHARS_MAX]}... {left} characters more"


def as_data(value: object) -> Any:
    """Return a result as JSON knows it; what JSON does not know becomes {"repr": ...}."""
    try:
        text = json.dumps(value, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError):
        return {"repr": repr(value)[:REPR_CHARS_MAX]}
    return json.loads(text)


def summary(array: Any) -> dict[str, Any]:
    """Describe an array in a few numbers; a small one with all of its elements."""
    import numpy as np

    told: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    if array.size and array.dtype.kind in "iufb":
        finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
        if finite.size:
            told["min"] = finite.min().item()
            told["max"] = finite.max().item()
            told["mean"] = float(finite.mean(dtype=np.float64))
        if finite.size < array.size:
            told["not_finite"] = int(array.size - finite.size)
    if array.size <= SHOWN_ELEMENTS_MAX and array.dtype.kind in "iufbU":
        told["values"] = [
            one if not isinstance(one, float) or one - one == 0 else str(one)
            for one in array.ravel().tolist()
        ]
    return told


def _summary_text(told: dict[str, Any]) -> str:
    shape = " x ".join(map(str, told["shape"])) or "one element"
    words = [f"array of {told['dtype']}, {shape}"]
    words += [f"{name} {told[name]:g}" for name in ("min", "max", "mean") if name in told]
    if "not_finite" in told:
        words.append(f"{told['not_finite']} not finite")
    text = ", ".join(words)
    return f"{text}: {told['values']}" if "values" in told else text


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _plain(value: object) -> object:
    """What JSON does not know but can hold; called by the encoder for the parts of a result."""
    numpy = sys.modules.get("numpy")
    if _is_array(value):
        return summary(value)
    if numpy is not None and isinstance(value, numpy.generic):
        item = value.item()
        if type(item) in (bool, int, float, str):
            return item
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    raise TypeError(type(value).__name__)


def present(value: object, file: str | None, as_json: bool) -> dict[str, Any]:
    """Write a result to its file, or print it for people; return what JSON says of it.

    Raises  as `write`.
    """
    row: dict[str, Any] = {"state": "done"}
    written = ""
    if file is not None:
        written = write(file, value)
        row["file"] = file
    if as_json:
        row["result"] = as_data(value)
    elif file is not None:
        output.note(written)
    else:
        output.say(as_text(value))
    return row


# --- written ------------------------------------------------------------------------------------


def check_output(name: str) -> None:
    """Refuse a file that could not be written, before a long computation is begun.

    Raises  UsageError, EnvironmentProblem; MissingPackage where a picture needs Pillow.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        raise UsageError(f"{path}: is a directory", hint="name the file to write")
    if not os.access(path.parent, os.W_OK):
        why = "is not writable" if path.parent.is_dir() else "is no directory"
        raise EnvironmentProblem(f"{path.parent} {why}", hint="name a file in a directory of yours")
    if path.suffix.lower() == ".png":
        pillow(f"to write {path}")


def write(name: str, value: object) -> str:
    """Write a result in the form that the file's name asks for; return what was done.

    .npy takes arrays, .png arrays that are pictures, .json data; any other name takes bytes and
    text as they are.

    Raises  UsageError where the result has no such form; EnvironmentProblem where it cannot be
            written.
    """
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _into(path, _npy_writer(path, value))
    if suffix == ".png":
        return _write_png(path, value)
    if suffix == ".json":
        text = json.dumps(as_data(value), ensure_ascii=False, indent=2) + "\n"
        return _into(path, lambda file: file.write(text.encode()))
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return _into(path, lambda file: file.write(data))
    raise UsageError(
        f"{path}: the result is of type {type(value).__name__}, which has no form of its own",
        hint="name a file that ends in .npy, .png or .json",
    )


def _npy_writer(path: Path, value: object) -> Callable[[Any], object]:
    import numpy as np

    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.hasobject or array.dtype.kind in "USV":
        raise UsageError(
            f"{path}: the result is of type {type(value).__name__}, no array of numbers",
            hint="name a file that ends in .json",
        )
    return lambda file: np.save(file, array, allow_pickle=False)


def _write_png(path: Path, value: object) -> str:
    """Write a picture; anything but 8 bits is stretched to them."""
    import numpy as np

    image_module = pillow(f"to write {path}")
    array: Any = value if _is_array(value) else None
    if array is None or not _is_picture(array.shape) or array.dtype.kind not in "iufb":
        found = f"an array of shape {array.shape}" if array is not None else type(value).__name__
        raise UsageError(
            f"{path}: the result is no picture, but {found}",
            hint="a picture has the shape (H, W), (H, W, 3) or (H, W, 4)",
        )
    told = ""
    if array.dtype != np.uint8:
        array, told = _stretched(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    image = image_module.fromarray(np.ascontiguousarray(array))
    return _into(path, lambda file: image.save(file, format="PNG")) + told


def _is_picture(shape: tuple[int, ...]) -> bool:
    sides = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    return sides and min(shape) > 0


def _stretched(array: Any) -> tuple[Any, str]:
    import numpy as np

    real = array.astype(np.float64)
    finite = real[np.isfinite(real)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scale = 255 / (high - low) if high > low else 0.0
    with np.errstate(invalid="ignore"):
        grey = np.nan_to_num((real - low) * scale, nan=0, posinf=255, neginf=0)
    return np.rint(grey).astype(np.uint8), f" ({low:g} to {high:g} became 0 to 255)"


def _into(path: Path, put: Callable[[Any], object]) -> str:
    """Write beside the file and change places, so that nobody reads half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with beside.open("wb") as file:
            put(file)
        size = beside.stat().st_size
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise EnvironmentProblem(
            f"{path}: cannot be written: {error.strerror or error}",
            hint="name another file, or make room",
        ) from None
    from blackroad.units import format_bytes

    return f"{path}: {format_bytes(size)}"
