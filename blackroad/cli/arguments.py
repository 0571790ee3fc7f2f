"""Words from a command line as values: Python literals, kernel parameters, arrays from files.

This file must not know tasks or the mesh.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blackroad.errors import EnvironmentProblem, MissingPackage, UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    from blackroad.kernels.contract import Kernel

IMAGES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ARRAY_FILES: Final = (".npy", *IMAGES)

# How other kinds of pictures become what kernels compute with; the rest becomes RGB.
_PLAIN_MODES: Final = {
    **{mode: mode for mode in ("L", "RGB", "RGBA")},
    **dict.fromkeys(("LA", "La", "PA", "RGBa"), "RGBA"),
    "1": "L",
}

_KEYWORD = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_TARGET = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
_RANGE = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")


# --- functions ----------------------------------------------------------------------------------


def literal(word: str) -> Any:
    """Read a word as a Python literal; what is none is text."""
    try:
        return ast.literal_eval(word.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return word


def call_arguments(words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Read the arguments of a function: `k=v` goes by name, everything else by position.

    Raises  UsageError where a name comes twice, or a position after a name.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        found = _KEYWORD.fullmatch(word)
        if found is None:
            args.append(literal(word))
        elif found[1] in kwargs:
            raise UsageError(f"the argument `{found[1]}` is given twice", hint="keep one of them")
        else:
            kwargs[found[1]] = literal(found[2])
    return args, kwargs


def check_target(target: str) -> None:
    """Refuse what names no function.

    Raises  UsageError saying how commands, functions and kernels are written.
    """
    if not _TARGET.fullmatch(target):
        raise UsageError(
            f"`{target}` is no function: it must be `package.module:function`",
            hint=f"a command is written `blackroad submit -- {target}`, "
            "a kernel `blackroad submit --kernel NAME k=v`",
        )


# --- kernels ------------------------------------------------------------------------------------


def kernel_parameters(kernel: Kernel, words: Sequence[str]) -> dict[str, Any]:
    """Read `k=v` words as parameters of a kernel; arrays come from the files they name.

    Raises  UsageError where a word has another form or a file cannot be read; MissingPackage.
    """
    arrays = {one.name: one.kind for one in kernel.parameters if "array" in one.kind}
    values: dict[str, Any] = {}
    for word in words:
        found = _KEYWORD.fullmatch(word)
        if found is None:
            raise UsageError(
                f"`{word}` is no parameter: it must be name=value",
                hint=f"`blackroad kernels {kernel.name}` lists the parameters",
            )
        name, text = found[1], found[2]
        if name in values:
            raise UsageError(f"the parameter `{name}` is given twice", hint="keep one of them")
        is_file = Path(text).suffix.lower() in ARRAY_FILES
        if arrays.get(name) == "array" or (name in arrays and is_file):
            values[name] = load_array(text)
        else:
            values[name] = text
    return values


def load_array(name: str) -> npt.NDArray[Any]:
    """Read an array from a .npy file or a picture.

    Shapes  a picture is (H, W) for grey, else (H, W, 3), or (H, W, 4) with transparency; uint8,
            or float32 where a grey one has more than 8 bits.
    Raises  UsageError where the file cannot be read; MissingPackage without Pillow.
    """
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    if suffix not in ARRAY_FILES:
        raise UsageError(
            f"`{name}` is no array: it must name a file",
            hint=f"files that can be read end in {', '.join(ARRAY_FILES)}",
        )
    if not path.is_file():
        raise UsageError(f"{path}: no such file", hint="check the path")
    return _load_npy(path) if suffix == ".npy" else _load_image(path)


def _load_npy(path: Path) -> npt.NDArray[Any]:
    import numpy as np

    try:
        # Pickles inside would run whatever they were made to run.
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UsageError(
            f"{path}: not an array of numbers: {error}", hint="write it with numpy.save"
        ) from None
    if not isinstance(found, np.ndarray):
        raise UsageError(f"{path}: more than one array", hint="write one with numpy.save")
    return found


def _load_image(path: Path) -> npt.NDArray[Any]:
    import numpy as np

    image_module = pillow(f"to read {path}")
    try:
        with image_module.open(path) as image:
            image.load()
            if image.mode.startswith(("I", "F")):
                return np.asarray(image, np.float32)
            plain = _PLAIN_MODES.get(image.mode, "RGB")
            return np.asarray(image.convert(plain), np.uint8)
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        raise UsageError(
            f"{path}: cannot be read as a picture: {error}", hint="is it whole, and not too large?"
        ) from None


def pillow(purpose: str) -> Any:
    """Import Pillow's Image.

    Raises  MissingPackage saying how to install it.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingPackage(
            f"the package Pillow is needed {purpose}",
            hint="pip install pillow, or pip install 'blackroad[demo]'; .npy files need no package",
        ) from None
    return Image


# --- many tasks ---------------------------------------------------------------------------------


def indexes(text: str, most: int) -> list[int]:
    """Read --array: "1-100", "0-9:3", "4" or several of them with commas.

    Raises  UsageError where it cannot be read, repeats itself or means more than `most` tasks.
    """
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or max(len(group or "") for group in match.groups()) > 12:
            raise UsageError(
                f"array: cannot read `{part}`", hint="write 1-100, 0-90:10, or 1,5,7-9"
            )
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        step = int(match[3]) if match[3] else 1
        if last < first or step < 1:
            raise UsageError(
                f"array: `{part}` has no numbers in it", hint="write the smaller number first"
            )
        if len(found) + (last - first) // step + 1 > most:
            raise UsageError(f"array: more than {most} tasks", hint="submit them in several parts")
        found += range(first, last + 1, step)
    if len(set(found)) != len(found):
        raise UsageError(f"array: `{text}` names a number twice", hint="name each one once")
    return found


def lines_of(name: str, most: int) -> list[str]:
    """Read --each-line: the lines of a file, or of standard input for `-`; empty ones are left out.

    Raises  UsageError where the file cannot be read, has no lines or more than `most`.
    """
    import sys

    try:
        text = sys.stdin.read() if name == "-" else Path(name).expanduser().read_text("utf-8")
    except OSError as error:
        raise EnvironmentProblem(
            f"{name}: cannot be read: {error.strerror}", hint="check the path"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name}: not UTF-8 text (byte {error.start})", hint="save the file as UTF-8"
        ) from None
    lines = [line for line in text.split("\n") if line.strip()]
    lines = [line.rstrip("\r") for line in lines]
    if not 1 <= len(lines) <= most:
        raise UsageError(
            f"{name}: {len(lines)} lines, but must be 1 to {most}",
            hint="each line that is not empty becomes a task",
        )
    return lines
