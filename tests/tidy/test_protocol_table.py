"""The table of messages in docs/protocol.md and the classes in blackroad.bus.messages agree."""

from __future__ import annotations

import re

import msgspec

from blackroad.bus import messages
from tests.tidy.source import ROOT

PAGE = ROOT / "docs/protocol.md"
_TAG = re.compile(r"0x[0-9A-Fa-f]{2}")
# A kind that is explained in the row of another one: "0x07 AskCapabilities".
_ASIDE = re.compile(r"(0x[0-9A-Fa-f]{2}) ([A-Z][A-Za-z]+)")


def documented(text: str) -> dict[int, str]:
    """Read {tag: name} from rows such as "| 0x30, 0x31 | Open, Opened | ...".

    Raises  AssertionError when a row has not as many names as tags, or a tag comes twice.
    """
    found: dict[int, str] = {}
    for line in text.splitlines():
        cells = [cell.strip().strip("`*") for cell in line.strip().strip("|").split("|")]
        tags = _TAG.findall(cells[0])
        if not line.lstrip().startswith("|") or not tags:
            continue
        names = re.findall(r"[A-Za-z]+", cells[1])
        assert len(tags) == len(names), line
        pairs = [*zip(tags, names, strict=True), *_ASIDE.findall(" ".join(cells[2:]))]
        for tag, name in pairs:
            assert int(tag, 16) not in found, f"{tag} twice"
            found[int(tag, 16)] = name
    return found


def registered() -> dict[int, str]:
    """Collect {tag: name} of every message class."""
    found: dict[int, str] = {}
    for name, value in vars(messages).items():
        if isinstance(value, type) and issubclass(value, msgspec.Struct):
            tag = value.__struct_config__.tag
            if isinstance(tag, int):
                assert tag not in found, f"{name} and {found.get(tag)} share 0x{tag:02X}"
                found[tag] = name
    return found


def shown(kinds: dict[int, str]) -> list[str]:
    return [f"0x{tag:02X} {name}" for tag, name in sorted(kinds.items())]


def test_the_page_and_the_code_name_the_same_messages() -> None:
    kinds = registered()
    assert kinds, "no message class has an integer tag"
    assert shown(documented(PAGE.read_text(encoding="utf-8"))) == shown(kinds)


def test_the_reader_of_the_table() -> None:
    page = (
        "| kind | name | fields |\n| --- | --- | --- |\n"
        "| 0x06 | Capabilities | asked for with 0x07 AskCapabilities |\n"
        "| 0x30, 0x31 | Open, Opened | session |\n"
        "and 0x50 outside a table\n"
    )
    kinds = {6: "Capabilities", 7: "AskCapabilities", 0x30: "Open", 0x31: "Opened"}
    assert documented(page) == kinds
