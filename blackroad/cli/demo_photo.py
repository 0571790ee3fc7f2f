"""The demo's photograph: filtered in strips over the nodes, compared, written as PNG.

The photograph is the one that PyWavelets ships.  This file must not know daemons.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackroad.cli.demo_stage import Finishes, shared
from blackroad.errors import EnvironmentProblem
from blackroad.kernels import registry

if TYPE_CHECKING:
    import numpy.typing as npt

    from blackroad.cli.demo_stage import Stage

    Array = npt.NDArray[Any]

JOB_S: Final = 60.0
STRIPS: Final = 8
SIGMA: Final = 5.0
INSTALL: Final = "pip install 'blackroad[demo]'"


class Filter(NamedTuple):
    """One picture to make."""

    file: str
    title: str
    params: dict[str, Any]


FILTERS: Final = (
    Filter("blurred.png", "blurred", {"filter": "gaussian", "sigma": SIGMA}),
    Filter("edges.png", "edges", {"filter": "edges"}),
)


def photo(stage: Stage) -> None:
    """Blur a photograph and find its edges; leave both out where a package is missing."""
    report = stage.report
    report.part("Filters over a real photograph: arrays travel, too")
    source, missing = _photograph()
    if source is None:
        report.say(f"left out: {missing} is not installed ({INSTALL})", "yellow")
        report.facts["photo"] = {"skipped": f"{missing} is not installed", "hint": INSTALL}
        return
    image = _load(source)
    report.say(
        f"{image.shape[1]} x {image.shape[0]} pixels, each filter in {STRIPS} strips with the rows "
        "they share"
    )
    facts: dict[str, Any] = {"shape": list(image.shape), "files": []}
    _save(stage, "original.png", image)
    for one in FILTERS:
        facts[one.title] = _filtered(stage, one, image)
    facts["files"] = list(stage.files)
    report.facts["photo"] = facts


def _filtered(stage: Stage, one: Filter, image: Array) -> dict[str, Any]:
    """Make one picture on the nodes and compare it with NumPy's, computed here."""
    kernel = registry.get("convolve")
    params = kernel.check({"image": image, **one.params})
    # So small a picture would stay in one piece; the strips are what a large one is cut into.
    strips = kernel.split(params, STRIPS)
    tasks = [stage.client.kernel_task("convolve", strip) for strip in strips]
    clock = Finishes(tasks)
    stage.finish(one.title, tasks, JOB_S)
    result = kernel.gather(params, strips, [task.result() for task in tasks])
    reference = kernel.reference(params)
    differs = kernel.agrees(params, result, reference)
    shares = stage.shares(tasks)
    unequal = int((result != reference).sum())  # type: ignore[attr-defined]
    stage.report.check(
        f"{one.title}: the strips make the picture that one machine makes",
        differs is None,
        differs or f"{unequal:,} of {image.size:,} pixels differ by 1, as rounding may"
        if unequal
        else f"every pixel equal; {shared(shares)}",
    )
    _save(stage, one.file, result)
    return {
        "strips": len(strips),
        "seconds": clock.wall_s,
        "pixels_rounded_otherwise": unequal,
        "strips_by_node": shares,
        "backends": stage.backends(tasks),
    }


def _photograph() -> tuple[Path | None, str]:
    """Find the file without importing the package; say which package is missing."""
    if importlib.util.find_spec("PIL") is None:
        return None, "pillow"
    found = importlib.util.find_spec("pywt")
    if found is None or found.origin is None:
        return None, "PyWavelets"
    path = Path(found.origin).parent / "data" / "ascent.npz"
    return (path, "") if path.is_file() else (None, "the photograph of PyWavelets")


def _load(source: Path) -> Array:
    import numpy as np

    try:
        with np.load(source, allow_pickle=False) as found:
            image = found[found.files[0]]
    except (OSError, ValueError, IndexError) as error:
        raise EnvironmentProblem(
            f"{source} cannot be read: {error}", hint=f"{INSTALL} --force-reinstall"
        ) from error
    return np.ascontiguousarray(image, np.uint8)


def _save(stage: Stage, name: str, image: Any) -> None:
    from PIL import Image

    path = stage.out / name
    try:
        Image.fromarray(image).save(path)
    except OSError as error:
        raise EnvironmentProblem(
            f"{path} cannot be written: {error.strerror}", hint="choose another place with --out"
        ) from error
    stage.files.append(str(path))
