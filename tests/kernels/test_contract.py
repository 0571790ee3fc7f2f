"""What every kernel promises: reading of parameters, messages, tiles, the registry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fractions import Fraction
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackroad.errors import (
    EXIT_USAGE,
    InvariantBroken,
    KernelInputError,
    UnknownKernel,
    UsageError,
)
from blackroad.kernels import contract, registry
from blackroad.kernels.backend import NUMPY, Backend, Device
from blackroad.kernels.parameters import Parameter, read_float, read_int

GREY = np.arange(16, dtype=np.uint8).reshape(4, 4)
EXAMPLES: dict[str, dict[str, Any]] = {
    "collatz": {"start": 1, "count": 3_000_000},
    "convolve": {"image": np.zeros((1500, 1000, 3), np.uint8), "filter": "gaussian", "sigma": 2},
    "mandelbrot": {"width": 1200, "height": 1201},
    "monte_carlo_pi": {"samples": 30_000_000},
}
SMALL: dict[str, dict[str, Any]] = {
    "collatz": {"start": 2**63, "count": 40},
    "convolve": {"image": GREY, "filter": "edges"},
    "mandelbrot": {"width": 9, "height": 8},
    "monte_carlo_pi": {"samples": 100},
}

COUNT = "an integer from 1 to 1_099_511_627_776 numbers"
START = "an integer from 1 to 18_446_744_073_709_551_615"
IMAGE = (
    "a uint8 or float32 array of shape (H, W) or (H, W, C) with at least 1 and at most "
    "268_435_456 elements"
)
FILTER = (
    "one of `blur`, `gaussian`, `sharpen`, `edges`, or a matrix of finite numbers of shape "
    "(h, w) with at least 1 and at most 961 elements"
)

BAD_INPUT: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "collatz",
        {},
        f"`start` is missing and must be {START}; `count` is missing and must be {COUNT}",
        "`blackroad kernels` lists what `collatz` takes",
    ),
    (
        "collatz",
        {"start": 1, "cuont": 5},
        f"there is no parameter `cuont`; `count` is missing and must be {COUNT}",
        "did you mean `count`?",
    ),
    (
        "collatz",
        {"start": 1, "count": 5, "zzz": 1},
        "there is no parameter `zzz`",
        "`blackroad kernels` lists what `collatz` takes",
    ),
    (
        "collatz",
        {"start": "1.5", "count": True},
        f"`start` is '1.5', but must be {START}; `count` is True, but must be {COUNT}",
        "`blackroad kernels` lists what `collatz` takes",
    ),
    (
        "collatz",
        {"start": 2.0**60, "count": 1},
        f"`start` is 1.152921504606847e+18, but must be {START}",
        "a float beyond 2**53 is not exact: pass an int or text",
    ),
    (
        "collatz",
        {"start": 10**60, "count": None},
        f"`start` is a huge integer, but must be {START}; `count` is None, but must be {COUNT}",
        "`blackroad kernels` lists what `collatz` takes",
    ),
    (
        "collatz",
        {"start": 2**64 - 1, "count": 2},
        "`start` + `count` - 1 is 18_446_744_073_709_551_616, but must be at most 2**64 - 1",
        "use a `count` of at most 1",
    ),
    (
        "monte_carlo_pi",
        {"samples": "1e999999999"},
        "`samples` is '1e999999999', but must be an integer from 1 to 1_125_899_906_842_624",
        "`blackroad kernels` lists what `monte_carlo_pi` takes",
    ),
    (
        "monte_carlo_pi",
        {"samples": 2**50, "first_sample": 1},
        "`first_sample` + `samples` is 1_125_899_906_842_625, but must be at most 2**50",
        "`blackroad kernels` lists what `monte_carlo_pi` takes",
    ),
    (
        "mandelbrot",
        {"width": 9, "height": 9, "scale": "nan"},
        "`scale` is 'nan', but must be a finite number from 1e-12 to 16",
        "`blackroad kernels` lists what `mandelbrot` takes",
    ),
    (
        "mandelbrot",
        {"width": 9, "height": 9, "first_row": 8, "rows": 2},
        "`first_row` 8 and `rows` 2 are outside the picture, whose `height` is 9",
        "`blackroad kernels` lists what `mandelbrot` takes",
    ),
    (
        "mandelbrot",
        {"width": 60_000, "height": 60_000},
        "`width` x `height` is 3_600_000_000, but must be at most 2**28",
        "`blackroad kernels` lists what `mandelbrot` takes",
    ),
    (
        "mandelbrot",
        {"width": 10_000, "height": 1, "scale": 1e-12},
        "`scale` / `width` is 1e-16, but must be at least 1e-15, or neighbouring pixels are the "
        "same float64",
        "use a `width` of at most 999",
    ),
    (
        "convolve",
        {"image": GREY, "filter": "gausian"},
        f"`filter` is 'gausian', but must be {FILTER}",
        "did you mean `gaussian`?",
    ),
    (
        "convolve",
        {"image": [[1]], "filter": "blur"},
        f"`image` is a list, but must be {IMAGE}",
        "pass a NumPy array, for example numpy.asarray(…, dtype='uint8')",
    ),
    (
        "convolve",
        {"image": GREY.astype("f8"), "filter": "blur"},
        f"`image` is a float64 array of shape (4, 4), but must be {IMAGE}",
        "convert it first, for example .astype('uint8')",
    ),
    (
        "convolve",
        {"image": GREY[:0], "filter": "blur"},
        f"`image` is a uint8 array of shape (0, 4), but must be {IMAGE}",
        "`blackroad kernels` lists what `convolve` takes",
    ),
    (
        "convolve",
        {"image": GREY[0], "filter": "blur"},
        f"`image` is a uint8 array of shape (4,), but must be {IMAGE}",
        "`blackroad kernels` lists what `convolve` takes",
    ),
    (
        "convolve",
        {"image": np.zeros((2, 2, 17), np.uint8), "filter": "blur"},
        "`image` has 17 channels, but must have at most 16",
        "`blackroad kernels` lists what `convolve` takes",
    ),
    (
        "convolve",
        {"image": np.zeros((1, 2**21 + 1), np.uint8), "filter": "blur"},
        "`image` has rows of 2_097_153 elements, but at most 2**21 can be",
        "`blackroad kernels` lists what `convolve` takes",
    ),
    (
        "convolve",
        {"image": GREY, "filter": np.ones((2, 3))},
        "`filter` has the shape (2, 3), but must have odd sides of at most 31",
        "fill it up with zeros",
    ),
    (
        "convolve",
        {"image": GREY, "filter": np.ones((33, 1))},
        "`filter` has the shape (33, 1), but must have odd sides of at most 31",
        "fill it up with zeros",
    ),
    (
        "convolve",
        {"image": GREY, "filter": [[1e39]]},
        f"`filter` is a list, but must be {FILTER}",
        "every number must fit a float32",
    ),
    (
        "convolve",
        {"image": GREY, "filter": 7},
        f"`filter` is 7, but must be {FILTER}",
        "`blackroad kernels` lists what `convolve` takes",
    ),
    (
        "convolve",
        {"image": GREY, "filter": "[[1,2],[3]]"},
        f"`filter` is '[[1,2],[3]]', but must be {FILTER}",
        "`blackroad kernels` lists what `convolve` takes",
    ),
    (
        "convolve",
        {"image": GREY, "filter": [["a"]]},
        f"`filter` is a list, but must be {FILTER}",
        "`blackroad kernels` lists what `convolve` takes",
    ),
    (
        "convolve",
        {"image": GREY, "filter": "blur", "border": "reflet", "sigma": 0},
        "`sigma` is 0, but must be a finite number from 0.1 to 32 pixels; `border` is 'reflet', "
        "but must be one of `nearest`, `reflect`, `mirror`, `wrap`, `zero`",
        "did you mean `reflect`?",
    ),
    (
        "convolve",
        {"image": GREY, "filter": "blur", "rows_above": 2},
        "`rows_above` is 2, but must be 0 or 1",
        "`blackroad kernels` lists what `convolve` takes",
    ),
    (
        "convolve",
        {"image": GREY[:2], "filter": "blur", "rows_above": 1, "rows_below": 1},
        "`image` has 2 rows, and all of them are context",
        "`blackroad kernels` lists what `convolve` takes",
    ),
]


class Untouchable(Device):
    """A device that fails the test as soon as it is asked for anything."""

    has_fp64 = True
    name = "untouchable"

    def upload(self, *_: Any) -> Any:
        raise AssertionError("the device was touched")

    empty = launch = download = upload


@pytest.mark.parametrize(("name", "params", "problem", "hint"), BAD_INPUT)
def test_bad_input(name: str, params: dict[str, Any], problem: str, hint: str) -> None:
    with pytest.raises(KernelInputError) as caught:
        registry.get(name).run(params, Untouchable())
    assert (caught.value.message, caught.value.hint) == (f"kernel `{name}`: {problem}", hint)
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (7, 7),
        ("7", 7),
        (" 10_000_000 ", 10_000_000),
        ("1e7", 10_000_000),
        ("1.5e3", 1_500),
        ("-0", 0),
        (str(2**64 - 1), 2**64 - 1),
        (1e7, 10_000_000),
        (np.int8(5), 5),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float64(8.0), 8),
        (1.5, None),
        ("1.5", None),
        ("", None),
        ("ten", None),
        ("nan", None),
        ("inf", None),
        ("1e41", None),
        ("1" * 65, None),
        (float("inf"), None),
        (2.0**53 + 2, None),
        (True, None),
        (np.True_, None),
        (None, None),
        ([1], None),
        (Fraction(3), None),
    ],
)
def test_integers_are_read_exactly_or_not_at_all(given: object, read: int | None) -> None:
    found = read_int(given)
    assert found == read
    assert found is None or type(found) is int


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (1, 1.0),
        ("-0.75", -0.75),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        ("x", None),
        ("nan", None),
        (float("inf"), None),
        (10**400, None),
        (True, None),
        (None, None),
        (1j, None),
        (np.complex64(1j), None),
    ],
)
def test_numbers_are_read_if_finite(given: object, read: float | None) -> None:
    assert read_float(given) == read


@given(st.one_of(st.text(), st.floats(), st.integers(), st.binary(), st.none(), st.booleans()))
def test_reading_never_raises(value: object) -> None:
    whole, number = read_int(value), read_float(value)
    assert whole is None or isinstance(whole, int)
    assert number is None or isinstance(number, float)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["start", "count", "image", "filter", "sigma", "samples", "width", "x"]),
        st.one_of(st.text(max_size=8), st.floats(), st.integers(), st.lists(st.integers())),
    ),
    st.sampled_from(registry.names()),
)
def test_check_raises_only_kernel_input_error(params: dict[str, Any], name: str) -> None:
    chosen = registry.get(name)
    try:
        values = chosen.check(params)
    except KernelInputError as error:
        message = f"{error.message} hint: {error.hint}"
    else:
        assert list(values) == [parameter.name for parameter in chosen.parameters]
        assert chosen.check(values) == values
        return
    assert re.fullmatch(rf"kernel `{name}`: .+ hint: .+", message, re.DOTALL)


def test_check_completes_with_defaults() -> None:
    values = registry.get("mandelbrot").check({"width": "1_0", "height": "2e1"})
    assert (values["width"], values["height"], values["max_iter"]) == (10, 20, 200)
    assert values["center_x"] == -0.75


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("target", [-1, 0, 1, 3, 10**6])
def test_tiles_are_worth_sending(name: str, target: int) -> None:
    chosen, params = registry.get(name), EXAMPLES[name]
    tiles = chosen.pieces(params, target)
    works = [chosen.work(tile) for tile in tiles]
    assert len(tiles) == 1 or min(works) > 0.7 * contract.TILE_WORK_MIN
    assert 1 <= len(tiles) <= max(1, target)
    assert target < 10**6 or len(tiles) >= 3
    assert sum(works) == pytest.approx(chosen.work(params), rel=0.1)


@pytest.mark.parametrize("name", registry.names())
def test_a_small_input_is_one_tile(name: str) -> None:
    (tile,) = registry.get(name).pieces(SMALL[name], 64)
    assert repr(tile) == repr(registry.get(name).check(SMALL[name]))


def _plain(value: object) -> object:
    assert isinstance(value, np.ndarray)
    assert value.flags.c_contiguous
    return value.tobytes()


@pytest.mark.usefixtures("tiny_tiles")
@pytest.mark.parametrize("name", registry.names())
def test_tiles_and_results_fit_a_message(backend: Backend, name: str) -> None:
    chosen = registry.get(name)
    for tile in chosen.pieces(SMALL[name], 3):
        assert msgpack.packb(tile, default=_plain)
        assert msgpack.packb(chosen.run(tile, backend), default=_plain)


@pytest.mark.parametrize("name", registry.names())
def test_gather_wants_one_result_per_tile(name: str) -> None:
    chosen = registry.get(name)
    with pytest.raises(InvariantBroken, match="one result per tile"):
        chosen.gather(SMALL[name], [SMALL[name]], [])


def test_names_and_unknown_names() -> None:
    assert registry.names() == ["collatz", "convolve", "mandelbrot", "monte_carlo_pi"]
    with pytest.raises(UnknownKernel) as caught:
        registry.get("colatz")
    assert caught.value.message == "there is no kernel `colatz`"
    assert caught.value.hint == (
        "did you mean `collatz`? there are: collatz, convolve, mandelbrot, monte_carlo_pi"
    )


def test_descriptions_are_plain_data() -> None:
    described = json.loads(json.dumps(registry.describe()))
    assert [row["name"] for row in described] == registry.names()
    assert all(row["pure"] and row["summary"] and row["tolerance"] for row in described)
    start, count, most = described[0]["parameters"]
    assert (start["required"], start["default"], start["maximum"]) == (True, None, 2**64 - 1)
    assert (count["unit"], most["required"], most["default"]) == ("numbers", False, 256)
    assert all(row["help"] for kernel in described for row in kernel["parameters"])


def test_a_kernel_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "REGISTERED", contract.REGISTERED.copy())
    monkeypatch.setattr(registry, "REGISTERED", contract.REGISTERED)

    class Double(registry.Kernel):
        name = "double"
        summary = "twice a number"
        tolerance = "none"
        opencl = ""
        parameters = (Parameter("number", "int", help="what to double"),)

        def estimate(self, values: Any) -> float:
            return 1.0

        def split(self, values: Any, parts: int) -> list[dict[str, Any]]:
            return [dict(values)]

        def compute(self, values: Any) -> Any:
            return 2 * values["number"]

        def compute_on(self, values: Any, device: Device) -> Any:
            return self.compute(values)

        def combine(self, values: Any, results: Any) -> Any:
            return results[0]

        def compare(self, values: Any, a: Any, b: Any) -> str | None:
            return None if a == b else "another number"

    registry.kernel(Double)
    assert "double" in registry.names()
    assert registry.run("double", {"number": "21"}, "numpy") == 42
    Other = type("Other", (Double,), {"name": "collatz"})
    with pytest.raises(InvariantBroken, match="two kernels are called `collatz`"):
        registry.kernel(Other)


def test_a_wrong_backend_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        registry.run("collatz", {"start": 1, "count": 1}, "gpu")
    assert caught.value.hint == "use one of auto, numpy, opencl"


@pytest.mark.parametrize("name", registry.names())
def test_run_on_numpy_says_so(name: str) -> None:
    chosen = registry.get(name)
    result = registry.run(name, SMALL[name], "numpy")
    assert chosen.agrees(SMALL[name], result, chosen.reference(SMALL[name])) is None
    assert (registry.last_backend(), registry.last_fallback()) == (NUMPY.name, "")


def test_checking_and_describing_import_no_numpy() -> None:
    program = (
        "import sys\n"
        "from blackroad.kernels import registry\n"
        "assert not any(name.startswith('blackroad.kernels.colla') for name in sys.modules)\n"
        "registry.describe()\n"
        "registry.get('collatz').check({'start': '1', 'count': '1e6'})\n"
        "assert not {'numpy', 'pyopencl'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
