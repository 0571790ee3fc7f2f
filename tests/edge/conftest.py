"""Meshes of real daemons for the tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blackroad.client import Client
from tests.edge.alarms import alarm as alarm
from tests.edge.meshes import Mesh, mesh_of


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """An empty mesh; the test adds daemons."""
    with mesh_of() as made:
        yield made


@pytest.fixture(scope="session")
def pair() -> Iterator[Mesh]:
    """Two daemons that many tests share; none may harm them."""
    with mesh_of("one", "two") as made:
        yield made


@pytest.fixture
def client(pair: Mesh) -> Iterator[Client]:
    """A client of the first of the pair."""
    with pair.daemons[0].client() as made:
        yield made


@pytest.fixture
def there(tmp_path: Path) -> tuple[str, Path]:
    """Two paths for a task: where it says that it runs, and where it waits for leave to end."""
    return str(tmp_path / "here"), tmp_path / "go"
