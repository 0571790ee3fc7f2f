"""Results in words, as JSON and in files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from blackroad.cli import results
from blackroad.errors import EnvironmentProblem, UsageError


class Odd:
    """Something that JSON has no form for."""

    def __repr__(self) -> str:
        return "<Odd \x1b[31m>"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (12, "12"),
        ("ü\x1b", '"ü\\u001b"'),
        ([1, (2.5, True)], "[1, [2.5, true]]"),
        ({"b": {3, 1}}, '{"b": [1, 3]}'),
        (np.float32(0.5), "0.5"),
        ({"n": np.int64(7)}, '{"n": 7}'),
        (float("nan"), "nan"),
        (b"raw", "b'raw'"),
        (1 + 2j, "(1+2j)"),
        (Odd(), "<Odd \\x1b[31m>"),
    ],
)
def test_results_in_words(value: object, text: str) -> None:
    assert results.as_text(value) == text


def test_a_large_array_is_summarised() -> None:
    array = np.arange(100, dtype=np.float32).reshape(4, 25)
    assert results.as_text(array) == "array of float32, 4 x 25, min 0, max 99, mean 49.5"
    array[0, 0] = np.nan
    assert results.summary(array) == {
        "dtype": "float32",
        "shape": [4, 25],
        "min": 1.0,
        "max": 99.0,
        "mean": 50.0,
        "not_finite": 1,
    }


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array([1, 2], np.uint8), "array of uint8, 2, min 1, max 2, mean 1.5: [1, 2]"),
        (np.zeros((0, 3)), "array of float64, 0 x 3: []"),
        (np.array(5), "array of int64, one element, min 5, max 5, mean 5: [5]"),
        (np.array([np.inf]), "array of float64, 1, 1 not finite: ['inf']"),
        (np.array(["a"]), "array of <U1, 1: ['a']"),
        (np.array([True]), "array of bool, 1, min 1, max 1, mean 1: [True]"),
    ],
)
def test_a_small_array_is_shown_whole(array: object, text: str) -> None:
    assert results.as_text(array) == text


def test_json_never_holds_what_json_does_not_know() -> None:
    for value in (np.zeros(3), {"a": np.zeros(30)}, float("nan"), Odd(), np.array([np.nan]), {1}):
        json.dumps(results.as_data(value), allow_nan=False)
    assert results.as_data(Odd()) == {"repr": "<Odd \x1b[31m>"}
    assert results.as_data((1, "a")) == [1, "a"]


def test_a_long_repr_is_cut() -> None:
    value = [Odd()] * 50_000
    assert len(results.as_text(value)) < results.REPR_CHARS_MAX + 100
    assert results.as_text(value).endswith("characters more")


# --- files --------------------------------------------------------------------------------------


def test_arrays_are_written_whole(tmp_path: Path) -> None:
    array = np.random.default_rng(1).random((3, 4))
    told = results.write(str(tmp_path / "a.npy"), array)
    assert (np.load(tmp_path / "a.npy") == array).all()
    assert told.startswith(f"{tmp_path}/a.npy: ")
    results.write(str(tmp_path / "l.npy"), [1, 2.5])
    assert np.load(tmp_path / "l.npy").tolist() == [1, 2.5]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.npy", "l.npy"]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 3), "uint8"), ((2, 3, 3), "uint8"), ((2, 3, 4), "uint8"), ((2, 3, 1), "uint8")],
)
def test_pictures_are_written_as_they_are(
    tmp_path: Path, shape: tuple[int, ...], dtype: str
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    results.write(str(tmp_path / "a.png"), array)
    with image_module.open(tmp_path / "a.png") as image:
        assert (np.asarray(image) == array.squeeze()).all()


def test_other_numbers_are_stretched_to_8_bits(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    array = np.array([[0, 100], [510, 254]], np.uint16)
    told = results.write(str(tmp_path / "a.png"), array)
    assert told.endswith("(0 to 510 became 0 to 255)")
    with image_module.open(tmp_path / "a.png") as image:
        assert np.asarray(image).tolist() == [[0, 50], [255, 127]]
    results.write(str(tmp_path / "b.png"), np.array([[np.nan, 5.0], [np.inf, 5.0]]))
    with image_module.open(tmp_path / "b.png") as image:
        assert np.asarray(image).shape == (2, 2)


def test_data_text_and_bytes(tmp_path: Path) -> None:
    results.write(str(tmp_path / "a.json"), {"x": (1, np.int8(2))})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2]}
    results.write(str(tmp_path / "a.jpg"), b"\xff\xd8")
    assert (tmp_path / "a.jpg").read_bytes() == b"\xff\xd8"
    results.write(str(tmp_path / "a.txt"), "ü")
    assert (tmp_path / "a.txt").read_text("utf-8") == "ü"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("a.npy", {"a": 1}, "type dict, no array of numbers"),
        ("a.npy", "text", "type str, no array of numbers"),
        ("a.npy", [[1], [1, 2]], "type list, no array of numbers"),
        ("a.png", [[1]], "no picture, but list"),
        ("a.png", np.zeros(3), "an array of shape"),
        ("a.png", np.zeros((0, 3)), "an array of shape"),
        ("a.png", np.zeros((2, 2, 2)), "an array of shape"),
        ("a.png", np.zeros((2, 2), complex), "an array of shape"),
        ("a.dat", 5, "type int, which has no form of its own"),
    ],
)
def test_results_that_do_not_fit_the_file(
    tmp_path: Path, name: str, value: object, why: str
) -> None:
    if name.endswith("png"):
        pytest.importorskip("PIL.Image")
    with pytest.raises(UsageError, match=why):
        results.write(str(tmp_path / name), value)
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a directory"):
        results.check_output(str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="is no directory"):
        results.check_output(str(tmp_path / "none" / "a.npy"))
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        results.write(str(tmp_path / "file" / "a.npy"), np.zeros(1))
    results.check_output(str(tmp_path / "a.npy"))
