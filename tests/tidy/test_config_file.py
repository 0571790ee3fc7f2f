"""configs/blackroad.toml and Config agree: every key, its table, its default, its explanation."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from blackroad.config import Config, load
from blackroad.config_keys import KEYS, TABLES
from tests.tidy.source import ROOT

TEXT = (ROOT / "configs/blackroad.toml").read_text(encoding="utf-8")
# A key that is commented out touches its "#"; words are one space away.
UNCOMMENTED = re.sub(r"(?m)^#(?=[a-z_]+ = )", "", TEXT)


def test_as_shipped_it_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "blackroad.toml"
    path.write_text(TEXT, encoding="utf-8")
    assert load(path, environ={}) == Config(source=path)
    assert all(not keys for keys in tomllib.loads(TEXT).values())


def test_uncommented_it_is_exactly_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "blackroad.toml"
    path.write_text(UNCOMMENTED, encoding="utf-8")
    assert dataclasses.replace(load(path, environ={}), source=None) == Config()


def test_it_names_every_key_once_in_its_table_and_in_order() -> None:
    document = tomllib.loads(UNCOMMENTED)
    assert tuple(document) == TABLES
    listed = [(table, name) for table, keys in document.items() for name in keys]
    assert listed == [(key.table, key.name) for key in KEYS.values()]


@pytest.mark.parametrize("name", list(KEYS))
def test_every_key_is_explained_above_it(name: str) -> None:
    above = TEXT.partition(f"\n#{name} = ")[0].splitlines()
    # Keys of one explanation stand directly below each other.
    while above and re.match(r"#[a-z_]+ = ", above[-1]):
        above.pop()
    assert above[-1].startswith("# ")
