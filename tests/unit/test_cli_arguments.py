"""Words of a command line as values."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackroad.cli import arguments
from blackroad.errors import EnvironmentProblem, MissingPackage, UsageError
from blackroad.kernels import registry


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("3", 3),
        ("-1.5", -1.5),
        ("[1, 'a']", [1, "a"]),
        ("'quoted'", "quoted"),
        ("None", None),
        ("plain", "plain"),
        ("two words", "two words"),
        ("__import__('os')", "__import__('os')"),
        ("(" * 500, "(" * 500),
        ("", ""),
    ],
)
def test_literals_and_text(word: str, value: object) -> None:
    assert arguments.literal(word) == value


def test_arguments_go_by_name_where_a_name_is_given() -> None:
    words = ["1", "n=2", "a b=c", "'x=1'", "flag=True", "url=http://h/?q=1"]
    args, kwargs = arguments.call_arguments(words)
    assert args == [1, "a b=c", "x=1"]
    assert kwargs == {"n": 2, "flag": True, "url": "http://h/?q=1"}


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="`n` is given twice"):
        arguments.call_arguments(["n=1", "n=2"])


@pytest.mark.parametrize("target", ["math", "math:", "math.sqrt", "a b:c", "/bin/ls", "a:b:c", ""])
def test_what_names_no_function_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match="is no function") as found:
        arguments.check_target(target)
    assert "--kernel NAME" in found.value.hint


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("4", [4]), ("1-3", [1, 2, 3]), ("0-9:4", [0, 4, 8]), ("7, 1-2", [7, 1, 2])],
)
def test_ranges(text: str, numbers: list[int]) -> None:
    assert arguments.indexes(text, 100) == numbers


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "cannot read"),
        ("a-b", "cannot read"),
        ("1-", "cannot read"),
        ("-1", "cannot read"),
        ("1-5:0", "no numbers"),
        ("5-1", "no numbers"),
        ("1-101", "more than 100"),
        ("1-60,100-160", "more than 100"),
        ("1-999999999999", "more than 100"),
        ("9" * 13, "cannot read"),
        ("1-3,3", "twice"),
    ],
)
def test_ranges_that_are_none(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        arguments.indexes(text, 100)


def test_lines_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lines"
    file.write_bytes("a\r\n\n  \n b \nü".encode())
    assert arguments.lines_of(str(file), 10) == ["a", " b ", "ü"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("x\ny\n"))
    assert arguments.lines_of("-", 10) == ["x", "y"]
    with pytest.raises(UsageError, match="3 lines, but must be 1 to 2"):
        arguments.lines_of(str(file), 2)
    file.write_bytes(b"\n \n")
    with pytest.raises(UsageError, match="0 lines"):
        arguments.lines_of(str(file), 2)
    file.write_bytes(b"ab\xff")
    with pytest.raises(UsageError, match="byte 2"):
        arguments.lines_of(str(file), 2)
    with pytest.raises(EnvironmentProblem, match="No such file"):
        arguments.lines_of(str(tmp_path / "none"), 2)


# --- kernels ------------------------------------------------------------------------------------


def test_parameters_are_text_for_the_kernel_to_read() -> None:
    kernel = registry.get("mandelbrot")
    values = arguments.kernel_parameters(kernel, ["width=1e3", "height=2"])
    assert values == {"width": "1e3", "height": "2"}
    assert kernel.check(values)["width"] == 1000


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["width"], "`width` is no parameter"),
        (["width=1", "width=2"], "`width` is given twice"),
    ],
)
def test_words_that_are_no_parameters(words: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        arguments.kernel_parameters(registry.get("mandelbrot"), words)


def test_an_array_comes_from_its_file(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.save(tmp_path / "grey.npy", grey)
    np.save(tmp_path / "three.npy", np.eye(3, dtype=np.float32))
    kernel = registry.get("convolve")
    words = [f"image={tmp_path}/grey.npy", "filter=blur"]
    values = arguments.kernel_parameters(kernel, words)
    assert (values["image"] == grey).all()
    assert values["filter"] == "blur"
    matrix = f"filter={tmp_path}/three.npy"
    assert arguments.kernel_parameters(kernel, [matrix])["filter"].shape == (3, 3)
    assert arguments.kernel_parameters(kernel, ["filter=[[1]]"]) == {"filter": "[[1]]"}


def test_arrays_that_cannot_be_read(tmp_path: Path) -> None:
    kernel = registry.get("convolve")
    (tmp_path / "rubbish.npy").write_bytes(b"rubbish")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with (tmp_path / "many.npy").open("wb") as file:
        np.savez(file, a=np.zeros(1), b=np.zeros(1))
    for name, why in (
        ("photo", "names? a file"),
        ("none.npy", "no such file"),
        ("rubbish.npy", "not an array of numbers"),
        ("objects.npy", "not an array of numbers"),
        ("many.npy", "more than one array"),
    ):
        with pytest.raises(UsageError, match=why):
            arguments.kernel_parameters(kernel, [f"image={tmp_path / name}"])


@pytest.mark.parametrize(
    ("mode", "shape", "dtype"),
    [
        ("L", (2, 3), "uint8"),
        ("1", (2, 3), "uint8"),
        ("RGB", (2, 3, 3), "uint8"),
        ("P", (2, 3, 3), "uint8"),
        ("LA", (2, 3, 4), "uint8"),
        ("RGBA", (2, 3, 4), "uint8"),
        ("I;16", (2, 3), "float32"),
    ],
)
def test_pictures_become_arrays(
    tmp_path: Path, mode: str, shape: tuple[int, ...], dtype: str
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    path = tmp_path / "a.png"
    image_module.new(mode, (3, 2)).save(path)
    loaded = arguments.load_array(str(path))
    assert (loaded.shape, str(loaded.dtype)) == (shape, dtype)


def test_more_than_8_bits_are_kept(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    deep = np.array([[0, 300], [65_535, 7]], np.uint16)
    image_module.fromarray(deep).save(tmp_path / "deep.png")
    assert (arguments.load_array(str(tmp_path / "deep.png")) == deep).all()


def test_a_picture_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    (tmp_path / "a.png").write_bytes(b"\x89PNG rubbish")
    with pytest.raises(UsageError, match="cannot be read as a picture"):
        arguments.load_array(str(tmp_path / "a.png"))


def test_without_pillow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    missing: Any = None
    monkeypatch.setitem(sys.modules, "PIL", missing)
    with pytest.raises(MissingPackage, match="Pillow") as found:
        arguments.load_array(str(tmp_path / "a.png"))
    assert "pip install pillow" in found.value.hint
