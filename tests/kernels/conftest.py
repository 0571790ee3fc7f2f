"""Fixtures: each test that asks for `backend` or `device` runs on every one found."""

from __future__ import annotations

import pytest

from blackroad.kernels import contract
from tests.kernels.places import BACKENDS, DEVICES

NO_DEVICE = "no OpenCL device: pip install 'pyopencl[pocl]' brings one"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS, ids=lambda place: place.name)
    if "device" in metafunc.fixturenames:
        missing = [pytest.param(None, marks=pytest.mark.skip(reason=NO_DEVICE))]
        metafunc.parametrize("device", DEVICES or missing, ids=lambda place: place and place.name)


@pytest.fixture
def tiny_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a tile be as small as one item, so that small inputs can be split."""
    monkeypatch.setattr(contract, "TILE_WORK_MIN", 1e-9)
